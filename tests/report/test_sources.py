"""Which folders a report reads: one's own results before the committed reference."""

from __future__ import annotations

from pathlib import Path

from vitgs.report.sources import machine_folders


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
