"""Accuracy at equal training time: models trained anew for the core-seconds that the full model took, beside those trained for equal steps."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from vitgs.report.points import CurvePoint, Point

REFERENCE = "joint"


def equal_seconds(points: Sequence[Point]) -> list[Point]:
    """Each series at its most accurate point at equal core-seconds, best first; empty where no system was trained for them."""
    if not any(p.equal_seconds.estimate.value is not None for p in points):
        return []
    best: dict[str, tuple[float, Point]] = {}
    for p in points:
        value = reached(p)
        if value is not None and value > best.get(p.name.series, (-1.0, p))[0]:
            best[p.name.series] = (value, p)
    return [p for _, p in sorted(best.values(), key=lambda entry: -entry[0])]


def reached(p: Point) -> float | None:
    """Top-1 at equal core-seconds; the reference sets them, so its value is that at equal steps."""
    c = p.configuration
    return p.top1.estimate.value if c.system == REFERENCE and not c.label else p.equal_seconds.estimate.value


def mean_curve(curves: Sequence[Sequence[CurvePoint]]) -> list[tuple[float, float]]:
    """The seeds' curves averaged reading by reading, as far as all go."""
    together = zip(*curves, strict=False)
    return [(statistics.fmean(p.core_seconds for p in readings), statistics.fmean(p.val_top1 for p in readings)) for readings in together]
