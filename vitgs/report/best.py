"""The best configuration under limits of time, compute, memory and energy: chosen by val, reported on test, with everything that ties with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vitgs.record import Estimate
from vitgs.report.compare import tied_with
from vitgs.report.points import Point


@dataclass(frozen=True, kw_only=True)
class Best:
    """One data set on one machine. `point` is None when nothing is left, and `reason` says why. `probability`: share of the bootstrap draws in which
    no other system's best is more accurate, None without draws or without another system. `ties`: other systems' best points that can't be told from
    it. `excluded`: how many points broke a limit; `unmeasured`: how many had no value for one, and so were not considered."""

    machine: str
    data: str
    point: Point | None
    probability: float | None = None
    ties: tuple[Point, ...] = ()
    excluded: int = 0
    unmeasured: int = 0
    reason: str = ""

    @property
    def replay(self) -> str:
        return self.point.replay if self.point else ""


def best(
    points: Sequence[Point],
    max_latency_ms: float | None = None,
    max_gmacs: float | None = None,
    max_memory_gib: float | None = None,
    max_energy_j: float | None = None,
) -> list[Best]:
    """One answer for each machine and data set. A limit on time or energy must hold at the upper end of the interval, not only at its middle."""
    limits = (max_latency_ms, max_gmacs, max_memory_gib, max_energy_j)
    places = dict.fromkeys((p.configuration.machine, p.data) for p in points if p.top1.estimate.value is not None)
    found = []
    for machine, data in places:
        here = [
            p for p in points if (p.configuration.machine, p.data) == (machine, data) and p.choosing is not None and p.top1.estimate.value is not None
        ]
        fits = [_fits(p, limits) for p in here]
        admitted = [p for p, fit in zip(here, fits, strict=True) if fit]
        excluded, unmeasured = fits.count(False), fits.count(None)
        if not admitted:
            why = "no configuration was measured in what the limits ask for" if not excluded else "no configuration is within the limits"
            found.append(Best(machine=machine, data=data, point=None, reason=why, excluded=excluded, unmeasured=unmeasured))
            continue
        leaders = leaders_by_system(admitted)
        found.append(
            Best(
                machine=machine,
                data=data,
                point=leaders[0],
                probability=_probability(leaders[0], leaders),
                ties=tuple(tied_with(leaders[0], leaders[1:])),
                excluded=excluded,
                unmeasured=unmeasured,
            )
        )
    return found


def system_of(point: Point) -> str:
    """Systems compete with each other, their forms don't."""
    return point.configuration.system


def leaders_by_system(points: Sequence[Point], competitor: Callable[[Point], str] = system_of) -> list[Point]:
    """Each competitor's best val point (the cheaper among equals), the best competitor first."""
    ranked = sorted(points, key=lambda p: (-(p.choosing or 0.0), p.cost.macs or 0.0))
    leaders: dict[str, Point] = {}
    for p in ranked:
        leaders.setdefault(competitor(p), p)
    return list(leaders.values())


def memory_bytes(point: Point) -> float | None:
    """What a memory limit is held against: the device's peak where it was read, else the peak of the live activations (weights apart)."""
    return point.cost.cuda_peak_bytes if point.cost.cuda_peak_bytes is not None else point.cost.peak_live_bytes


def _fits(point: Point, limits: tuple[float | None, ...]) -> bool | None:
    """True, False, or None where a limited value was not measured."""
    memory = memory_bytes(point)
    gmacs = None if point.cost.macs is None else point.cost.macs * 1e-9
    values = (_upper(point.cost.latency_ms), gmacs, None if memory is None else memory / 2**30, _upper(point.cost.energy_j_per_clip))
    checked = [(value, limit) for value, limit in zip(values, limits, strict=True) if limit is not None]
    if any(value is not None and value > limit for value, limit in checked):
        return False
    return None if any(value is None for value, _ in checked) else True


def _upper(estimate: Estimate) -> float | None:
    return estimate.high if estimate.high is not None else estimate.value


def _probability(leader: Point, leaders: Sequence[Point]) -> float | None:
    draws = [p.top1.draws for p in leaders if p.top1.draws is not None]
    if leader.top1.draws is None or len(draws) < len(leaders) or len(leaders) < 2:
        return None
    return float(np.mean(leader.top1.draws >= np.max(np.stack(draws), axis=0)))
