"""The theory's claims: for each the rule that decides it, what was found, and whether it holds, as data and as a table that says so plainly.

A claim holds when the interval lies wholly on its side of the bound, does not hold when it lies wholly on the other, and is not shown in between.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from vitgs.graphsampler.theory_gaps import Gap
from vitgs.graphsampler.theory_sets import GREEDY_SHARE
from vitgs.numbers import significant
from vitgs.record import Estimate
from vitgs.report.theory import LAST, ByClip, Found, at_least, median, share

MOST = 0.9  # what "nearly always" means in a rule
NEAR = 0.1  # what "approximates" means: relative distance
LINEAR = 1.1  # the largest exponent that still counts as linear
VERDICTS = {True: "holds", False: "does not hold", None: "not shown"}
NOTES = (
    "*kept*: the pairs that the model keeps at the budget; *all*: all pairs kept, budget 1.",
    "*Pairs*, *frames*: Spearman's rank correlation, within a clip, of a score with the rise in cross-entropy when the pair (all kept pairs of the "
    "frame) is left out. *utility not as bias*: the same choice, but attention and pooling don't get to know the utility. *attention*: what a token "
    "receives in the ViT's last block, of the model on the kept pairs or on all.",
    "*Graph*: relative distance of the row-normalised propagation matrix of one round and head to softmax attention over all nodes by the same "
    "logits. *plain logits*: queries, keys and log utility alone, which the other approximations can be asked for too. *reach*: the nodes of other "
    "frames and the node itself. *rounds*: products of the means over heads, features fixed to those of the model's own pass.",
    "*Sets*: f is the log probability of the true class with 4 of the 10 best pairs by utility, all choices enumerated. *alone*: f(empty) is the "
    "uniform prior. *in context*: the other kept pairs stay. *smoothed*: f is minus the cross-entropy of the training. Ratios are "
    "(f - f(empty)) / (best - f(empty)).",
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """`rule`: what decides it; `found`: the numbers; `holds` None: the interval holds the bound, or there is no number, and `found` says why."""

    check: str
    claim: str
    rule: str
    found: str
    holds: bool | None


def claims(found: Found) -> list[Claim]:
    """All claims, check by check."""
    return [*_on_utility(found), *_on_price(found), *_on_graph(found), *_on_cost(found), *_on_sets(found)]


def table(made: Sequence[Claim], about: Mapping[str, Any]) -> str:
    """The claims as Markdown, after what they stand on."""
    lines = [
        "# The theory, checked",
        "",
        *(f"* {name}: {value}" for name, value in about.items()),
        "* Intervals are 95 %, over clips. The weights are of one training each, so they say nothing about other trainings.",
        "",
        "| check | claim | | found | rule |",
        "| --- | --- | --- | --- | --- |",
    ]
    for claim in made:
        cells = (claim.check, claim.claim, f"**{VERDICTS[claim.holds]}**", claim.found, claim.rule)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([*lines, "", *(f"* {note}" for note in NOTES)]) + "\n"


def shown(of: Estimate) -> str:
    """`0.123 [0.100, 0.150]`, or why there is no number."""
    if of.value is None:
        return of.reason
    if of.low is None or of.high is None:
        return significant(of.value)
    return f"{of.value:.3f} [{of.low:.3f}, {of.high:.3f}]"


def above(of: Estimate, bound: float = 0.0) -> bool | None:
    """Whether the value is above the bound: None where its interval holds the bound or is missing."""
    if of.low is None or of.high is None:
        return None
    return True if of.low > bound else False if of.high <= bound else None


def below(of: Estimate, bound: float = 0.0) -> bool | None:
    """The same downwards."""
    if of.low is None or of.high is None:
        return None
    return True if of.high < bound else False if of.low >= bound else None


def every(verdicts: Iterable[bool | None]) -> bool | None:
    """Whether all hold: one that doesn't is enough for no."""
    known = list(verdicts)
    return False if False in known else None if None in known else True


def _on_utility(found: Found) -> list[Claim]:
    made = []
    for name, scores in found.pairs.items():
        made += _ranking(found, f"pairs, {name}", scores, "utility", [score for score in scores if score.startswith("attention")])
    for score in ("utility, sum", "utility, largest"):
        made += _ranking(found, f"frames, {score}", found.frames, score, ["attention, sum", "count of kept tokens"])
    return made


def _ranking(found: Found, name: str, scores: ByClip, own: str, others: Sequence[str]) -> list[Claim]:
    mean, random = found.mean(scores[own]), found.difference(scores[own], scores["random"])
    made = [
        Claim(
            check="1 utility",
            claim=f"{name}: utility ranks by what the answer loses, better than at random",
            rule="mean rank correlation, and its difference to a random score's, above 0",
            found=f"{shown(mean)}, difference {shown(random)}",
            holds=every([above(mean), above(random)]),
        )
    ]
    for other in others:
        difference = found.difference(scores[own], scores[other])
        made.append(
            Claim(
                check="1 utility",
                claim=f"{name}: better than {other}",
                rule="difference above 0",
                found=f"{shown(mean)} against {shown(found.mean(scores[other]))}, difference {shown(difference)}",
                holds=above(difference),
            )
        )
    return made


def _on_price(found: Found) -> list[Claim]:
    what, says = "expected kept fraction", "expected kept fraction falls with the price lambda"
    ranked = sorted({price for price, _ in found.price})
    if len(ranked) < 2:
        return [Claim(check="1 price", claim=says, rule="two prices or more", found="checkpoints of one price only", holds=None)]
    by_price = []
    for wanted in ranked:
        same = [numbers[what] for price, numbers in found.price if price == wanted]
        by_price.append([sum(values) / len(same) for values in zip(*same, strict=True)])
    steps = [found.difference(after, before) for before, after in pairwise(by_price)]
    means = [found.mean(values) for values in by_price]
    low, high = min(m.value or 0.0 for m in means), max(m.value or 0.0 for m in means)
    return [
        Claim(
            check="1 price",
            claim=says,
            rule="each step's difference below 0",
            found=", ".join(f"lambda {price:g}: {shown(mean)}" for price, mean in zip(ranked, means, strict=True)),
            holds=every(map(below, steps)),
        ),
        Claim(
            check="1 price",
            claim=f"between two of these prices it meets the budget {found.budget:g}",
            rule="the budget lies between the smallest and the largest fraction",
            found=f"{low:.3f} to {high:.3f}",
            holds=low <= found.budget <= high,
        ),
    ]


def _on_graph(found: Found) -> list[Claim]:
    if found.gaps is None:
        return [Claim(check="2 graph", claim="the graph approximates full attention", rule="a model with a graph", found="no graph", holds=None)]
    return [claim for pool, gaps in found.gaps.items() for claim in _on_pool(found, pool, gaps)]


def _on_pool(found: Found, pool: str, gaps: Sequence[Gap]) -> list[Claim]:
    ks = sorted({g.k for g in gaps if g.k is not None})
    grid: list[int | None] = [*ks, None]
    own = found.own_k if found.own_k in ks else None
    label = f"{pool}, k = {'all' if own is None else own}"
    limit, at_own = found.gap(pool, "graph", k=None, against="limit"), found.gap(pool, "graph", k=own, window=found.own_window)
    made = [
        _claim(f"{pool}: with k = all in one window it is attention over its reach", "largest distance under 1e-4",
               [limit], found, max(limit.frobenius) < 1e-4),
        _falling(found, f"{pool}: the error falls as k grows ({', '.join(map(str, ks))}, all)", [found.gap(pool, "graph", k=k) for k in grid]),
    ]  # fmt: skip
    near = every([below(found.mean(at_own.frobenius), NEAR), below(found.mean(at_own.spectral), NEAR)])
    close = _claim(f"{label}: it approximates attention over all nodes", f"both distances under {NEAR:g}", [at_own], found, near)
    made.append(replace(close, found=f"{close.found}; share of that attention within its reach {shown(found.mean(at_own.mass))}"))
    windows = sorted({g.window for g in gaps if g.matrix == "graph"}, key=lambda window: (window == 0, window))
    names = ", ".join(str(window or "whole clip") for window in windows)
    made.append(
        _falling(found, f"{label}: the error falls as the window grows ({names})", [found.gap(pool, "graph", k=own, window=w) for w in windows])
    )
    if own is not None:
        edges, random = found.gap(pool, "graph", k=own), found.gap(pool, "random edges", k=own)
        made.append(_nearer(found, f"{label}: its edges bring it nearer to full attention than as many at random", edges, random))
    plain = [g for g in gaps if g.logits == "plain" and g.k == own and g.matrix != "full"]
    for rival in plain[1:]:
        made.append(_nearer(found, f"{label}, plain logits, equal MACs: it is nearer than {rival.matrix}", plain[0], rival))
    counts = sorted({g.rounds for g in gaps})
    for against, says in (("full", "as many rounds of full attention"), ("one round", "one round of full attention")):
        by_count = [found.gap(pool, "graph, heads averaged", k=own, rounds=count, against=against) for count in counts]
        made.append(_falling(found, f"{label}: more rounds ({', '.join(map(str, counts))}) bring it nearer to {says}", by_count))
    return made


def _claim(claim: str, rule: str, gaps: Sequence[Gap], found: Found, holds: bool | None) -> Claim:
    text = "; ".join(f"{norm} {', '.join(shown(found.mean(getattr(g, norm))) for g in gaps)}" for norm in ("frobenius", "spectral"))
    return Claim(check="2 graph", claim=claim, rule=rule, found=text[0].upper() + text[1:], holds=holds)


def _falling(found: Found, claim: str, gaps: Sequence[Gap]) -> Claim:
    """From the first to the last it falls, and at no step between does it rise, in both norms."""
    verdicts = []
    for norm in ("frobenius", "spectral"):
        by_gap = [getattr(g, norm) for g in gaps]
        verdicts.append(below(found.difference(by_gap[-1], by_gap[0])))
        verdicts += [False for before, after in pairwise(by_gap) if above(found.difference(after, before))]
    return _claim(claim, "last less first below 0 and no step above 0, both norms", gaps, found, every(verdicts))


def _nearer(found: Found, claim: str, first: Gap, second: Gap) -> Claim:
    texts, verdicts = [], []
    for norm in ("frobenius", "spectral"):
        a, b = getattr(first, norm), getattr(second, norm)
        difference = found.difference(a, b)
        texts.append(f"{norm} {found.mean(a).value:.3f} against {found.mean(b).value:.3f}, difference {shown(difference)}")
        verdicts.append(below(difference))
    text = "; ".join(texts)
    return Claim(check="2 graph", claim=claim, rule="difference below 0, both norms", found=text[0].upper() + text[1:], holds=every(verdicts))


def _on_cost(found: Found) -> list[Claim]:
    return [
        Claim(
            check="2 cost",
            claim=f"{what}: linear in {axis}",
            rule=f"exponent at most {LINEAR:g}, over all sizes and over the last doubling",
            found=f"{shown(value)}, last doubling {shown(found.exponents[what + LAST, axis])}",
            holds=every([_linear(value), _linear(found.exponents[what + LAST, axis])]),
        )
        for (what, axis), value in found.exponents.items()
        if "full attention" not in what and not what.endswith(LAST)
    ]


def _linear(exponent: Estimate) -> bool | None:
    """A counted exponent has no interval; a timed one without, from too few rounds, decides nothing."""
    if exponent.value is None or exponent.reason:
        return None
    return exponent.value <= LINEAR if exponent.low is None else below(exponent, LINEAR)


def _on_sets(found: Found) -> list[Claim]:
    return [claim for kind, functions in found.sets.items() for claim in _on_kind(found, kind, functions)]


def _on_kind(found: Found, kind: str, functions: Mapping[str, ByClip]) -> list[Claim]:
    """Decided by the log probability; the smoothed function's number stands beside it."""
    mostly, half = f"share of clips above {MOST:g}", "mean share of beaten choices above 0.5"
    rows: list[tuple[str, str, float, dict[str, Estimate], str]] = [
        ("marginal gains diminish", mostly, MOST, {f: share(n["first chain diminishes"]) for f, n in functions.items()}, "chains that diminish"),
        ("f does not fall as pairs are added", mostly, MOST, {f: share(n["first gain is not negative"]) for f, n in functions.items()}, ""),
    ]
    for chooser, says in (("greedy", "greedy reaches"), ("best by utility", "the best by utility reach")):
        reached = {f: share(at_least(n[f"{chooser}, ratio"], GREEDY_SHARE)) for f, n in functions.items()}
        rows.append((f"{says} 1 - 1/e of the best choice", mostly, MOST, reached, f"{chooser}, ratio"))
    beaten = {f: found.mean(n["best by utility, share of choices it beats"]) for f, n in functions.items()}
    rows.append(("the best by utility beat a choice at random", half, 0.5, beaten, ""))
    made = []
    for says, rule, bound, values, also in rows:
        decisive, beside = values["log probability"], functions["log probability"].get(also)
        text = shown(decisive)
        if beside is not None:
            text += f", median ratio {shown(median(beside))}" if "ratio" in also else f" (one chain a clip), {shown(found.mean(beside))} (all chains)"
        text += f"; smoothed {shown(values['smoothed'])}"
        made.append(Claim(check="3 sets", claim=f"{kind}: {says}", rule=rule, found=text, holds=above(decisive, bound)))
    return made
