"""Submodularity, checked on instances small enough to enumerate: do gains diminish, how good is greedy, how good are the best by utility.

An instance is a number for each subset of `count` candidates up to some size (`Table`, subsets as sorted tuples of 0 ... count - 1). f is submodular
when f(A + x) - f(A) >= f(B + x) - f(B) for A inside B; then, if it also never falls, greedy reaches 1 - 1/e of the best (Nemhauser 1978).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

Subset = tuple[int, ...]
Table = Mapping[Subset, float]

GREEDY_SHARE = 1 - 1 / math.e


@dataclass(frozen=True, kw_only=True)
class Chain:
    """`small` inside `large`, and `extra` outside of both."""

    small: Subset
    large: Subset
    extra: int


def subsets(count: int, most: int) -> list[Subset]:
    """All subsets of up to `most` candidates, the empty one first."""
    return [chosen for size in range(most + 1) for chosen in combinations(range(count), size)]


def random_chain(count: int, most: int, rng: random.Random, *, least: int = 0) -> Chain:
    """A chain whose sets, with the extra, have at most `most` members: sizes first, each alike, then members. `least`: members of the small set."""
    large = rng.randint(least + 1, most - 1)
    small = rng.randint(least, large - 1)
    members = rng.sample(range(count), large + 1)
    return Chain(small=tuple(sorted(members[:small])), large=tuple(sorted(members[:large])), extra=members[large])


def gain(f: Table, chosen: Subset, extra: int) -> float:
    """f(chosen + extra) - f(chosen)."""
    return f[tuple(sorted((*chosen, extra)))] - f[chosen]


def diminishes(f: Table, chain: Chain, tolerance: float) -> bool:
    """Whether the extra is worth no more to the larger set, up to the tolerance."""
    return gain(f, chain.small, chain.extra) >= gain(f, chain.large, chain.extra) - tolerance


def greedy(f: Table, count: int, size: int) -> Subset:
    """The candidate with the largest gain, `size` times; the first of equals."""
    chosen: Subset = ()
    for _ in range(size):
        best = max((c for c in range(count) if c not in chosen), key=lambda c: gain(f, chosen, c))
        chosen = tuple(sorted((*chosen, best)))
    return chosen


def of_size(f: Table, size: int) -> dict[Subset, float]:
    """The part of the table with exactly that many members."""
    return {chosen: value for chosen, value in f.items() if len(chosen) == size}


def ratio(f: Table, chosen: Subset, *, least: float) -> float:
    """(f(chosen) - f(empty)) / (best of that size - f(empty)): 1 for the best, 0 for what the empty set gives, below 0 for worse.

    NaN where even the best gains less than `least`.
    """
    reach = max(of_size(f, len(chosen)).values()) - f[()]
    return (f[chosen] - f[()]) / reach if reach >= least else math.nan


def share_beaten(f: Table, chosen: Subset) -> float:
    """The share of all other subsets of that size that are no better."""
    others = [value for subset, value in of_size(f, len(chosen)).items() if subset != chosen]
    return sum(value <= f[chosen] for value in others) / len(others)


def mean_ratio(f: Table, size: int, *, least: float) -> float:
    """The mean ratio over all subsets of that size: what a choice at random is worth."""
    values = [ratio(f, chosen, least=least) for chosen in of_size(f, size)]
    return sum(values) / len(values)


def table(sets: Sequence[Subset], values: Sequence[float]) -> Table:
    """Subsets with their values."""
    return dict(zip(sets, values, strict=True))
