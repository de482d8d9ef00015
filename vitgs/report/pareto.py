"""Fronts of top-1 against a cost, the volume that they cover, and for each point how sure its place on the front is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import moocore
import numpy as np
from numpy.typing import NDArray

from vitgs.record import Estimate
from vitgs.report.bootstrap import cost_draws
from vitgs.report.points import Point

SURE = 0.95
_DRAWS = 500
_DRAWS_AT_ONCE = 50


@dataclass(frozen=True, kw_only=True)
class Axis:
    """One cost. `scale` turns its stored unit into the printed one; `more` is true where more is better (clips/s)."""

    key: str
    title: str
    unit: str
    scale: float
    of: Callable[[Point], Estimate]
    more: bool = False


def _exact(value: float | None) -> Estimate:
    return Estimate.missing("not counted") if value is None else Estimate(value=value)


AXES = (
    Axis(key="gmacs", title="compute", unit="GMACs a view", scale=1e-9, of=lambda p: _exact(p.cost.macs)),
    Axis(key="latency", title="latency, batch 1", unit="ms", scale=1.0, of=lambda p: p.cost.latency_ms),
    Axis(key="throughput", title="throughput", unit="clips/s", scale=1.0, of=lambda p: p.cost.clips_per_s, more=True),
    Axis(key="memory", title="peak live activations", unit="MiB", scale=2**-20, of=lambda p: _exact(p.cost.peak_live_bytes)),
)


@dataclass(frozen=True, kw_only=True)
class Front:
    """`points` have both values. `on_front[i]`: point i isn't dominated. `probability[i]`: share of the draws in which it isn't; None without draws.
    `hypervolume`: by series, the area of (log10 cost saved, top-1) covered up to the dearest point and accuracy 0, as a share of what is possible."""

    axis: Axis
    points: tuple[Point, ...]
    on_front: tuple[bool, ...]
    probability: tuple[float | None, ...]
    hypervolume: Mapping[str, float]


def front(points: Sequence[Point], axis: Axis) -> Front:
    """The front of points of one machine and data set."""
    usable = [p for p in points if p.top1.estimate.value is not None and axis.of(p).value is not None]
    if not usable:
        return Front(axis=axis, points=(), on_front=(), probability=(), hypervolume={})
    cost_top1_N2 = np.array([[axis.of(p).value, p.top1.estimate.value] for p in usable], dtype=np.float64)
    return Front(
        axis=axis,
        points=tuple(usable),
        on_front=tuple(map(bool, nondominated(cost_top1_N2, more=axis.more))),
        probability=_probabilities(usable, axis),
        hypervolume=_hypervolumes(usable, cost_top1_N2, more=axis.more),
    )


def nondominated(cost_top1_N2: NDArray[np.float64], *, more: bool = False) -> NDArray[np.bool_]:
    """True where no other point is at least as good in both and better in one; equal points keep each other."""
    found: NDArray[np.bool_] = moocore.is_nondominated(cost_top1_N2, maximise=[more, True], keep_weakly=True)
    return found


def hypervolume(cost_top1_N2: NDArray[np.float64], worst_cost: float, *, more: bool = False) -> float:
    """The area dominated, with (worst cost, accuracy 0) as the reference."""
    return float(moocore.hypervolume(cost_top1_N2, ref=[worst_cost, 0.0], maximise=[more, True]))


def _hypervolumes(points: Sequence[Point], cost_top1_N2: NDArray[np.float64], *, more: bool) -> dict[str, float]:
    """Cost on a log axis, because budgets are halved and doubled; all systems share one reference, so the areas can be compared."""
    log_N2 = cost_top1_N2.copy()
    log_N2[:, 0] = np.log10(np.maximum(cost_top1_N2[:, 0], 1e-30)) * (-1 if more else 1)
    worst, best = float(log_N2[:, 0].max()) + math.log10(2), float(log_N2[:, 0].min())
    series = list(dict.fromkeys(p.name.series for p in points))
    rows = {name: [i for i, p in enumerate(points) if p.name.series == name] for name in series}
    return {name: hypervolume(log_N2[index], worst) / (worst - best) for name, index in rows.items()}


def _probabilities(points: Sequence[Point], axis: Axis) -> tuple[float | None, ...]:
    """Draw by draw: accuracies from the shared bootstrap, costs from their intervals. Points without draws stand still and get None."""
    draws = min((p.top1.draws[:_DRAWS].size for p in points if p.top1.draws is not None), default=0)
    if not draws:
        return (None,) * len(points)
    top1_RN = np.stack([p.top1.draws[:draws] if p.top1.draws is not None else np.full(draws, p.top1.estimate.value) for p in points], axis=1)
    cost_RN = np.stack([cost_draws(axis.of(p), draws, f"{axis.key} {p.name.full}") for p in points], axis=1) * (-1 if axis.more else 1)
    free = np.zeros(len(points))
    for start in range(0, draws, _DRAWS_AT_ONCE):
        cost, top1 = cost_RN[start : start + _DRAWS_AT_ONCE], top1_RN[start : start + _DRAWS_AT_ONCE]
        no_worse = (cost[:, :, None] <= cost[:, None, :]) & (top1[:, :, None] >= top1[:, None, :])
        better = (cost[:, :, None] < cost[:, None, :]) | (top1[:, :, None] > top1[:, None, :])
        free += (~(no_worse & better).any(axis=1)).sum(axis=0)
    return tuple(float(f / draws) if p.top1.draws is not None else None for f, p in zip(free, points, strict=True))
