"""Rounds, looks, confirmation, stopping: on given numbers. And one round of real models, whose times are not judged."""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from tests.gate.planted import Tiny, case
from vitgs.gate import compare, timed
from vitgs.gate.blocks import Warm


class Given:
    """A sampler that takes a second a round and gives ratios by case."""

    def __init__(self, ratios: Mapping[str, Callable[[int], float]], *, noise: float = 0.005) -> None:
        self.ratios, self.noise, self.rng = ratios, noise, random.Random(0)
        self.asked: list[tuple[str, ...]] = []

    def __call__(self, names: Sequence[str]) -> dict[str, timed.Pair]:
        self.asked.append(tuple(names))
        turn = len(self.asked)
        return {name: (10.0, 10.0 * self.ratios[name](turn) * (1 + self.rng.gauss(0, self.noise))) for name in names}

    def clock(self) -> float:
        return float(len(self.asked))

    def judged(self, seconds: float = 16, threshold: float = 0.02) -> dict[str, timed.Timed]:
        return {t.case: t for t in timed.judge(self, dict.fromkeys(self.ratios, threshold), seconds=seconds, clock=self.clock)}


def test_a_slower_case_is_confirmed_and_the_others_go_early() -> None:
    given = Given({"slow": lambda _: 1.1, "same": lambda _: 1.0, "fast": lambda _: 0.8})
    found = given.judged()
    assert {name: t.outcome for name, t in found.items()} == {"slow": "slower", "same": "same", "fast": "faster"}
    assert found["slow"].low > 1.05 and found["slow"].again_ms and not found["same"].again_ms
    assert given.asked[-1] == ("slow",)
    assert len(found["same"].samples_ms) < 12  # the plan's rounds


def test_a_clear_case_is_over_before_the_plan_is() -> None:
    given = Given({"slow": lambda _: 1.5})
    assert len(given.judged()["slow"].samples_ms) < 12


def test_a_slow_spell_that_does_not_come_back_is_no_regression() -> None:
    given = Given({"spell": lambda turn: 1.1 if turn <= 6 else 1.0})
    found = given.judged()["spell"]
    assert found.unconfirmed and found.outcome != "slower" and found.again_ms


def test_a_noisy_case_is_called_so() -> None:
    turns = itertools.cycle((0.7, 1.0, 1.4))
    assert Given({"noisy": lambda _: next(turns)}).judged()["noisy"].outcome == "noisy"


def test_a_slowdown_below_the_threshold_is_not_reported() -> None:
    assert Given({"slight": lambda _: 1.015}).judged(threshold=0.05)["slight"].outcome == "same"


def test_slow_rounds_end_in_time() -> None:
    given = Given({"open": lambda turn: 1.0 + 0.05 * (turn % 3 - 1)})
    assert len(given.judged(seconds=1)["open"].samples_ms) == 3


def test_what_slows_both_sides_for_a_while_is_not_in_a_rounds_ratio() -> None:
    blocks, looks = iter(range(10**6)), itertools.count(0.0, 0.2)
    # From pair to pair the machine takes twice as long; the head takes a tenth more than the base.
    pair = timed.paired(
        lambda side: ((1.1 if side == "head" else 1.0) * 2 ** (next(blocks) // 2), True), random.Random(0), seconds=1.0, clock=looks.__next__
    )
    pairs = next(blocks) // 2
    assert pairs == timed.ENOUGH_PAIRS  # more than a second, for which there are too few pairs
    assert pair[1] / pair[0] == pytest.approx(1.1)
    assert (pair[0] * pair[1]) ** 0.5 == pytest.approx(1.1**0.5 * 2 ** (timed.ENOUGH_PAIRS // 2))


def test_disturbed_pairs_count_only_where_there_are_hardly_others() -> None:
    def taken(quiet: int) -> timed.Pair:
        turns = iter(range(10**6))

        def block(side: str) -> timed.Block:
            undisturbed = next(turns) // 2 < quiet
            return (1.0 if side == "base" else 1.1 if undisturbed else 3.0), undisturbed

        return timed.paired(block, random.Random(0), seconds=0.1, clock=itertools.count(0.0, 0.01).__next__)

    assert taken(timed.FEWEST_PAIRS)[1] / taken(timed.FEWEST_PAIRS)[0] == pytest.approx(1.1)
    assert taken(timed.FEWEST_PAIRS - 1)[1] / taken(timed.FEWEST_PAIRS - 1)[0] == pytest.approx(3.0)


def test_slow_models_get_fewer_pairs() -> None:
    asked: list[str] = []

    def block(side: str) -> timed.Block:
        asked.append(side)
        return 1.0, True

    timed.paired(block, random.Random(0), seconds=0.5, clock=lambda: float(len(asked)))
    assert (asked.count("base"), asked.count("head")) == (timed.FEWEST_PAIRS, timed.FEWEST_PAIRS)


def test_one_thread_is_timed_by_what_it_computes_and_waiting_is_not() -> None:
    class Waits(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            time.sleep(0.03)
            return x + 1

    threads = torch.get_num_threads()
    try:
        took_ms = {}
        for count in (1, 2):
            torch.set_num_threads(count)
            took_ms[count] = Warm(Waits(), ((torch.zeros(2, 8),), {}), device="cpu").block(3)[0]
    finally:
        torch.set_num_threads(threads)
    assert took_ms[1] < 30 <= took_ms[2]


def test_a_round_times_the_cases_left_for_longer() -> None:
    assert timed.pairs_s(6) == timed.SHORTEST_S < timed.pairs_s(4) < timed.pairs_s(1) == timed.LONGEST_S


def test_cases_that_will_not_show_a_slowdown_any_more_leave_as_open() -> None:
    turns = itertools.cycle((0.97, 1.0, 1.03, 0.98, 1.02))
    given = Given({"idle": lambda _: next(turns), "slow": lambda _: 1.5}, noise=0.0)
    found = given.judged(seconds=32, threshold=0.01)["idle"]
    assert found.outcome == "open" and len(found.samples_ms) <= timed.MOST_ROUNDS / 2


@pytest.mark.parametrize("seconds", [0.2])
def test_two_real_models_in_this_process(seconds: float) -> None:
    found = compare(case(Tiny), case(Tiny), seconds=seconds, threshold=0.5).timed
    assert found is not None and found.outcome in ("same", "open", "noisy", "faster", "slower")
    assert all(base > 0 and head > 0 for base, head in found.samples_ms)
