"""Accuracy at equal training time: what each system had reached after so many core-seconds, read off its validation curve, never beyond its end."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from vitgs.report.points import CurvePoint, Point


@dataclass(frozen=True, kw_only=True)
class EqualSeconds:
    """One data set: `levels` in core-seconds; each row a system's series and what it had reached at each level, None before its first reading."""

    levels: tuple[float, ...]
    rows: tuple[tuple[Point, tuple[float | None, ...]], ...]


def equal_seconds(points: Sequence[Point]) -> EqualSeconds:
    """Levels: when the quickest system ended its training, the median one, and the slowest. A system that ended earlier keeps its last value."""
    trained = [p for p in points if p.training.curves]
    if not trained:
        return EqualSeconds(levels=(), rows=())
    ends = sorted(max(c[-1].core_seconds for c in p.training.curves) for p in trained)
    levels = tuple(dict.fromkeys((ends[0], statistics.median(ends), ends[-1])))
    by_series: dict[str, list[Point]] = {}
    for p in trained:
        by_series.setdefault(p.name.series, []).append(p)
    rows = []
    for several in by_series.values():
        reached = [[_reached(p.training.curves, level) for p in several] for level in levels]
        rows.append((several[0], tuple(max((v for v in at if v is not None), default=None) for at in reached)))
    rows.sort(key=lambda row: [-(v if v is not None else -1.0) for v in reversed(row[1])])
    return EqualSeconds(levels=levels, rows=tuple(rows))


def _reached(curves: Sequence[Sequence[CurvePoint]], seconds: float) -> float | None:
    """Mean over seeds of the last reading by then; None while a seed has none."""
    last = [[p.val_top1 for p in curve if p.core_seconds <= seconds * (1 + 1e-9)] for curve in curves]
    return statistics.fmean(values[-1] for values in last) if all(last) else None


def mean_curve(curves: Sequence[Sequence[CurvePoint]]) -> list[tuple[float, float]]:
    """The seeds' curves averaged reading by reading, as far as all go."""
    together = zip(*curves, strict=False)
    return [(statistics.fmean(p.core_seconds for p in readings), statistics.fmean(p.val_top1 for p in readings)) for readings in together]
