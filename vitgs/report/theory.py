"""The theory's checks in numbers: intervals over clips, and for each claim the rule that decides it, what was found, and whether it holds.

Means have a percentile bootstrap over groups of clips that share an image; medians an interval between order statistics; shares of clips are
Clopper-Pearson's. Differences are paired, clip by clip.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import binomtest

from vitgs.graphsampler.theory_gaps import Gap
from vitgs.graphsampler.theory_sets import GREEDY_SHARE
from vitgs.measure.intervals import estimate
from vitgs.numbers import significant
from vitgs.record import Estimate
from vitgs.report.bootstrap import DRAWS, Resampler

MOST = 0.95  # what "nearly always" means in a rule
NEAR = 0.10  # what "approximates" means: relative distance
LINEAR = 1.1  # the largest exponent that still counts as linear
_DIGITS = 4

ByClip = Mapping[str, Sequence[float]]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`rule`: what decides it; `found`: the numbers; `holds` None: it could not be decided, and `found` says why."""

    check: str
    claim: str
    rule: str
    found: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True)
class Found:
    """What was measured, by clip; `groups`: the group of each clip, in the same order (a shorter list of numbers is of the first clips).

    `pairs`: name of the instance -> scores; `price`: (lambda, numbers) of each checkpoint; `gaps`: by pool, None without a graph; `sets`: by kind
    and set function; `scaling`: exponents by (what, axis), None where not asked or without a graph.
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

    def mean(self, values: Sequence[float]) -> Estimate:
        """The mean over the clips where the number is defined, with its interval; samples are all, rounded, null where it isn't."""
        number_C = np.asarray(values, dtype=np.float64)
        known_C = np.isfinite(number_C)
        if not known_C.any():
            return Estimate.missing(f"defined on none of {len(values)} clips")
        kept_C, groups = number_C[known_C], np.asarray(self.groups[: len(values)])[known_C].tolist()
        draws_R = Resampler(self.data, groups).top(kept_C[None], [0])
        low, high = np.percentile(draws_R, (2.5, 97.5))
        method = f"mean of {len(kept_C)} clips; percentile bootstrap over {len(set(groups))} groups, {DRAWS} resamples"
        undefined = int((~known_C).sum())
        return Estimate(
            value=float(kept_C.mean()), low=float(low), high=float(high), samples=tuple(_rounded(v) for v in kept_C),
            method=method, reason=f"not defined on {undefined} clips" if undefined else "",
        )  # fmt: skip

    def difference(self, first: Sequence[float], second: Sequence[float]) -> Estimate:
        """Of two numbers of the same clips."""
        return self.mean([a - b for a, b in zip(first, second, strict=True)])

    def gap(self, pool: str, matrix: str, *, k: int | None, window: int = 0, rounds: int = 1, logits: str = "own", against: str = "full") -> Gap:
        """The one gap of those settings."""
        wanted = (matrix, logits, against, k, window, rounds)
        (found,) = (g for g in (self.gaps or {})[pool] if (g.matrix, g.logits, g.against, g.k, g.window, g.rounds) == wanted)
        return found


def share(flags: Sequence[float]) -> Estimate:
    """The share of clips where something is so (1) of those where it is defined, with Clopper-Pearson's 95 % interval."""
    known = [flag for flag in flags if math.isfinite(flag)]
    if not known:
        return Estimate.missing(f"defined on none of {len(flags)} clips")
    ends = binomtest(round(sum(known)), len(known)).proportion_ci(0.95, method="exact")
    method = f"share of {len(known)} clips, Clopper-Pearson"
    return Estimate(value=sum(known) / len(known), low=float(ends.low), high=float(ends.high), method=method)


def median(values: Sequence[float]) -> Estimate:
    """The median over the clips where the number is defined."""
    known = [_rounded(value) for value in values if math.isfinite(value)]
    return estimate(known) if known else Estimate.missing(f"defined on none of {len(values)} clips")


def at_least(values: Sequence[float], bound: float) -> list[float]:
    """Whether, 1 or 0; NaN stays."""
    return [float(value >= bound) if math.isfinite(value) else math.nan for value in values]


def document(found: Found) -> dict[str, Any]:
    """All numbers with their intervals, and the claims."""
    return {
        "utility": {name: {score: found.mean(v) for score, v in scores.items()} for name, scores in {**found.pairs, "frames": found.frames}.items()},
        "price": [{"sparsity": price, **{name: found.mean(v) for name, v in numbers.items()}} for price, numbers in found.price],
        "graph": {"reason": "no graph"} if found.gaps is None else {pool: [_gap(found, g) for g in gaps] for pool, gaps in found.gaps.items()},
        "sets": {kind: {f: _sets(found, numbers) for f, numbers in functions.items()} for kind, functions in found.sets.items()},
        "exponents": [{"of": what, "in": axis, **vars(value)} for (what, axis), value in found.exponents.items()],
        "claims": [*_on_utility(found), *_on_price(found), *_on_graph(found), *_on_cost(found), *_on_sets(found)],
    }


def _gap(found: Found, gap: Gap) -> dict[str, Any]:
    plain = {name: getattr(gap, name) for name in ("matrix", "logits", "against", "k", "window", "rounds", "macs", "setting")}
    return plain | {name: found.mean(getattr(gap, name)) for name in ("frobenius", "spectral", "mass") if getattr(gap, name)}


def _sets(found: Found, numbers: ByClip) -> dict[str, Estimate]:
    shares = {name: share(v) for name, v in numbers.items() if name.startswith("first ")}
    ratios = {name: median(v) for name, v in numbers.items() if "ratio" in name}
    reached = {f"{name} of at least 1 - 1/e": share(at_least(v, GREEDY_SHARE)) for name, v in numbers.items() if name.endswith(", ratio")}
    best = {f"{name} of 1": share(at_least(v, 1 - 1e-9)) for name, v in numbers.items() if name.endswith(", ratio")}
    means = {name: found.mean(v) for name, v in numbers.items() if name not in shares and name not in ratios}
    return {**shares, **means, **ratios, **reached, **best}


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def shown(of: Estimate) -> str:
    """`.123 [.100, .150]`, or why not."""
    if of.value is None:
        return of.reason
    if of.low is None or of.high is None:
        return significant(of.value)
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"


def _above(of: Estimate, bound: float = 0.0) -> bool:
    return of.low is not None and of.low > bound


def _below(of: Estimate, bound: float = 0.0) -> bool:
    return of.high is not None and of.high < bound


def _decided(of: Iterable[Estimate], holds: bool) -> bool | None:
    return holds if all(one.value is not None for one in of) else None


def _on_utility(found: Found) -> list[Claim]:
    claims = []
    for name, scores in found.pairs.items():
        claims += _ranking(found, f"pairs, {name}", scores, "utility", ["attention, kept", "attention, all"])
    for score in ("utility, sum", "utility, largest"):
        claims += _ranking(found, f"frames, {score}", found.frames, score, ["attention, kept, sum", "count of kept tokens"])
    return claims


def _ranking(found: Found, name: str, scores: ByClip, own: str, others: Sequence[str]) -> list[Claim]:
    mean, random = found.mean(scores[own]), found.difference(scores[own], scores["random"])
    beside = {other: found.difference(scores[own], scores[other]) for other in others}
    said = ", ".join(f"{other} {shown(found.mean(scores[other]))}, difference {shown(value)}" for other, value in beside.items())
    return [
        Claim(
            check="1 utility", claim=f"{name}: utility ranks by what the answer loses, better than at random",
            rule="mean rank correlation and its difference to a random score's above 0", found=f"{shown(mean)}, difference {shown(random)}",
            holds=_decided([mean, random], _above(mean) and _above(random)),
        ),
        Claim(
            check="1 utility", claim=f"{name}: better than {' and '.join(others)}", rule="differences above 0", found=said,
            holds=_decided(beside.values(), all(map(_above, beside.values()))),
        ),
    ]  # fmt: skip


def _on_price(found: Found) -> list[Claim]:
    ranked = sorted({price for price, _ in found.price})
    said = "expected kept fraction falls with the price lambda"
    what = "expected kept fraction"
    if len(ranked) < 2:
        return [Claim(check="1 price", claim=said, rule="two prices or more", found="checkpoints of one price only", holds=None)]
    by_price = [np.mean([numbers[what] for price, numbers in found.price if price == wanted], axis=0).tolist() for wanted in ranked]
    steps = [found.difference(after, before) for before, after in zip(by_price, by_price[1:], strict=False)]
    means = [found.mean(values) for values in by_price]
    text = ", ".join(f"lambda {price:g}: {shown(mean)}" for price, mean in zip(ranked, means, strict=True))
    low, high = min(m.value or 0.0 for m in means), max(m.value or 0.0 for m in means)
    return [
        Claim(check="1 price", claim=said, rule="each step's difference below 0", found=text, holds=all(map(_below, steps))),
        Claim(
            check="1 price", claim=f"some price meets the budget {found.budget:g}", rule="the budget lies between the smallest and largest fraction",
            found=f"{low:.3f} to {high:.3f}", holds=low <= found.budget <= high,
        ),
    ]  # fmt: skip


def _on_graph(found: Found) -> list[Claim]:
    if found.gaps is None:
        return [Claim(check="2 graph", claim="the graph approximates full attention", rule="a model with a graph", found="no graph", holds=None)]
    return [claim for pool in found.gaps for claim in _on_pool(found, pool)]


def _on_pool(found: Found, pool: str) -> list[Claim]:
    assert found.gaps is not None
    numbers = sorted({g.k for g in found.gaps[pool] if g.k is not None})
    own = found.own_k if found.own_k in numbers else None
    grid: list[int | None] = [*numbers, None]
    at_own = found.gap(pool, "graph", k=own, window=found.own_window)
    limit = found.gap(pool, "graph", k=None, against="limit")
    by_k = [found.gap(pool, "graph", k=k) for k in grid]
    random = found.gap(pool, "random edges", k=own) if own is not None else None
    label = f"k = {'all' if own is None else own}"
    claims = [
        _claim(pool, "with k = all in one window it is attention over its reach", "largest distance under 1e-4",
               [found.mean(limit.frobenius)], max(limit.frobenius) < 1e-4),
        _claim(pool, "the error falls as k grows", "each step's mean no higher, first to last below 0, in both norms",
               [found.mean(g.frobenius) for g in by_k], _falls(found, by_k)),
        _claim(pool, f"at the model's own {label} and window it approximates attention over all nodes", f"both distances under {NEAR:g}",
               [found.mean(at_own.frobenius), found.mean(at_own.spectral), found.mean(at_own.mass)],
               _below(found.mean(at_own.frobenius), NEAR) and _below(found.mean(at_own.spectral), NEAR)),
    ]  # fmt: skip
    if random is not None:
        own_edges = found.gap(pool, "graph", k=own)
        claims.append(_nearer(found, pool, f"at {label} its edges are nearer to full attention than as many at random", own_edges, random))
    beside = [g for g in found.gaps[pool] if g.logits == "plain" and g.k == own and g.matrix not in ("graph", "full")]
    plain = [g for g in found.gaps[pool] if g.logits == "plain" and g.k == own and g.matrix == "graph"]
    for rival in beside:
        claims.append(_nearer(found, pool, f"at {label}, plain logits and equal MACs it is nearer than {rival.matrix}", plain[0], rival))
    counts = sorted({g.rounds for g in found.gaps[pool]})
    for against, says in (("full", "as many rounds of full attention"), ("one round", "one round of full attention")):
        by_count = [found.gap(pool, "graph, heads averaged", k=own, rounds=count, against=against) for count in counts]
        rule = "each step's mean no higher, first to last below 0, in both norms"
        means = [found.mean(g.frobenius) for g in by_count]
        claims.append(_claim(pool, f"at {label} more rounds ({', '.join(map(str, counts))}) bring it nearer to {says}", rule, means, _falls(found, by_count)))
    return claims


def _claim(pool: str, claim: str, rule: str, numbers: Sequence[Estimate], holds: bool) -> Claim:
    return Claim(check="2 graph", claim=f"{pool}: {claim}", rule=rule, found=", ".join(map(shown, numbers)), holds=_decided(numbers, holds))


def _nearer(found: Found, pool: str, claim: str, first: Gap, second: Gap) -> Claim:
    steps = [found.difference(first.frobenius, second.frobenius), found.difference(first.spectral, second.spectral)]
    means = f"{found.mean(first.frobenius).value:.3f} against {found.mean(second.frobenius).value:.3f}"
    text = f"Frobenius {means}, difference {shown(steps[0])}; spectral {shown(steps[1])}"
    return Claim(check="2 graph", claim=f"{pool}: {claim}", rule="difference below 0 in both norms", found=text, holds=all(map(_below, steps)))


def _falls(found: Found, gaps: Sequence[Gap]) -> bool:
    for norm in ("frobenius", "spectral"):
        means = [float(np.mean(getattr(g, norm))) for g in gaps]
        if any(b > a for a, b in zip(means, means[1:], strict=False)):
            return False
        if not _below(found.difference(getattr(gaps[-1], norm), getattr(gaps[0], norm))):
            return False
    return True


def _on_cost(found: Found) -> list[Claim]:
    return [
        Claim(
            check="2 cost", claim=f"{what} of edges and messages grow linearly in {axis}", rule=f"exponent at most {LINEAR:g}", found=shown(value),
            holds=None if value.value is None else (value.value if value.high is None else value.high) <= LINEAR,
        )
        for (what, axis), value in found.exponents.items()
        if not what.startswith("full")
    ]  # fmt: skip


def _on_sets(found: Found) -> list[Claim]:
    return [claim for kind, functions in found.sets.items() for f, numbers in functions.items() for claim in _on_function(found, f"{kind}, {f}", numbers)]


def _on_function(found: Found, name: str, numbers: ByClip) -> list[Claim]:
    first, all_chains = share(numbers["first chain diminishes"]), found.mean(numbers["chains that diminish"])
    rises = share(numbers["first gain is not negative"])
    rule = f"lower end of the share of clips above {MOST:g}"
    claims = [
        ("marginal gains diminish", first, f"{shown(first)} (one chain a clip), {shown(all_chains)} (all chains)"),
        ("f never falls when a pair is added", rises, shown(rises)),
    ]
    for chooser, says in (("greedy", "greedy reaches 1 - 1/e of the best"), ("best by utility", "the best by utility reach 1 - 1/e of the best choice")):
        reached = share(at_least(numbers[f"{chooser}, ratio"], GREEDY_SHARE))
        claims.append((says, reached, f"{shown(reached)}, median ratio {shown(median(numbers[f'{chooser}, ratio']))}"))
    made = [
        Claim(check="3 sets", claim=f"{name}: {says}", rule=rule, found=text, holds=_decided([value], _above(value, MOST)))
        for says, value, text in claims
    ]
    beaten = found.mean(numbers["best by utility, share of choices it beats"])
    says = "the best by utility beat a choice at random"
    made.append(Claim(check="3 sets", claim=f"{name}: {says}", rule="mean share of beaten choices above 0.5", found=shown(beaten), holds=_above(beaten, 0.5)))
    return made
