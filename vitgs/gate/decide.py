"""The timed tier's decisions, from paired log-ratios `d = log(head / base)`, one a round and case. No timing here: lists in, verdicts out.

For each case
    H0: the head takes at most (1 + threshold) times the base's time, location(d) <= log(1 + threshold)
    H1: it takes longer.
The p-value is that of the one-sided t-test on the trimmed mean (Yuen 1974; a fifth of the rounds cut off at either end, which begins to matter at 5
rounds). Why not the bootstrap interval of the median that the first trial used: with the 3 to 12 rounds of an early look a bootstrap's smallest
p-value is far above what a look may spend, and its intervals are too short. Base and head change places at random within a round, so under "no
change" d is symmetric about 0, its trimmed mean and its median are the same thing, and a wild round makes t smaller, not larger.

Looks. The rounds planned are looked at `LOOKS` times. Look k, with the share t_k of the rounds done, may spend a(t_k) - a(t_k-1), where
    a(t) = 2 (1 - Phi(z_{1 - alpha/2} / sqrt(t)))
is the spending function of Lan and DeMets (1983) that is like O'Brien and Fleming's: nearly nothing early, a(1) = alpha. Each look's p-values are
compared with what that look alone may spend, by Holm over the cases. By the union bound the chance of any false alarm is at most alpha, whatever the
correlation of looks and cases; the exact boundaries would be a little less strict. Stopping for "no change" never adds false alarms.

Giving up. A case that would hardly be called slower or faster any more leaves too ("hopeless"): the chance of it, given what was seen and that the
rest of the rounds show `WORTH`, or what was seen if that is more, is below `HOPE` (stochastic curtailment: Lan, Simon and Halperin 1982). It can only
lose power, a few points.

What this calls slower is measured again in new processes and must be called slower again (`timed`). The two stages are independent, so the chance
that a run fails by time without a case that is slower than its threshold is at most alpha squared, 1 in 100, even at the threshold itself.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

LOOKS = 4
ALPHA = 0.1
TRIM = 0.2
SURE = 0.95
FEWEST = 3
WORTH, HOPE, FEWEST_TO_GIVE_UP = 0.03, 0.1, 6  # of five rounds on, the trimmed mean cuts a wild one off
Verdict = Literal["slower", "faster", "same", "hopeless", "open"]


@dataclass(frozen=True, kw_only=True)
class Located:
    """The trimmed mean of some d, its standard error, and the degrees of freedom left."""

    centre: float
    error: float
    freedom: int

    def p_above(self, bound: float) -> float:
        """The one-sided p-value of `location <= bound`."""
        from scipy import stats

        return float(stats.t.sf((self.centre - bound) / self.error, self.freedom))

    def limits(self, level: float = SURE) -> tuple[float, float]:
        """The two-sided interval of that level."""
        from scipy import stats

        reach = float(stats.t.ppf((1 + level) / 2, self.freedom)) * self.error
        return self.centre - reach, self.centre + reach


def located(logs: Sequence[float]) -> Located:
    """The trimmed mean with Yuen's standard error: the winsorised spread over what was not cut."""
    ranked, cut = sorted(logs), int(TRIM * len(logs))
    kept = ranked[cut : len(ranked) - cut]
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    spread = statistics.stdev(winsorised) if len(logs) > 1 else math.inf
    error = spread * math.sqrt(len(logs) - 1) / math.sqrt(len(kept) * max(len(kept) - 1, 1))
    # Times that agree to the last digit are no proof: a millionth is less than any clock's step.
    return Located(centre=statistics.fmean(kept), error=max(error, 1e-6), freedom=max(len(kept) - 1, 1))


def spent(share: float, alpha: float = ALPHA) -> float:
    """How much of alpha may be spent when `share` of the rounds is done."""
    normal = NormalDist()
    return 0.0 if share <= 0 else min(alpha, 2 * (1 - normal.cdf(normal.inv_cdf(1 - alpha / 2) / math.sqrt(min(share, 1.0)))))


def holm(p_values: Mapping[str, float], alpha: float, *, of: int | None = None) -> set[str]:
    """The hypotheses rejected by Holm's step-down at family-wise level alpha, among `of` of them (those left out count as not rejected yet)."""
    rejected: set[str] = set()
    family = len(p_values) if of is None else of
    for name in sorted(p_values, key=lambda name: p_values[name]):
        if p_values[name] > alpha / max(family - len(rejected), 1):
            break
        rejected.add(name)
    return rejected


def look(logs: Mapping[str, Sequence[float]], bounds: Mapping[str, float], *, before: float, now: float, of: int) -> dict[str, Verdict]:
    """One look at the cases still open. `bounds`: each case's log(1 + threshold). `before`, `now`: shares of the rounds done; `of`: cases in all.

    "same": its interval lies within the bound on both sides, so more rounds would tell nothing new. "faster": the mirrored test. "hopeless": see
    above.
    """
    seen = {case: located(values) for case, values in logs.items() if len(values) >= FEWEST}
    may_spend = spent(now) - spent(before)
    slower = holm({case: where.p_above(bounds[case]) for case, where in seen.items()}, may_spend, of=of)
    mirrored = {case: Located(centre=-where.centre, error=where.error, freedom=where.freedom) for case, where in seen.items()}
    faster = holm({case: where.p_above(bounds[case]) for case, where in mirrored.items()}, may_spend, of=of)
    verdicts: dict[str, Verdict] = {}
    for case in logs:
        low, high = seen[case].limits(2 * SURE - 1) if case in seen else (-math.inf, math.inf)  # 95 % on each side by itself
        same = -bounds[case] < low and high < bounds[case]
        verdicts[case] = "slower" if case in slower else "faster" if case in faster else "same" if same else "open"
        if verdicts[case] == "open" and now < 1 and len(logs[case]) >= FEWEST_TO_GIVE_UP:
            chances = (chance(where, bounds[case], now=now, of=of) for where in (seen[case], mirrored[case]))
            verdicts[case] = "hopeless" if max(chances) < HOPE else "open"
    return verdicts


def chance(where: Located, bound: float, *, now: float, of: int) -> float:
    """The chance that the last look rejects `location <= bound` among `of` cases, given what was seen in the share `now` of the rounds and that the
    rest of them lie about log(1 + WORTH), or where these lie if that is further, with the same spread."""
    from scipy import stats

    error = where.error * math.sqrt(now)  # of all rounds
    needed = bound + float(stats.t.isf((ALPHA - spent(1 - 1 / LOOKS)) / of, where.freedom / now)) * error
    expected = now * where.centre + (1 - now) * max(math.log1p(WORTH), where.centre)
    return NormalDist().cdf((expected - needed) / (error * math.sqrt(1 - now)))
