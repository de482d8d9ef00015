"""The statistics, on simulated data whose truth is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from vitgs.record import Estimate
from vitgs.report.bootstrap import Resampler, percentile_interval
from vitgs.report.compare import Difference, at_equal_seconds, best_within, difference, equal_macs, holm, tied_with, two_sided
from vitgs.report.points import Accuracy, Book, Cost, Point

GROUP_OF_CLIP = [clip % 200 for clip in range(400)]
GROUP = np.array(GROUP_OF_CLIP)


def simulated(rng: np.random.Generator, ability: tuple[float, float], seeds: int) -> list[np.ndarray]:
    """Two systems on the same clips: difficulty is shared by clip and by group, so their errors go together."""
    difficulty = rng.normal(size=200)[GROUP] + 0.5 * rng.normal(size=400)
    return [np.stack([a + 0.05 * rng.normal() + 0.4 * rng.normal(size=400) > difficulty for _ in range(seeds)]).astype(float) for a in ability]


def test_pairing_narrows_the_interval_of_a_difference() -> None:
    first, second = simulated(np.random.default_rng(0), (0.6, 0.4), 3)
    shared, other = Resampler("a", GROUP_OF_CLIP, 1000), Resampler("b", GROUP_OF_CLIP, 1000)
    paired = shared.top(first, (0, 1, 2)) - shared.top(second, (0, 1, 2))
    apart = shared.top(first, (0, 1, 2)) - other.top(second, (0, 1, 2))
    assert paired.std() < 0.75 * apart.std()
    assert paired.mean() == pytest.approx(first.mean() - second.mean(), abs=0.01)


def test_equal_systems_are_seldom_told_apart_and_unequal_ones_are() -> None:
    rng = np.random.default_rng(1)
    alarms, found = 0, 0
    for trial in range(100):
        shared = Resampler(str(trial), GROUP_OF_CLIP, 300)
        for ability in ((0.5, 0.5), (1.1, 0.5)):
            first, second = simulated(rng, ability, 5)
            hit = two_sided(shared.top(first, range(5)) - shared.top(second, range(5))) < 0.05
            alarms, found = (alarms + hit, found) if ability[0] == ability[1] else (alarms, found + hit)
    assert alarms <= 12
    assert found >= 95


def test_groups_widen_the_interval() -> None:
    right = (np.random.default_rng(2).normal(size=200)[GROUP] > 0).astype(float)[None]
    grouped, single = Resampler("g", GROUP_OF_CLIP, 1000).top(right, (0,)), Resampler("s", range(400), 1000).top(right, (0,))
    assert grouped.std() == pytest.approx(single.std() * np.sqrt(2), rel=0.1)


@pytest.mark.parametrize(("right", "low", "high"), [(1.0, 0.025 ** (1 / 200), 1.0), (0.0, 0.0, 1 - 0.025 ** (1 / 200))])
def test_all_right_or_all_wrong_is_not_certain(right: float, low: float, high: float) -> None:
    resampler = Resampler("c", GROUP_OF_CLIP, 100)
    found = percentile_interval(right, resampler.top(np.full((3, 400), right), (0, 1, 2)), "bootstrap", groups=resampler.groups)
    assert (found.low, found.high) == pytest.approx((low, high))
    assert "exact" in found.method


def test_seeds_part_has_the_sample_variance() -> None:
    right = np.zeros((3, 400))
    right[1], right[2] = 1, 1
    draws = Resampler("v", range(400), 4000).top(right, (0, 1, 2))
    assert draws.var() == pytest.approx(np.var([0, 1, 1], ddof=1) / 3, rel=0.08)


def test_what_endless_seeds_leave_is_told_from_five() -> None:
    """Over many worlds: what five seeds say of the clips' part is the scatter that the difference of 200 seeds really has from world to world."""
    rng, told, found = np.random.default_rng(4), [], []
    for trial in range(60):
        first, second = simulated(rng, (0.6, 0.4), 200)
        found.append(first.mean() - second.mean())
        resampler = Resampler(str(trial), GROUP_OF_CLIP, 1)
        few, others = resampler.by_group(first[:5]), resampler.by_group(second[:5])
        assert few is not None and others is not None
        told.append(few.spread_without_seeds(others) ** 2)
    assert np.sqrt(np.mean(told)) == pytest.approx(np.std(found, ddof=1), rel=0.25)
    assert Resampler("one", GROUP_OF_CLIP, 1).by_group(first[:1]) is None


def test_seeds_that_differ_on_all_clips_alike_leave_nothing_to_the_clips() -> None:
    right = np.stack([np.zeros(400), np.ones(400), np.ones(400)])
    resampler = Resampler("alike", GROUP_OF_CLIP, 1)
    one, other = resampler.by_group(right), resampler.by_group(1 - right)
    assert one is not None and other is not None
    assert one.spread_without_seeds(other) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("alone", "beyond"), [(0.02, True), (0.005, False), (None, False)])
def test_a_difference_within_what_clips_leave_open_is_beyond_seeds(alone: float | None, beyond: bool) -> None:
    assert Difference(estimate=Estimate(value=-0.01), p=0.4, clips_alone=alone).beyond_seeds is beyond


def test_two_sided_p_of_literal_draws() -> None:
    assert two_sided(np.linspace(-1, 1, 1001)) == 1.0
    assert two_sided(np.zeros(10)) == 1.0
    assert two_sided(np.random.default_rng(3).normal(10, 1, 2000)) < 1e-9


def test_holm_on_literal_values() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def at(point: Point, macs: float, val: float) -> Point:
    return dataclasses.replace(point, cost=Cost(macs=macs), val=Accuracy(estimate=Estimate(value=val)))


def test_equal_macs_takes_the_best_val_point_with_no_more(book: Book) -> None:
    ours = [p for p in book.points if p.configuration.system == "graphsampler" and p.data == "moment"]
    rival = next(p for p in book.points if p.configuration.system == "tome" and p.data == "moment")
    points = [at(ours[0], 10, 0.5), at(ours[1], 20, 0.8), at(ours[2], 30, 0.7), at(ours[3], 41, 0.99)]
    for macs, chosen in ((9, None), (10, points[0]), (40, points[1]), (41, points[3])):
        assert best_within(points, macs) is chosen
        (verdict,) = equal_macs([*points, at(rival, macs, 0.6)])
        assert verdict.ours is chosen
        assert (verdict.word == "no point that cheap") == (chosen is None)


def test_at_equal_core_seconds_what_was_reached_then_counts_alone(book: Book) -> None:
    ours, rival = (next(p for p in book.points if p.configuration.system == name and p.data == "moment") for name in ("graphsampler", "tome"))
    without = [at(ours, 10, 0.5), at(rival, 10, 0.5)]
    assert at_equal_seconds(without) == []
    swapped = [
        dataclasses.replace(without[0], equal_seconds=rival.top1, equal_val=Accuracy(estimate=Estimate(value=0.1))),
        dataclasses.replace(without[1], equal_seconds=ours.top1),
    ]
    (then,), (now,) = equal_macs(at_equal_seconds(swapped)), equal_macs(without)
    assert then.difference is not None and now.difference is not None
    assert then.difference.estimate.value == pytest.approx(-(now.difference.estimate.value or 0.0))
    assert then.ours is not None and then.ours.choosing == 0.1


def test_other_clips_are_not_compared(book: Book) -> None:
    first, second = (next(p for p in book.points if p.data == data) for data in ("moment", "order"))
    assert difference(first, second).p is None
    assert difference(first, second).estimate.reason == "not the same clips"


def test_a_point_ties_with_its_equal_and_not_with_a_far_worse_one(book: Book) -> None:
    leader = next(p for p in book.points if p.configuration.system == "graphsampler" and p.data == "moment")
    worse = min((p for p in book.points if p.data == "moment"), key=lambda p: p.top1.estimate.value or 1.0)
    assert tied_with(leader, [leader, worse]) == [leader]
    assert tied_with(worse, [leader]) == [leader]
