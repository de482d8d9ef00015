"""The theory's checks in numbers: what was measured clip by clip, and its intervals over clips; `theory_claims` decides by them.

Means have a percentile bootstrap over groups of clips that share an image; medians an interval between order statistics; shares of clips are
Clopper-Pearson's. Differences are paired, clip by clip.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from vitgs.graphsampler.theory_gaps import Gap
from vitgs.graphsampler.theory_sets import GREEDY_SHARE
from vitgs.measure.intervals import FEWEST, Z_95, at_rank
from vitgs.measure.shares import clopper_pearson
from vitgs.record import Estimate
from vitgs.report.bootstrap import DRAWS, Resampler

LAST = ", last doubling"
_DIGITS = 4

ByClip = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured, by clip; `groups`: the group of each clip, in the same order (a shorter list of numbers is of the first clips).

    `pairs`: name of the instance -> scores; `price`: (lambda, numbers) of each checkpoint; `gaps`: by pool, None without a graph; `sets`: by kind
    and set function; `exponents` by (what grows, with what), each also over the last doubling alone (`LAST`); none without a graph.
    """

    data: str
    budget: float
    own_k: int
    own_window: int
    groups: Sequence[int]
    pairs: Mapping[str, ByClip]
    frames: ByClip
    price: Sequence[tuple[float, ByClip]]
    gaps: Mapping[str, Sequence[Gap]] | None
    sets: Mapping[str, Mapping[str, ByClip]]
    exponents: Mapping[tuple[str, str], Estimate] = field(default_factory=dict)

    @property
    def clips(self) -> int:
        """How many clips there were."""
        return len(self.groups)

    def mean(self, values: Sequence[float]) -> Estimate:
        """The mean over the clips where the number is defined, with its interval; `samples` are theirs, rounded."""
        number_C = np.asarray(values, dtype=np.float64)
        known_C = np.isfinite(number_C)
        if not known_C.any():
            return Estimate.missing(f"defined on none of {len(values)} clips")
        kept_C, groups = number_C[known_C], np.asarray(self.groups[: len(values)])[known_C].tolist()
        samples, undefined = tuple(_rounded(v) for v in kept_C), int((~known_C).sum())
        if len(set(groups)) < FEWEST:
            few = f"no interval from {len(set(groups))} groups of clips, {FEWEST} are needed"
            return Estimate(value=float(kept_C.mean()), samples=samples, method=f"mean of {len(kept_C)} clips", reason=few)
        draws_R = _resampler(self.data, tuple(groups)).top(kept_C[None], [0])
        low, high = np.percentile(draws_R, (2.5, 97.5))
        method = f"mean of {len(kept_C)} clips; percentile bootstrap over {len(set(groups))} groups, {DRAWS} resamples"
        return Estimate(
            value=float(kept_C.mean()), low=float(low), high=float(high), samples=samples, method=method,
            reason=f"not defined on {undefined} clips" if undefined else "",
        )  # fmt: skip

    def difference(self, first: Sequence[float], second: Sequence[float]) -> Estimate:
        """Of two numbers of the same clips."""
        return self.mean([a - b for a, b in zip(first, second, strict=True)])

    def gap(self, pool: str, matrix: str, *, k: int | None, window: int = 0, rounds: int = 1, logits: str = "own", against: str = "full") -> Gap:
        """The one gap of those settings."""
        wanted = (matrix, logits, against, k, window, rounds)
        (found,) = (g for g in (self.gaps or {})[pool] if (g.matrix, g.logits, g.against, g.k, g.window, g.rounds) == wanted)
        return found


@lru_cache(maxsize=64)
def _resampler(name: str, groups: tuple[int, ...]) -> Resampler:
    """The same draws for all numbers of the same clips, made once."""
    return Resampler(name, groups)


def share(flags: Sequence[float]) -> Estimate:
    """The share of clips where something is so (1) of those where it is defined, with Clopper-Pearson's 95 % interval."""
    known = [flag for flag in flags if math.isfinite(flag)]
    if not known:
        return Estimate.missing(f"defined on none of {len(flags)} clips")
    low, high = clopper_pearson(round(sum(known)), len(known))
    method = f"share of {len(known)} clips, Clopper-Pearson"
    return Estimate(value=sum(known) / len(known), low=low, high=high, method=method)


def median(values: Sequence[float]) -> Estimate:
    """The median over the clips where the number is defined; clips have no order in time, so their ranks alone say how sure it is."""
    ranked = sorted(_rounded(value) for value in values if math.isfinite(value))
    if not ranked:
        return Estimate.missing(f"defined on none of {len(values)} clips")
    middle, reach = (len(ranked) + 1) / 2, Z_95 * math.sqrt(len(ranked)) / 2
    low, high = (at_rank(ranked, middle - reach), at_rank(ranked, middle + reach)) if len(ranked) >= FEWEST else (None, None)
    method = f"median of {len(ranked)} clips, 95 % interval between order statistics"
    return Estimate(value=at_rank(ranked, middle), low=low, high=high, samples=tuple(_rounded(v) for v in values if math.isfinite(v)), method=method)


def at_least(values: Sequence[float], bound: float) -> list[float]:
    """Whether, 1 or 0; NaN stays."""
    return [float(value >= bound) if math.isfinite(value) else math.nan for value in values]


def numbers(found: Found) -> dict[str, Any]:
    """Everything with its interval."""
    return {
        "utility": {name: {score: found.mean(v) for score, v in scores.items()} for name, scores in {**found.pairs, "frames": found.frames}.items()},
        "price": [{"sparsity": price, **{name: found.mean(v) for name, v in by_clip.items()}} for price, by_clip in found.price],
        "graph": {"reason": "no graph"} if found.gaps is None else {pool: [_gap(found, g) for g in gaps] for pool, gaps in found.gaps.items()},
        "sets": {kind: {f: _sets(found, by_clip) for f, by_clip in functions.items()} for kind, functions in found.sets.items()},
        "exponents": [{"of": what, "in": axis, "exponent": value} for (what, axis), value in found.exponents.items()],
    }


def _gap(found: Found, gap: Gap) -> dict[str, Any]:
    plain = {name: getattr(gap, name) for name in ("matrix", "logits", "against", "k", "window", "rounds", "macs", "setting")}
    return plain | {name: found.mean(getattr(gap, name)) for name in ("frobenius", "spectral", "mass") if getattr(gap, name)}


def _sets(found: Found, by_clip: ByClip) -> dict[str, Estimate]:
    shares = {name: share(v) for name, v in by_clip.items() if name.startswith("first ")}
    ratios = {name: median(v) for name, v in by_clip.items() if "ratio" in name}
    reached = {f"{name} of at least 1 - 1/e": share(at_least(v, GREEDY_SHARE)) for name, v in by_clip.items() if name.endswith(", ratio")}
    best = {f"{name} of 1": share(at_least(v, 1 - 1e-9)) for name, v in by_clip.items() if name.endswith(", ratio")}
    means = {name: found.mean(v) for name, v in by_clip.items() if name not in shares and name not in ratios}
    return {**shares, **means, **ratios, **reached, **best}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")
