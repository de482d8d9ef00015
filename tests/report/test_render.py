"""The written report: complete, self-contained, and safe whatever a reason says."""

from __future__ import annotations

import csv
import dataclasses
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.report.synthetic import BASE, records, write
from vitgs.errors import UsageError
from vitgs.report import tables
from vitgs.report.placement import Box, Spot, place
from vitgs.report.points import Book
from vitgs.report.render import render


@pytest.fixture(scope="module")
def written(results: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    files = render([results], tmp_path_factory.mktemp("report"), current=None)
    return {file.name: file for file in files}


class Elements(HTMLParser):
    """Start tags with their attributes, and tags that don't close as they should."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "input", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_all_formats_are_written(written: dict[str, Path]) -> None:
    figures = [f"pareto-{axis}" for axis in ("gmacs", "latency", "throughput", "memory")]
    figures += [f"training-{axis}" for axis in ("parameters", "rate", "seconds", "memory")]
    assert set(written) == {
        "index.html",
        "results.csv",
        "results.md",
        "accuracy.md",
        "results.tex",
        *(f"{name}.{s}" for name in figures for s in ("png", "pdf")),
    }
    assert all(file.stat().st_size > 500 for file in written.values())


def test_page_needs_nothing_from_outside(written: dict[str, Path]) -> None:
    text = written["index.html"].read_text(encoding="utf-8")
    elements = Elements()
    elements.feed(text)
    assert elements.wrong == []
    assert elements.open == []
    references = [
        value
        for _, attributes in elements.found
        for name, value in attributes.items()
        if name in ("src", "href", "action", "data", "poster") and value
    ]
    assert all(value.startswith("#") for value in references)
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)
    assert [u for u in re.findall(r"https?://[^\s\"'<]+", text) if u != "http://www.w3.org/2000/svg"] == []


def test_page_shows_what_failed_and_escapes_it(written: dict[str, Path]) -> None:
    text = written["index.html"].read_text(encoding="utf-8")
    assert "out of memory: 9.1 GiB asked" in text
    assert "torch.compile needs a C++ compiler" in text
    assert "oom" in text
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert(1)" in text


def test_page_says_its_parts_in_order(written: dict[str, Path]) -> None:
    text = written["index.html"].read_text(encoding="utf-8")
    parts = ("answer", "fronts", "systems", "equal", "table", "cost-of-training", "training", "stages", "environment", "lost", "notes")
    places = [text.index(f'<section id="{name}"') for name in parts]
    assert places == sorted(places)
    assert "giga multiply-adds" in text
    assert "frame-average ceiling" in text
    assert "data-copy=" in text
    assert "no energy counter on this machine" in text


def test_preliminary_is_said(tmp_path: Path) -> None:
    (page,) = render([write(tmp_path, records(seeds=1))], tmp_path / "out", ("html",), current=None)
    assert "<b>Preliminary.</b> All systems have one seed" in page.read_text(encoding="utf-8")


def test_tables_hold_the_same_numbers(written: dict[str, Path], book: Book) -> None:
    rows = list(csv.DictReader(written["results.csv"].read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 44 + 3
    assert rows[0]["system"] == "graphsampler"
    assert float(rows[0]["top1_moment_low"]) < float(rows[0]["top1_moment"]) < float(rows[0]["top1_moment_high"])
    assert rows[0]["energy_j_per_clip"] == ""
    assert "failed: the loss was not finite" in rows[-3]["flags"]
    shown = f"{100 * float(rows[0]['top1_moment']):.1f} ["
    assert shown in written["results.md"].read_text(encoding="utf-8")
    assert shown in written["results.tex"].read_text(encoding="utf-8")
    assert written["results.md"].read_text(encoding="utf-8").count("\n") == 2 + 47
    brief = written["accuracy.md"].read_text(encoding="utf-8").splitlines()
    assert len(brief) == 2 + 44
    assert shown in brief[2]
    assert "replay" not in brief[0]
    assert "equal core-seconds" not in brief[0]


def test_the_brief_table_has_what_there_is_at_equal_core_seconds(tmp_path: Path) -> None:
    rows = records(BASE[:3], ("moment", "order"), 1)
    equal = [
        dataclasses.replace(r, job=dataclasses.replace(r.job, options={**r.job.options, "equal": "core_seconds"}))
        for r in rows
        if r.job.kind == "eval" and r.job.data == "order"
    ]
    files = {f.name: f for f in render([write(tmp_path, [*rows, *equal])], tmp_path / "out", ("md", "html"), current=None)}
    brief, page = files["accuracy.md"], files["index.html"].read_text(encoding="utf-8")
    assert page.count("over it, points") == 1 and page.count("Trained for equal core-seconds, and at equal compute or less, graphsampler is") == 1
    head = brief.read_text(encoding="utf-8").splitlines()[0]
    assert "top-1 order at equal core-seconds" in head and "top-1 moment at equal" not in head


def test_latex_is_balanced_and_escaped(written: dict[str, Path]) -> None:
    text = written["results.tex"].read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.endswith("\\\\")]
    assert len(lines) == 1 + 44
    assert len({line.replace("\\&", "").count("&") for line in lines}) == 1
    assert "vit\\_mean" in text
    assert not re.search(r"(?<!\\)[_#]", "\n".join(lines))


def test_latex_escapes() -> None:
    assert tables.latex("50 % of a_b & {c} $ # ~ ^ \\") == r"50 \% of a\_b \& \{c\} \$ \# \textasciitilde{} \textasciicircum{} \textbackslash{}"


@pytest.mark.parametrize("kinds", [("measure",), ("train", "eval"), ("train",)])
def test_parts_of_the_rows_are_a_report_too(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    rows = [row for row in records(BASE[:2], ("moment",), 1) if row.job.kind in kinds]
    page, table = render([write(tmp_path, rows)], tmp_path / "out", ("html", "csv"), current=None)
    expected = {("measure",): 8 + 2, ("train", "eval"): 8 + 1, ("train",): 1}[kinds]
    assert len(table.read_text(encoding="utf-8").splitlines()) == 1 + expected
    assert '<section id="lost">' in page.read_text(encoding="utf-8")


def test_labels_never_overlap() -> None:
    frame = Box(left=0, bottom=0, right=200, top=100)
    spots = [Spot(anchors=((100.0, 50.0),), width=40.0, height=10.0)] * 40
    found = [one[0] for one in place(spots, [], [], frame, 5) if one]
    assert 8 <= len(found) < 40
    assert not any(a.overlaps(b) for i, a in enumerate(found) for b in found[:i])
    assert all(box.inside(frame) for box in found)


def test_labels_keep_off_lines_where_they_can() -> None:
    frame = Box(left=0, bottom=0, right=200, top=100)
    spot = Spot(anchors=((100.0, 50.0), (20.0, 20.0)), width=40.0, height=10.0)
    level = [(float(x), 50.0) for x in range(0, 200, 4)]
    everywhere = [(float(x), float(y)) for x in range(0, 200, 4) for y in range(0, 100, 4)]
    (free,), (beside,), (other,) = (place([spot], [], lanes, frame, 5) for lanes in ([], level, everywhere))
    assert free is not None
    assert beside is not None
    assert other is not None
    assert free[0].holds((110.0, 50.0))  # to the right of the first anchor
    assert not any(beside[0].holds(dot) for dot in level)
    assert other[0] == free[0]
    assert beside[0].nearest((100.0, 50.0)) == (100.0, beside[0].bottom)


def test_an_unknown_format_is_refused(results: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="must be one of html"):
        render([results], tmp_path, ("docx",))


def test_same_results_same_bytes(tmp_path: Path) -> None:
    results = write(tmp_path / "results", records(BASE[:2], ("moment",), 1))
    first, second = (render([results], tmp_path / name, ("html", "csv", "latex", "pdf"), current=None) for name in "ab")
    assert [a.name for a, b in zip(first, second, strict=True) if a.read_bytes() != b.read_bytes()] == []


def test_rendering_does_not_import_torch() -> None:
    code = "import sys, vitgs.report.render, vitgs.report.best; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
