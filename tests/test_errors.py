"""Errors that a user reads: one line, an exit code for each kind, and nothing lost on the way out of a worker process."""

from __future__ import annotations

import pickle

import pytest

from vitgs.errors import AnswerIsNo, BrokenOff, NothingToWorkOn, UnfitMachine, UsageError, VitgsError, unknown


def test_the_line_states_rule_value_and_remedy() -> None:
    error = UsageError("budget must be above 0", given=0, remedy="set budget to 0.25")
    assert str(error) == "budget must be above 0; given: 0; set budget to 0.25"


def test_a_value_with_line_breaks_stays_one_line() -> None:
    assert "\n" not in str(UsageError("a rule", given="two\nlines\n\n of  text", remedy="a remedy"))


def test_each_kind_has_its_exit_code() -> None:
    kinds: dict[type[VitgsError], int] = {AnswerIsNo: 1, UsageError: 2, NothingToWorkOn: 3, UnfitMachine: 4, BrokenOff: 5}
    assert {kind: kind.exit_code for kind in kinds} == kinds


@pytest.mark.parametrize("kind", [VitgsError, AnswerIsNo, UsageError, NothingToWorkOn, UnfitMachine, BrokenOff])
def test_errors_survive_pickling(kind: type[VitgsError]) -> None:
    error = kind("a rule", given={"a": 1}, remedy="a remedy")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.rule, again.given, again.remedy) == (str(error), "a rule", "{'a': 1}", "a remedy")


def test_an_unknown_name_lists_near_ones_first_then_all() -> None:
    error = unknown("system", "timesfomer", ["vit_mean", "timesformer", "joint"], where="suite budget")
    assert isinstance(error, UsageError)
    assert str(error) == (
        "a system in suite budget must be one of the known ones; given: 'timesfomer'; did you mean timesformer? known: joint, timesformer, vit_mean"
    )


def test_an_unknown_name_without_near_ones() -> None:
    assert unknown("size", "?", []).remedy == "known: none"
