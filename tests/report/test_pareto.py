"""Fronts and volumes on figures that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from vitgs.report.compare import better_rule
from vitgs.report.pareto import AXES, front, hypervolume, nondominated
from vitgs.report.points import Book


def test_front_of_literal_points() -> None:
    cost_top1 = np.array([[1.0, 0.5], [2.0, 0.7], [2.0, 0.6], [3.0, 0.7], [4.0, 0.9]])
    assert nondominated(cost_top1).tolist() == [True, True, False, False, True]


def test_equal_points_keep_each_other() -> None:
    assert nondominated(np.array([[1.0, 0.5], [1.0, 0.5]])).tolist() == [True, True]


def test_more_is_better_for_throughput() -> None:
    assert nondominated(np.array([[100.0, 0.5], [50.0, 0.7], [40.0, 0.6]]), more=True).tolist() == [True, True, False]


def test_hypervolume_of_literal_points() -> None:
    # Up to cost 5 and down to 0: (5 - 1) * 0.5 + (5 - 2) * (0.7 - 0.5) + (5 - 4) * (0.9 - 0.7)
    assert hypervolume(np.array([[1.0, 0.5], [2.0, 0.7], [4.0, 0.9]]), 5.0) == pytest.approx(2.0 + 0.6 + 0.2)


def test_probability_agrees_with_the_front(book: Book) -> None:
    for axis in AXES:
        of = front(better_rule(book.of(book.points[0].configuration.machine, "moment")), axis)
        assert len(of.points) == 32
        sure = [p for p, on in zip(of.probability, of.on_front, strict=True) if on and p is not None]
        off = [p for p, on in zip(of.probability, of.on_front, strict=True) if not on and p is not None]
        assert min(sure) > 0.2
        assert np.mean(sure) > np.mean(off)
        assert all(0 <= share <= 1 for share in of.hypervolume.values())


def test_draws_and_loops_agree(book: Book) -> None:
    of = front(better_rule(book.of(book.points[0].configuration.machine, "moment")), AXES[0])
    costs = np.array([AXES[0].of(p).value for p in of.points])
    counted = np.mean(
        [nondominated(np.stack([costs, [p.top1.draws[r] for p in of.points if p.top1.draws is not None]], axis=1)) for r in range(500)], axis=0
    )
    assert counted.tolist() == pytest.approx(list(of.probability))
