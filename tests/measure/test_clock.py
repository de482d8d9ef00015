"""Intervals are checked on simulated series, clocks on clocks that we wind ourselves."""

from __future__ import annotations

import functools
import itertools
import math
import random
import statistics

import pytest

from vitgs.errors import UnfitMachine, UsageError
from vitgs.measure import clock, intervals
from vitgs.measure.intervals import estimate, half_width, percentiles, ratio


def _series(rng: random.Random, count: int, correlation: float) -> list[float]:
    state, values = rng.gauss(0, 1), []
    for _ in range(count):
        state = correlation * state + math.sqrt(1 - correlation**2) * rng.gauss(0, 1)
        values.append(math.exp(0.05 * state))
    return values


@pytest.mark.parametrize(
    ("count", "correlation", "least", "most"), [(12, 0.0, 0.93, 0.99), (60, 0.0, 0.93, 0.985), (60, 0.3, 0.90, 0.98), (300, 0.6, 0.90, 0.98)]
)
def test_the_interval_holds_the_median_as_often_as_it_says(count: int, correlation: float, least: float, most: float) -> None:
    rng = random.Random(7)
    found = [estimate(_series(rng, count, correlation)) for _ in range(500)]
    held = sum(e.low <= 1 <= e.high for e in found if e.low is not None and e.high is not None)
    assert least <= held / 500 <= most


def test_correlation_widens_the_interval() -> None:
    rng = random.Random(3)
    assert statistics.mean(intervals.autocorrelation_time(_series(rng, 300, 0.0)) for _ in range(20)) < 1.5
    assert statistics.mean(intervals.autocorrelation_time(_series(rng, 300, 0.8)) for _ in range(20)) > 3


def test_few_samples_have_a_median_and_no_interval() -> None:
    few = estimate([3.0, 1.0, 2.0])
    assert (few.value, few.low, few.high, few.samples) == (2.0, None, None, (3.0, 1.0, 2.0))
    assert "6 are needed" in few.reason
    assert half_width(few) == math.inf
    with pytest.raises(UsageError):
        estimate([])
    with pytest.raises(UsageError):
        estimate([1.0, math.nan])


def test_constant_samples_have_a_point_for_an_interval() -> None:
    same = estimate([2.0] * 10)
    assert (same.low, same.value, same.high) == (2.0, 2.0, 2.0)


def test_ratio_is_paired() -> None:
    drift = [1.0 + 0.5 * i for i in range(20)]
    twice = ratio([2 * d for d in drift], drift)
    assert twice.value == pytest.approx(2.0)
    assert half_width(twice) < 1e-9
    with pytest.raises(UsageError, match="each side"):
        ratio([1.0], [1.0, 2.0])


def test_percentiles_that_samples_can_not_tell_are_missing() -> None:
    assert percentiles([1.0] * 9).p90 is None
    told = percentiles([float(i) for i in range(1, 100)])
    assert (told.p50, told.p90, told.p99) == (50.0, 90.0, None)
    assert percentiles([1.0, 1.1, 0.9, 1.05, 0.95] * 4 + [50.0]).outliers == 1


class Wound:
    """A clock that calls wind forward, and that ticks a little whenever it is read."""

    def __init__(self, tick_ns: int = 10) -> None:
        self.now_ns, self.tick_ns = 0, tick_ns

    def __call__(self) -> int:
        self.now_ns += self.tick_ns
        return self.now_ns

    def spend(self, ns: int) -> None:
        self.now_ns += ns


def test_blocks_last_long_enough_and_samples_are_per_call() -> None:
    wound = Wound()
    timed = clock.time_interleaved(
        {"a": lambda: wound.spend(1_000_000), "b": lambda: wound.spend(2_000_000)},
        target_half_width=0.02,
        min_blocks=12,
        max_seconds=10,
        rng_seed=0,
        anchor="b",
        clock_ns=wound,
    )
    assert (timed["a"].calls_per_block, timed["b"].calls_per_block) == (5, 3)
    assert len(timed["a"].blocks_ms) == len(timed["b"].blocks_ms) == 12
    assert timed["a"].blocks_ms[0] == pytest.approx(1.0, rel=1e-3)
    assert ratio(timed["a"].blocks_ms, timed["b"].blocks_ms).value == pytest.approx(0.5, rel=1e-3)
    assert not timed["a"].unstable


def test_stopping_takes_two_narrow_looks_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    wound, looks = Wound(), list[int]()

    def settled(subjects: dict[str, clock._Subject], *_: object) -> bool:
        looks.append(len(subjects["a"].blocks_ms))
        return looks[-1] != 12

    monkeypatch.setattr(clock, "_settled", settled)
    timed = clock.time_interleaved(
        {"a": lambda: wound.spend(10_000_000)}, target_half_width=0.02, min_blocks=12, max_seconds=10, rng_seed=0, clock_ns=wound
    )
    assert looks == [10, 12, 14, 16]
    assert not timed["a"].unstable


def test_time_out_is_said() -> None:
    wound, costs = Wound(), itertools.cycle([1_000_000, 30_000_000, 7_000_000])
    timed = clock.time_interleaved(
        {"a": lambda: wound.spend(next(costs))}, target_half_width=0.001, min_blocks=6, max_seconds=0.5, rng_seed=0, clock_ns=wound
    )
    assert timed["a"].unstable
    assert len(timed["a"].blocks_ms) >= clock.FEWEST_ROUNDS


def test_calls_that_are_far_too_slow_stop_at_three() -> None:
    wound = Wound()
    timed = clock.time_interleaved(
        {"a": lambda: wound.spend(5_000_000_000)}, target_half_width=0.02, min_blocks=12, max_seconds=2, rng_seed=0, clock_ns=wound
    )
    assert (len(timed["a"].blocks_ms), timed["a"].unstable) == (3, True)


def test_every_round_has_every_call_in_random_order() -> None:
    wound, seen = Wound(), list[str]()

    def call(name: str) -> None:
        seen.append(name)
        wound.spend(10_000_000)

    clock.time_interleaved(
        {name: functools.partial(call, name) for name in "abc"},
        target_half_width=0.02,
        min_blocks=30,
        max_seconds=10,
        rng_seed=0,
        clock_ns=wound,
    )
    rounds = [tuple(seen[-i - 3 : len(seen) - i]) for i in range(0, 90, 3)]
    assert all(sorted(r) == ["a", "b", "c"] for r in rounds)
    assert len(set(rounds)) > 3


def test_a_clock_that_stands_still_is_refused() -> None:
    with pytest.raises(UnfitMachine, match="clock"):
        clock.resolution_ns(lambda: 5)
    times = itertools.chain(range(20), itertools.repeat(20))
    with pytest.raises(UnfitMachine, match="clock"):
        clock.time_interleaved({"a": lambda: None}, target_half_width=0.1, min_blocks=3, max_seconds=1, rng_seed=0, clock_ns=lambda: next(times))


def test_a_function_against_itself_on_a_busy_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise, outliers and a slow drift that hit both sides: the ratio's interval holds 1 about as often as it says."""
    monkeypatch.setattr("gc.collect", lambda: 0)  # 200 collections of everything that the tests have imported take most of a minute
    rng, held = random.Random(11), 0
    for attempt in range(200):
        wound = Wound()

        def work(wound: Wound = wound) -> None:
            drift = 1 + 0.3 * math.sin(wound.now_ns / 2e8)
            stolen = 3.0 if rng.random() < 0.05 else 1.0
            wound.spend(int(6_000_000 * drift * stolen * math.exp(rng.gauss(0, 0.05))))

        timed = clock.time_interleaved(
            {"a": work, "b": work}, target_half_width=0.02, min_blocks=12, max_seconds=1.0, rng_seed=attempt, anchor="b", clock_ns=wound
        )
        itself = ratio(timed["a"].blocks_ms, timed["b"].blocks_ms)
        assert itself.low is not None
        assert itself.high is not None
        held += itself.low <= 1 <= itself.high
    assert 0.92 <= held / 200 <= 0.99
