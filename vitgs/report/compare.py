"""Which of two systems is more accurate, by how much and how sure; and the rule of equal compute, which never extrapolates."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitgs.record import Estimate
from vitgs.report.points import METHOD, Draws, Point

LEVEL = 0.05
_TWO_SIDED = statistics.NormalDist().inv_cdf(1 - LEVEL / 2)
_RESOLVED = 10  # draws in the tail below which its count says too little


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Top-1 of the first less that of the second, with its paired interval and two-sided bootstrap p; None where clips can't be paired.

    `clips_alone`: half the width of the interval that endless seeds would leave, which only more groups of clips narrow; None with one seed."""

    estimate: Estimate
    p: float | None
    clips_alone: float | None = None

    @property
    def beyond_seeds(self) -> bool:
        """No number of seeds tells a difference of this size from 0 on these clips."""
        return self.clips_alone is not None and abs(self.estimate.value or 0.0) < self.clips_alone


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A rival's point against ours at no more compute. `ours` is None where we have none that cheap: then nothing is claimed."""

    rival: Point
    ours: Point | None
    difference: Difference | None
    p_holm: float | None

    @property
    def word(self) -> str:
        """above, below, tie; or why there is no answer."""
        if self.ours is None:
            return "no point that cheap"
        if self.difference is None or self.difference.estimate.value is None or self.p_holm is None:
            return "not comparable"
        if self.p_holm >= LEVEL:
            return "tie"
        return "above" if self.difference.estimate.value > 0 else "below"


def difference(first: Point, second: Point) -> Difference:
    """Paired bootstrap over seeds and clip groups: draw r of both resamples the same clips, so their difference is a draw of the difference."""
    a, b = first.top1, second.top1
    if a.draws is None or b.draws is None or a.estimate.value is None or b.estimate.value is None:
        return Difference(estimate=Estimate.missing("no rows of which clips were right"), p=None)
    if first.data != second.data or first.split != second.split or a.clips != b.clips:
        return Difference(estimate=Estimate.missing("not the same clips"), p=None)
    delta_R = a.draws - b.draws
    low, high = np.percentile(delta_R, (2.5, 97.5))
    value = a.estimate.value - b.estimate.value
    estimate = Estimate(value=value, low=float(low), high=float(high), method="paired bootstrap over seeds and clip groups")
    alone = None if a.by_group is None or b.by_group is None else _TWO_SIDED * a.by_group.spread_without_seeds(b.by_group)
    return Difference(estimate=estimate, p=two_sided(delta_R), clips_alone=alone)


def two_sided(delta_R: Draws) -> float:
    """The bootstrap p of a difference of 0. Beyond what the draws resolve, as Holm over many rivals asks for, the normal tail with their spread."""
    tail = int(min(np.count_nonzero(delta_R <= 0), np.count_nonzero(delta_R >= 0)))
    counted = min(1.0, 2 * (1 + tail) / (1 + delta_R.size))
    spread = float(delta_R.std(ddof=1))
    if tail >= _RESOLVED or spread == 0:
        return 1.0 if spread == 0 and float(delta_R.mean()) == 0 else counted
    return min(1.0, math.erfc(abs(float(delta_R.mean())) / spread / math.sqrt(2)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def best_within(points: Sequence[Point], macs: float) -> Point | None:
    """The point with the best val top-1 among those with no more MACs; among equals the cheaper."""
    within = [p for p in points if p.cost.macs is not None and p.cost.macs <= macs and p.choosing is not None]
    return max(within, key=lambda p: (p.choosing or 0.0, -(p.cost.macs or 0.0)), default=None)


def equal_macs(points: Sequence[Point], system: str = METHOD) -> list[Verdict]:
    """For each point of another system: our best val point with no more MACs. Holm over all the comparisons made, one data set and machine."""
    ours = [p for p in points if p.configuration.system == system]
    rivals = [p for p in points if p.configuration.system != system and p.cost.macs is not None and p.top1.estimate.value is not None]
    made = [
        (rival, chosen, difference(chosen, rival) if chosen else None) for rival in rivals for chosen in (best_within(ours, rival.cost.macs or 0.0),)
    ]
    adjusted = iter(holm([d.p for _, _, d in made if d is not None and d.p is not None]))
    return [
        Verdict(rival=rival, ours=chosen, difference=found, p_holm=next(adjusted) if found is not None and found.p is not None else None)
        for rival, chosen, found in made
    ]


def at_equal_seconds(points: Sequence[Point]) -> list[Point]:
    """Those that were trained for equal core-seconds too, with what they reached then in the place of what they reached at equal steps."""
    return [replace(p, top1=p.equal_seconds, val=p.equal_val) for p in points if p.equal_seconds.estimate.value is not None]


def tied_with(leader: Point, rivals: Sequence[Point]) -> list[Point]:
    """The rivals that keep the leader from being called the best: the Holm-adjusted paired p is not below 0.05, there are no draws to tell by, or val
    misled and the rival is the more accurate on what is reported."""
    found = [difference(leader, rival) for rival in rivals]
    adjusted = iter(holm([d.p for d in found if d.p is not None]))
    sure = [d.p is not None and next(adjusted) < LEVEL and (d.estimate.value or 0.0) > 0 for d in found]
    return [rival for rival, beaten in zip(rivals, sure, strict=True) if not beaten]


def better_rule(points: Sequence[Point]) -> list[Point]:
    """Of a system trained by two rules only the one that is better on val, by its mean over budgets, for each data set; claims and fronts use it."""
    values: dict[object, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for p in points:
        values[_but_rule(p)][p.configuration.rule].append(p.choosing or 0.0)
    chosen = {key: max(rules, key=lambda rule: statistics.fmean(rules[rule])) for key, rules in values.items()}
    return [p for p in points if p.configuration.rule == chosen[_but_rule(p)]]


def _but_rule(p: Point) -> object:
    c = p.configuration
    return (c.machine, c.profile, p.data, c.system, c.label, c.shape)
