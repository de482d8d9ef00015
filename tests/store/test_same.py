"""Versions that stand for older ones: chains lead to the oldest. That sweeps and reports go by them is tested with those."""

from __future__ import annotations

import re

import pytest

from vitgs.store import same


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
