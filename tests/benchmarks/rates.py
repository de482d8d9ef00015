"""How often something held: a share with its exact interval, and whether it lies where it has to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vitgs.errors import UsageError
from vitgs.measure.shares import clopper_pearson
from vitgs.numbers import percent


@dataclass(frozen=True, kw_only=True)
class Rate:
    """`hits` of `trials`, with the interval of Clopper and Pearson (Biometrika 26, 1934): it holds the truth in at least 95 of 100 cases."""

    hits: int
    trials: int
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{percent(self.value)} % ({percent(self.low)}–{percent(self.high)})"

    def outside(self, least: float, most: float) -> str:
        """Empty when the share lies between the two; else how it misses, and whether chance alone could be why."""
        if least <= self.value <= most:
            return ""
        reaches = self.low <= most and self.high >= least
        side = f"below {percent(least, 0)} %" if self.value < least else f"above {percent(most, 0)} %"
        return f"{side}{', its interval reaches the band' if reaches else ''}"

    def plain(self) -> dict[str, Any]:
        """For a record."""
        return {"hits": self.hits, "trials": self.trials, "value": self.value, "low": self.low, "high": self.high}


def rate(hits: int, trials: int) -> Rate:
    """The share of `trials` that were `hits`."""
    if trials < 1 or not 0 <= hits <= trials:
        raise UsageError("a rate needs trials, and no more hits than trials", given=f"{hits} of {trials}", remedy="run at least one")
    low, high = clopper_pearson(hits, trials)
    return Rate(hits=hits, trials=trials, value=hits / trials, low=low, high=high)
