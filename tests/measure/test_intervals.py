"""What the width of an interval rests on: the autocorrelation time without the slowest trend, and its degrees of freedom."""

from __future__ import annotations

import math
import random
import statistics

import pytest

from vitgs.measure.intervals import autocorrelation_time, estimate, half_width, ratio, waves


def _wandering(rng: random.Random, count: int, correlation: float) -> list[float]:
    state, values = rng.gauss(0, 1), []
    for _ in range(count):
        state = correlation * state + math.sqrt(1 - correlation**2) * rng.gauss(0, 1)
        values.append(state)
    return values


def _held(series: list[list[float]]) -> float:
    found = [estimate(values) for values in series]
    return sum(e.low <= 0 <= e.high for e in found if e.low is not None and e.high is not None) / len(found)


def test_seventy_strongly_correlated_samples_hold_their_median_as_often_as_said() -> None:
    rng = random.Random(5)
    assert 0.92 <= _held([_wandering(rng, 70, 0.65) for _ in range(600)]) <= 0.975


def test_a_trend_through_the_whole_run_does_not_widen_the_interval() -> None:
    rng = random.Random(6)
    slopes = [[0.1 * (i - 29.5) + rng.gauss(0, 1) for i in range(60)] for _ in range(600)]
    assert 0.92 <= _held(slopes) <= 0.98
    assert statistics.mean(map(autocorrelation_time, slopes)) < 1


def test_the_time_is_one_on_the_average_of_independent_samples_and_what_theory_says_of_correlated_ones() -> None:
    rng = random.Random(8)
    assert statistics.mean(autocorrelation_time([rng.random() for _ in range(60)]) for _ in range(400)) == pytest.approx(1, abs=0.1)
    # Signs of Gaussian samples with correlation r have 2 / pi * asin(r).
    theory = 1 + 4 / math.pi * sum(math.asin(0.5**lag) for lag in range(1, 40))
    assert statistics.mean(autocorrelation_time(_wandering(rng, 400, 0.5)) for _ in range(300)) == pytest.approx(theory, rel=0.1)


def test_the_time_does_not_depend_on_the_unit_nor_on_how_far_the_far_ones_are() -> None:
    rng = random.Random(9)
    values = [rng.gauss(0, 1) for _ in range(30)]
    assert autocorrelation_time([math.exp(v) * 1000 for v in values]) == autocorrelation_time(values)


@pytest.mark.parametrize(("count", "single", "paired"), [(6, 4, 4), (16, 4, 4), (24, 4, 6), (32, 4, 8), (70, 4, 8), (320, 20, 20), (5000, 60, 60)])
def test_longer_series_use_more_cosines(count: int, single: int, paired: int) -> None:
    assert (waves(count), waves(count, 8)) == (single, paired)


def test_a_floor_only_widens() -> None:
    rng = random.Random(10)
    for _ in range(50):
        own, other = ([math.exp(0.02 * rng.gauss(0, 1)) for _ in range(20)] for _ in range(2))
        assert half_width(estimate(own, least_time=1.0)) >= half_width(estimate(own))
        assert half_width(ratio(own, other, least_time=1.0)) >= half_width(ratio(own, other))
    even = [1 + 0.01 * (-1) ** i * (i + 1) for i in range(40)]  # above and below in turn: slow cosines see next to nothing
    assert half_width(estimate(even, least_time=1.0)) > 1.5 * half_width(estimate(even))
