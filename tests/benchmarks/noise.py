"""A machine that others use too, simulated: a clock that goes forward by what a call costs there, with jitter, hits by others, wander and drift.

The sizes are those of the 232 series of blocks that the project's own measurements on a shared 2-core machine left in
`results/reference-amd-epyc-95f526*` (partly in the history alone) (`budget.jsonl`, `reference-speed.json`), taken as logarithms of times:

* spread inside a series (1.4826 x median absolute deviation): .0085 at the 5th percentile, .026 at the median, .068 at the 75th;
* blocks more than five such spreads from the median: 4 % at the median, 11 % at the 90th percentile, all of them slow, none fast; they take 1.2, 1.6
  and 2.5 times as long (10th, 50th and 90th percentile), 6 times at the 99th;
* correlation of a block with the one before (of signs about the median): .18 at the median, .34 at the 75th percentile, .50 at the 90th;
* second half of a series against the first: 1 % at the median, 3.5 % at the 75th percentile, 12 % at the 90th.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TICK_NS = 10


@dataclass(frozen=True, kw_only=True)
class Noise:
    """What disturbs a call. All spreads are of the logarithm of its time.

    `jitter`: independent for each call. `hit_share`: calls that somebody interrupts, each then longer by a log-normal share with median
    `hit_median` and spread `hit_spread`. `wander`: a stationary Gauss-Markov path in time that forgets in `wander_ms`; neighbours in time share it.
    `drift`: a sine of that amplitude and a period of `drift_s`, longer than a run, from a random phase.
    """

    name: str
    jitter: float
    hit_share: float = 0.0
    hit_median: float = 0.6
    hit_spread: float = 0.8
    wander: float = 0.0
    wander_ms: float = 1.0
    drift: float = 0.0
    drift_s: float = 5.0


# Hits as often as in the worst tenth of the series. A sine of 10 % over 5 s moves one half of a run of 1.35 s by about 5 % against the other.
# Wander of 5 % over 48 ms gives successive blocks of a call, 18 ms apart, a correlation of .64, of their signs .44: nearly the worst tenth.
SETTINGS = (
    Noise(name="quiet", jitter=0.01),
    Noise(name="drift", jitter=0.026, drift=0.10),
    Noise(name="outliers", jitter=0.026, hit_share=0.10),
    Noise(name="drift and outliers", jitter=0.026, hit_share=0.10, drift=0.10),
    Noise(name="autocorrelated", jitter=0.013, wander=0.05, wander_ms=48.0),
)


class Machine:
    """A clock in nanoseconds that only work moves forward. `began_ns[name]`: when each call of that name began."""

    def __init__(self, noise: Noise, rng: random.Random) -> None:
        self.noise, self.now_ns = noise, 0
        self.began_ns: dict[str, list[int]] = {}
        self._rng, self._phase = rng, rng.uniform(0, 2 * math.pi)
        self._wander, self._wander_at_ns = noise.wander * rng.gauss(0, 1), 0

    def read(self) -> int:
        """The time; reading takes a tick."""
        self.now_ns += TICK_NS
        return self.now_ns

    def work(self, name: str, cost_ms: float) -> None:
        """One call that would cost `cost_ms` on the machine alone."""
        self.began_ns.setdefault(name, []).append(self.now_ns)
        slower = self.log_drift(self.now_ns) + self._wandered() + self.noise.jitter * self._rng.gauss(0, 1)
        if self._rng.random() < self.noise.hit_share:
            slower += math.log1p(self.noise.hit_median * math.exp(self.noise.hit_spread * self._rng.gauss(0, 1)))
        self.now_ns += round(cost_ms * 1e6 * math.exp(slower))

    def log_drift(self, at_ns: int) -> float:
        """How much slower than on the average the whole machine is then."""
        return self.noise.drift * math.sin(2 * math.pi * at_ns / 1e9 / self.noise.drift_s + self._phase)

    def _wandered(self) -> float:
        if self.noise.wander:
            kept = math.exp(-(self.now_ns - self._wander_at_ns) / 1e6 / self.noise.wander_ms)
            self._wander = kept * self._wander + self.noise.wander * math.sqrt(1 - kept * kept) * self._rng.gauss(0, 1)
            self._wander_at_ns = self.now_ns
        return self._wander


def true_log_median(noise: Noise, log_drifts: Sequence[float]) -> float:
    """The median of the logarithm of what a call takes over its cost, over all that jitter, hits and wander may do at each of these states of drift.

    Solved from the distribution itself, by halving; nothing is drawn.
    """
    import numpy as np
    from scipy.special import ndtr, ndtri

    spread = math.hypot(noise.jitter, noise.wander)
    drifts: Any = np.asarray(log_drifts, dtype=float)
    middles = (np.arange(200) + 0.5) / 200
    hits: Any = np.log1p(noise.hit_median * np.exp(noise.hit_spread * ndtri(middles)))

    def below(x: float) -> float:
        alone, hit = ndtr((x - drifts) / spread), ndtr((x - drifts[:, None] - hits) / spread)
        return float((1 - noise.hit_share) * alone.mean() + noise.hit_share * hit.mean())

    low, high = float(drifts.min()) - 5 * spread, float(drifts.max()) + 5 * spread + float(hits[-1])
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < 0.5 else (low, middle)
    return (low + high) / 2
