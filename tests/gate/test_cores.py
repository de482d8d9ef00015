"""Which cores the two sides work on: the idlest of those that may be used, by the system's counters."""

from __future__ import annotations

import os

import pytest

from vitgs.gate import cores

BEFORE = "cpu 0 0 0 0 0 0 0 0 0 0\ncpu0 100 0 0 50 0 0 0 0 0 0\ncpu1 100 0 0 50 0 0 0 0 0 0\ncpu2 100 0 0 50 0 0 0 0 0 0\n"
AFTER = "cpu 0 0 0 0 0 0 0 0 0 0\ncpu0 150 0 0 50 0 0 0 0 0 0\ncpu1 110 0 0 80 10 0 0 0 0 0\ncpu2 100 0 0 80 0 0 0 20 0 0\n"


def found(count: int, *texts: str) -> tuple[int, ...]:
    return cores.quietest(count, window_s=0.0, read=iter(texts).__next__)


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2}, raising=False)


def test_the_idlest_core_is_taken_and_stolen_time_is_not_idle() -> None:
    assert found(1, BEFORE, AFTER) == (1,)
    assert found(2, BEFORE, AFTER) == (1, 2)


def test_without_a_choice_or_counters_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found(3) == ()
    assert found(1, "", "") == ()
    assert found(1, BEFORE, "cpu0 1 2\n") == ()
    monkeypatch.delattr(os, "sched_getaffinity")
    assert found(1) == ()


def test_counters_that_stand_still_choose_the_first() -> None:
    assert found(1, BEFORE, BEFORE) == (0,)
