"""The error rates that `decide` promises, on simulated rounds: no false alarms beyond alpha, slowdowns found, wild rounds survived."""

from __future__ import annotations

import math
import random

import pytest

from vitgs.gate import decide

BOUND = math.log1p(0.02)
ROUNDS = 12


def alarmed(rng: random.Random, *, shift: float, noise: float, cases: int, wild: float = 0.0) -> bool:
    """Whether one whole run of looks calls any case slower."""
    logs = {
        str(i): [rng.gauss(shift, noise) + (rng.choice((-1, 1)) * 0.3 if rng.random() < wild else 0) for _ in range(ROUNDS)] for i in range(cases)
    }
    before = 0
    verdict: dict[str, decide.Verdict] = dict.fromkeys(logs, "open")
    for now in (3, 6, 9, 12):
        seen = {case: values[:now] for case, values in logs.items() if verdict[case] == "open"}
        verdict |= decide.look(seen, dict.fromkeys(seen, BOUND), before=before / ROUNDS, now=now / ROUNDS, of=cases)
        before = now
    return "slower" in verdict.values()


def share(times: int, **how: float) -> float:
    rng = random.Random(0)
    return sum(alarmed(rng, **{"cases": 6, "noise": 0.02, "wild": 0.0, **how}) for _ in range(times)) / times  # type: ignore[arg-type]


def test_no_false_alarms_when_nothing_changed() -> None:
    assert share(150, shift=0.0) <= 0.01


def test_at_the_threshold_itself_no_more_than_alpha() -> None:
    # The worst case that H0 allows, in all six cases at once; 150 tries at a rate of at most .1.
    assert share(150, shift=BOUND) <= 0.15


def test_wild_rounds_raise_no_alarm() -> None:
    assert share(100, shift=0.0, wild=0.15) <= 0.02


def test_a_slowdown_is_found() -> None:
    assert share(100, shift=math.log(1.05), cases=1, noise=0.015) >= 0.9


def test_spending_is_nearly_nothing_early_and_alpha_at_the_end() -> None:
    spent = [decide.spent(t / 4) for t in range(5)]
    assert spent[0] == 0 and spent[1] < 0.002 and spent[4] == pytest.approx(0.1)
    assert spent == sorted(spent)


def test_holm() -> None:
    p_values = {"a": 0.001, "b": 0.02, "c": 0.04, "d": 0.9}
    assert decide.holm(p_values, 0.05) == {"a"}
    assert decide.holm({"a": 0.001, "b": 0.01, "c": 0.02, "d": 0.04}, 0.05) == {"a", "b", "c", "d"}
    assert decide.holm({"a": 0.01}, 0.05, of=6) == set()


def test_a_wild_round_makes_no_difference_to_a_trimmed_mean() -> None:
    calm = decide.located([0.01] * 5 + [0.012] * 5)
    wild = decide.located([0.01] * 5 + [0.012] * 4 + [5.0])
    assert wild.centre == pytest.approx(calm.centre, abs=1e-3)


def test_a_look_tells_the_four_verdicts_apart() -> None:
    rounds = range(12)
    logs = {
        "slower": [0.1 + 0.001 * (i % 3) for i in rounds],
        "faster": [-0.1 + 0.001 * (i % 3) for i in rounds],
        "same": [0.002 * (i % 3 - 1) for i in rounds],
        "open": [0.08 * (i % 3 - 1) for i in rounds],
    }
    assert decide.look(logs, dict.fromkeys(logs, BOUND), before=0.75, now=1.0, of=4) == {name: name for name in logs}


def test_a_case_leaves_when_the_rest_of_the_rounds_can_hardly_show_a_slowdown() -> None:
    quiet = [0.03 * (i % 2) - 0.015 for i in range(6)]
    logs = {"idle": quiet, "maybe": [d + 0.035 for d in quiet], "few": quiet[:3]}
    found = decide.look(logs, dict.fromkeys(logs, math.log1p(0.01)), before=0.25, now=0.5, of=6)
    assert found == {"idle": "hopeless", "maybe": "open", "few": "open"}


def test_giving_up_costs_a_slowdown_worth_finding_little() -> None:
    rng = random.Random(1)
    bound, lost = math.log1p(0.01), 0
    for _ in range(300):
        logs = [rng.gauss(math.log1p(2 * decide.WORTH), 0.02) for _ in range(6)]
        lost += decide.look({"a": logs}, {"a": bound}, before=0.25, now=0.5, of=6)["a"] in ("hopeless", "same")
    assert lost <= 3


def test_too_few_rounds_stay_open() -> None:
    assert decide.look({"a": [9.0, 9.0]}, {"a": BOUND}, before=0, now=1, of=1) == {"a": "open"}
