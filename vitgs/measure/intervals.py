"""From raw block times to a number with its uncertainty, without assuming a distribution and without believing that blocks are independent.

The median's 95 % interval is taken between order statistics, at ranks `(n + 1) / 2 ± t * sqrt(n * tau) / 2`. For independent samples `tau` is 1, and
with t = 1.96 this would be the usual sign-test interval. Times taken one after the other are correlated (clock frequency, neighbours), so `tau`, the
integrated autocorrelation time of the series "above the median or not", widens it: that series is what decides the variance of a median.

`tau` is the power spectrum of that series at frequency 0, over its mean. It is estimated as the mean of the squares of the series' products with the
first few cosines (Müller, J. Business & Economic Statistics 32, 2014; Lazarus, Lewis, Stock and Watson, same journal 36, 2018). These squares
are nearly independent, so Student's t with as many degrees of freedom as there are cosines says what so rough an estimate is worth. Two changes:

* The cosine of half a period is left out. It holds the trend through the whole run, which belongs to "the time in which it was measured" and is
  no uncertainty of it. Samples that a trend spreads out decide more alike than independent ones, so `tau` may be below 1.
* Four cosines for a single time, whose slow noise is all in the first few; up to eight for a paired ratio, where most of it has cancelled.

Simulated coverage, 1000 timings a noise with the clock's own stopping rule (`tests/benchmarks/interval_coverage.py`): latency 94.5-96.9 %, ratio
94.2-96.5 %, under drift, outliers and autocorrelation. Too few rounds can't see slow noise: with blocks correlated .64, latencies hold 85 % of the
time at 12 rounds, 92 % at 24, 93 % at 36. A trend far steeper than the jitter makes intervals too wide.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from vitgs.errors import UsageError
from vitgs.record import Estimate

Z_95 = 1.959964
FEWEST = 6  # below six samples, not even minimum to maximum holds the median in 95 of 100 tries
COSINES, PAIRED_COSINES, MOST_COSINES = 4, 8, 60  # for a single time, for a paired ratio, for long series
METHOD = "median; 95 % interval between order statistics, by Student's t and the autocorrelation time of all but the slowest trend"


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of the block times. What too few samples can not tell is None: p90 needs 10, p99 needs 100."""

    p50: float
    p90: float | None
    p99: float | None
    outliers: int


def estimate(samples: Sequence[float], *, least_time: float = 0.0, cosines: int = COSINES) -> Estimate:
    """The median with its 95 % interval; no interval below six samples, and the reason says so.

    `least_time`: an autocorrelation time below this counts as this. With 1 the interval is at least as wide as for independent samples, which keeps a
    rule that stops at narrow intervals from stopping where the autocorrelation time is small by luck. `cosines`: what it is estimated from (`waves`).
    """
    values = tuple(float(s) for s in samples)
    if not values or not all(map(math.isfinite, values)):
        raise UsageError("an estimate needs finite samples", given=f"{len(values)} samples", remedy="measure at least one block")
    ranked, middle = sorted(values), (len(values) + 1) / 2
    if len(values) < FEWEST:
        few = f"no interval from {len(values)} samples, {FEWEST} are needed"
        return Estimate(value=at_rank(ranked, middle), samples=values, method=METHOD, reason=few)
    time = max(autocorrelation_time(values, cosines), least_time)
    reach = float(stdtrit(waves(len(values), cosines), 0.975)) * math.sqrt(len(values) * time) / 2
    return Estimate(
        value=at_rank(ranked, middle), low=at_rank(ranked, middle - reach), high=at_rank(ranked, middle + reach), samples=values, method=METHOD
    )


def ratio(samples: Sequence[float], anchor_samples: Sequence[float], *, least_time: float = 0.0) -> Estimate:
    """How many times the anchor's time: the median of the paired log-ratios, round by round, with its 95 % interval (samples: the inputs')."""
    if len(samples) != len(anchor_samples):
        raise UsageError(
            "a ratio needs a sample of each side from every round",
            given=f"{len(samples)} and {len(anchor_samples)}",
            remedy="time both in each round",
        )
    if any(s <= 0 for s in (*samples, *anchor_samples)):
        raise UsageError("times must be positive", given=min((*samples, *anchor_samples)), remedy="check the clock")
    paired = [math.log(a / b) for a, b in zip(samples, anchor_samples, strict=True)]
    logs = estimate(paired, least_time=least_time, cosines=PAIRED_COSINES)
    whole = mapped(logs, math.exp, "exp of the " + METHOD + ", of paired log-ratios")
    return dataclasses.replace(whole, samples=())


def mapped(of: Estimate, function: Callable[[float], float], method: str) -> Estimate:
    """An estimate carried through a monotone function; its interval's ends stay in order."""
    ends = sorted(function(end) for end in (of.low, of.high) if end is not None)
    low, high = (ends[0], ends[-1]) if len(ends) == 2 else (None, None)
    value = None if of.value is None else function(of.value)
    return Estimate(value=value, low=low, high=high, samples=tuple(map(function, of.samples)), method=method, reason=of.reason)


def quotient(of: Estimate, by: Estimate, method: str) -> Estimate:
    """One estimate over another that was taken apart from it: the relative half-widths add as squares."""
    if not of.value or not by.value or of.value < 0 or by.value < 0:
        return Estimate.missing(of.reason or by.reason or "a quotient needs two positive values")
    value = of.value / by.value
    ends = [end for estimate in (of, by) for end in (estimate.low, estimate.high)]
    if any(end is None or end <= 0 for end in ends):
        return Estimate(value=value, method=method, reason=of.reason or by.reason)
    spread = math.hypot(*(math.log(estimate.high / estimate.low) / 2 for estimate in (of, by) if estimate.high and estimate.low))
    return Estimate(value=value, low=value * math.exp(-spread), high=value * math.exp(spread), method=method)


def half_width(of: Estimate) -> float:
    """Half the interval as a share of the value; infinite where there is no interval."""
    if of.value is None or of.low is None or of.high is None or of.value == 0:
        return math.inf
    return (of.high - of.low) / 2 / abs(of.value)


def percentiles(samples: Sequence[float]) -> Percentiles:
    """p50, p90, p99 and how many samples lie more than five robust standard deviations from the median (flagged, never dropped)."""
    ranked = sorted(samples)
    n = len(ranked)
    p50 = at_rank(ranked, (n + 1) / 2)
    spread = 1.4826 * at_rank(sorted(abs(s - p50) for s in ranked), (n + 1) / 2)
    return Percentiles(
        p50=p50,
        p90=at_rank(ranked, 0.9 * (n + 1)) if n >= 10 else None,
        p99=at_rank(ranked, 0.99 * (n + 1)) if n >= 100 else None,
        outliers=sum(abs(s - p50) > 5 * spread for s in ranked) if spread else 0,
    )


def at_rank(ranked: Sequence[float], rank: float) -> float:
    """The order statistic at a rank counted from 1, interpolated, clamped to the ends."""
    position = min(max(rank - 1, 0.0), len(ranked) - 1.0)
    below = math.floor(position)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (position - below) * (ranked[above] - ranked[below])


def waves(count: int, cosines: int = COSINES) -> int:
    """How many cosines to use on `count` samples: `cosines`, but at most one for four samples and at least four; later one for 16, 60 at most.

    So long a series tells slow noise from fast by itself: its cosines all have periods of about 32 samples or more.
    """
    return min(max(COSINES, min(cosines, count // 4), count // 16), MOST_COSINES)


def autocorrelation_time(values: Sequence[float], cosines: int = COSINES) -> float:
    """How many samples count as one for the median (1 if they are independent): the mean power of their signs about it at slow cosines, over that at
    all. Cosine k has k half-periods in the series; k = 1, a trend through the whole run, is left out. Needs six values."""
    signs = np.sign(np.asarray(values, dtype=np.float64) - np.median(values))
    count, power = len(signs), float(signs @ signs)
    if power == 0:
        return 1.0
    halves = np.arange(2, waves(count, cosines) + 2)
    products = np.cos(np.pi * np.outer(halves, np.arange(count) + 0.5) / count) @ signs
    return float(2 * (products @ products) / len(halves) / power)
