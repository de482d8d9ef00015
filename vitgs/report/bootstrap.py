"""Top-1 with its interval over seeds and clip groups, by draws that are shared by all systems, so that any two can be compared clip by clip.

Clips that show the same digit image or come from the same source video are not independent: whole groups are resampled, not clips. Draw number r
resamples the same groups (and, for equal seed sets, the same seeds) for every system: the difference of two systems' draws is the paired bootstrap.
With S seeds a plain bootstrap over seeds is too narrow by sqrt((S - 1) / S); the seeds' part is widened by the inverse.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vitgs.measure.shares import clopper_pearson
from vitgs.record import Estimate

DRAWS = 2000
EXACT = "every answer alike; 95 % exact interval over clip groups"
_ROWS_AT_ONCE = 250  # so that the weights of a large set need not be held as floats all at once


@dataclass(frozen=True, kw_only=True)
class ByGroup:
    """Right answers and clips of each of G groups, the answers as means over seeds. `scatter`: the part of the accuracy's variance that comes from
    seeds being right on different groups, which more seeds would take away; what they do to all groups alike isn't in it."""

    right_G: NDArray[np.float64]
    clips_G: NDArray[np.float64]
    scatter: float

    def spread_without_seeds(self, other: ByGroup) -> float:
        """The standard error that the accuracy of this less that of the other, on the same clips, would have with endless seeds: that of a ratio over
        resampled groups, less both scatters."""
        clips, groups = self.clips_G.sum(), self.clips_G.size
        delta_G = self.right_G - other.right_G
        apart_G = delta_G - delta_G.sum() / clips * self.clips_G
        whole = float(apart_G @ apart_G) / clips**2 * groups / max(groups - 1, 1)
        return math.sqrt(max(whole - self.scatter - other.scatter, 0.0))


class Resampler:
    """The shared draws of one data set's split: R bootstrap weights for each of its G groups."""

    def __init__(self, name: str, group_of_clip: Sequence[int], draws: int = DRAWS) -> None:
        _, self._group_C = np.unique(np.asarray(group_of_clip), return_inverse=True)
        self._name, self.draws, self.groups = name, draws, int(self._group_C.max()) + 1
        self._clips_G = np.bincount(self._group_C, minlength=self.groups).astype(np.float64)
        uniform = np.full(self.groups, 1 / self.groups)
        self._weight_RG = _generator(name, "groups").multinomial(self.groups, uniform, size=draws).astype(np.uint8)

    def top(self, correct_SC: NDArray[np.float64], seeds: Sequence[int]) -> NDArray[np.float64]:
        """R draws of the accuracy averaged over seeds; `correct_SC` is the share of repetitions that were right, by seed and clip."""
        right_SG = self._right(correct_SC)
        accuracy_RS = np.concatenate([self._accuracy(self._weight_RG[i : i + _ROWS_AT_ONCE], right_SG) for i in range(0, self.draws, _ROWS_AT_ONCE)])
        mean_R: NDArray[np.float64] = accuracy_RS.mean(axis=1)
        count = len(seeds)
        if count < 2:
            return mean_R
        picked_RS = _generator(self._name, "seeds", *map(str, seeds)).multinomial(count, np.full(count, 1 / count), size=self.draws)
        resampled_R = (picked_RS * accuracy_RS).sum(axis=1) / count
        widened_R: NDArray[np.float64] = mean_R + math.sqrt(count / (count - 1)) * (resampled_R - mean_R)
        return widened_R

    def by_group(self, correct_SC: NDArray[np.float64]) -> ByGroup | None:
        """What lies behind the accuracy group by group; None for one seed, which doesn't show its scatter."""
        right_SG, seeds = self._right(correct_SC), len(correct_SC)
        if seeds < 2:
            return None
        clips = self._clips_G.sum()
        right_G = right_SG.mean(axis=0)
        apart_SG = right_SG - right_G
        apart_SG -= apart_SG.sum(axis=1, keepdims=True) / clips * self._clips_G
        scatter = float((apart_SG**2).sum()) / clips**2 / (seeds - 1) / seeds
        return ByGroup(right_G=right_G, clips_G=self._clips_G, scatter=scatter)

    def _right(self, correct_SC: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.stack([np.bincount(self._group_C, weights=row, minlength=self.groups) for row in correct_SC]).astype(np.float64)

    def _accuracy(self, weight_rG: NDArray[np.uint8], right_SG: NDArray[np.float64]) -> NDArray[np.float64]:
        weight = weight_rG.astype(np.float64)
        right_rS, clips_r = weight @ right_SG.T, weight @ self._clips_G
        return np.asarray(right_rS / clips_r[:, None], dtype=np.float64)


def percentile_interval(value: float, draws: NDArray[np.float64], method: str, *, groups: int) -> Estimate:
    """The value with the 2.5 and 97.5 % points of its draws.

    All right, or all wrong: every draw is the same and the bootstrap says "sure". Then the interval is the exact one of that share of the groups.
    """
    low, high = (float(end) for end in np.percentile(draws, (2.5, 97.5)))
    if low == high and value in (0.0, 1.0):
        (low, high), method = clopper_pearson(groups if value else 0, groups), EXACT
    return Estimate(value=value, low=max(low, 0.0), high=min(high, 1.0), method=method)


def cost_draws(cost: Estimate, draws: int, key: str) -> NDArray[np.float64]:
    """Draws of a positive cost from its 95 % interval, log-normal; the value itself where there is no interval."""
    value = math.nan if cost.value is None else cost.value
    if cost.low is None or cost.high is None or cost.low <= 0 or value <= 0:
        return np.full(draws, value)
    spread = (math.log(cost.high) - math.log(cost.low)) / (2 * 1.959964)
    return np.asarray(value * np.exp(spread * _generator("cost", key).standard_normal(draws)), dtype=np.float64)


def _generator(*parts: str) -> np.random.Generator:
    """Deterministic by name, so that the same results always give the same page."""
    return np.random.default_rng(int.from_bytes(hashlib.sha256("\0".join(parts).encode()).digest()[:8], "big"))
