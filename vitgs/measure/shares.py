"""How sure a share of independent trials is: the one exact interval that the report, the gate and the benchmark programs all use."""

from __future__ import annotations


def clopper_pearson(hits: int, trials: int, level: float = 0.95) -> tuple[float, float]:
    """The exact interval of `hits` out of `trials` (Clopper and Pearson, Biometrika 26, 1934): it holds the truth at least that often. [0, 1] without
    a trial."""
    from scipy import stats

    if trials == 0:
        return 0.0, 1.0
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else float(stats.beta.ppf(tail, hits, trials - hits + 1))
    high = 1.0 if hits == trials else float(stats.beta.isf(tail, hits + 1, trials - hits))
    return low, high
