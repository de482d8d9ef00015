"""Which folders a report reads: one's own results before the committed reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.report.synthetic import BASE, records, write
from vitgs.errors import UsageError
from vitgs.record import record_from
from vitgs.report.sources import load, machine_folders
from vitgs.store.records import GATE, files


def folder(root: Path, name: str) -> Path:
    (root / name).mkdir(parents=True)
    (root / name / "budget.jsonl").touch()
    return root / name


def test_the_reference_stands_in_only_where_there_is_nothing_else(tmp_path: Path) -> None:
    reference = folder(tmp_path, "reference-cpu-1")
    assert machine_folders([tmp_path]) == [reference]
    own = folder(tmp_path, "cpu-2")
    assert machine_folders([tmp_path]) == [own]
    assert machine_folders([reference, tmp_path]) == [reference, own]


def test_what_is_committed_is_read() -> None:
    """The first row of each committed file: on a fresh checkout `report`, `best` and `replay` begin with these."""
    committed = [file for place in (Path(__file__).parents[2] / "results").iterdir() for file in files(place)]
    assert committed
    for file in committed:
        with file.open(encoding="utf-8") as rows:
            assert record_from(json.loads(rows.readline())).job.system, file


def test_the_rows_of_the_gate_are_no_results(tmp_path: Path) -> None:
    """They lie in the same folder: they aren't read as results, and a folder that has nothing else isn't one's own results."""
    reference = write(tmp_path, records(BASE[:1], seeds=1), "reference-cpu-1") / "reference-cpu-1"
    (tmp_path / "cpu-2").mkdir()
    for place in (reference, tmp_path / "cpu-2"):
        (place / GATE).write_text('{"format":1,"kind":"run"}\n', encoding="utf-8")
    assert machine_folders([tmp_path]) == [reference]
    assert load([tmp_path])[0].records


@pytest.mark.parametrize(
    ("name", "text"), [("machine.json", "{"), ("machine.json", "[]"), ("groups-0.json", "{"), ("groups-0.json", '{"groups": "a"}')]
)
def test_a_broken_file_beside_the_rows_is_named(name: str, text: str, tmp_path: Path) -> None:
    write(tmp_path, records(BASE[:1], seeds=1), "cpu-1")
    (tmp_path / "cpu-1" / name).write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=name):
        load([tmp_path])
