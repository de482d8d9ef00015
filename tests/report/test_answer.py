"""The answer in words names what competes: systems, or the forms of the one system of an ablation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from tests.report.synthetic import BASE, records, write
from vitgs.report.answer import answers, findings
from vitgs.report.points import Book
from vitgs.report.render import load_book, render

JOINT = next(kind for kind in BASE if kind.name == "joint")


def ablation(folder: Path) -> Path:
    """Joint attention, and the same rows again under the label of another form."""
    rows = [row for row in records((JOINT,), seeds=1) if row.job.system == "joint" and row.status == "measured"]
    other = [
        dataclasses.replace(row, job=dataclasses.replace(row.job, options={**row.job.options, "label": "joint, turned"}))
        for row in rows
        if row.job.kind == "eval"
    ]
    return write(folder, rows + other)


def test_forms_compete_where_there_is_one_system(tmp_path: Path) -> None:
    said = findings(answers(load_book([ablation(tmp_path / "results")], current=None)))
    assert "joint and joint, turned tie on moment and order" in " ".join(said)
    assert "joint is the most accurate" not in " ".join(said)


def test_the_page_of_an_ablation_names_its_forms(tmp_path: Path) -> None:
    render([ablation(tmp_path / "results")], tmp_path / "page", current=None)
    page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert "tie with joint, turned" in page or "tie with joint<" in page


def test_forms_do_not_compete_where_there_are_several_systems(book: Book) -> None:
    for answer in answers(book):
        for level in answer.levels:
            assert set(level.names) <= {kind.name for kind in BASE}
