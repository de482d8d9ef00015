"""Versions that stand for older ones: chains lead to the oldest, and what compares their rows sees one clip answered otherwise.

That sweeps and reports go by them is tested with those.
"""

from __future__ import annotations

import dataclasses
import re
import sys
from pathlib import Path

import pytest

from tests.benchmarks import same_rows
from tests.store.test_records import row
from vitgs.store import same
from vitgs.store.records import append


def test_a_chain_leads_to_the_oldest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same, "SAME", {"c": "b", "b": "a"})
    assert [same.settled(version) for version in "abcd"] == ["a", "a", "a", "d"]


def test_the_versions_that_stand_there_lead_to_an_end() -> None:
    assert all(re.fullmatch("[0-9a-f]{16}", version) for pair in same.SAME.items() for version in pair)
    for version in same.SAME:
        seen = {version}
        while version in same.SAME:
            version = same.SAME[version]
            assert version not in seen, "versions stand for each other"
            seen.add(version)


@pytest.mark.parametrize(("answers", "code"), [(["AA=="], 0), (["gA=="], 1), (None, 1)])
def test_rows_are_the_same_where_every_answer_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: list[str] | None, code: int) -> None:
    before = row()
    append(tmp_path / "before" / "suite.jsonl", before)
    if answers is not None:
        append(tmp_path / "now" / "suite.jsonl", dataclasses.replace(before, result={**before.result, "correct1": answers}))
    monkeypatch.setattr(sys, "argv", ["same_rows", str(tmp_path / "before"), str(tmp_path / "now"), "--system", "joint"])
    assert same_rows.main() == code
