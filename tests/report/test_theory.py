"""Intervals and verdicts on planted numbers: what is so holds, what is not does not, and what can't be told is not shown."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from vitgs.graphsampler.theory_gaps import Gap
from vitgs.record import Estimate, to_json
from vitgs.report import theory_figures
from vitgs.report.theory import LAST, Found, at_least, median, numbers, share
from vitgs.report.theory_claims import Claim, above, below, claims, every, shown, table

CLIPS = 40
WAVE = [0.02 * math.sin(i) for i in range(CLIPS)]  # so that clips differ a little


def flat(value: float) -> list[float]:
    return [value + wave for wave in WAVE]


def gap(matrix: str, distance: float, k: int | None, window: int = 0, rounds: int = 1, logits: str = "own", against: str = "full") -> Gap:
    exact = distance == 0
    values = [0.0] * CLIPS if exact else flat(distance)
    macs = 100.0 if logits == "plain" else None
    return Gap(
        matrix=matrix, logits=logits, against=against, k=k, window=window, rounds=rounds, macs=macs, frobenius=values, spectral=values, mass=values
    )


def gaps(own: float = 0.05, rival: float = 0.5, random: float = 0.9) -> list[Gap]:
    by_k: dict[int | None, float] = {1: 0.8, 2: own, None: own}
    made = [gap("graph", d, k, window=w) for k, d in by_k.items() for w in (0, 1)]
    made += [gap("graph", 0 if k is None else d, k, against="limit") for k, d in by_k.items()]
    made += [gap("random edges", random, k) for k in (1, 2)] + [gap("heaviest edges", own, k) for k in (1, 2)]
    made += [gap("graph, heads averaged", own / n, k, rounds=n, against=a) for k in by_k for n in (1, 2) for a in ("full", "one round")]
    for k, d in by_k.items():
        made += [gap("graph", d, k, logits="plain"), gap("nystrom", rival, k, logits="plain")]
    return [*made, replace(gap("full", 0, None, logits="plain"), frobenius=[], spectral=[], mass=[])]


def instance(diminishing: float, ratio: float) -> dict[str, list[float]]:
    return {
        "first chain diminishes": [1.0 if i < diminishing * CLIPS else 0.0 for i in range(CLIPS)],
        "chains that diminish": flat(diminishing),
        "first gain is not negative": [1.0] * CLIPS,
        "gains that are not negative": flat(1.0),
        "greedy, ratio": [1.0] * (CLIPS - 1) + [math.nan],
        "best by utility, ratio": flat(ratio),
        "at random, mean ratio": flat(0.3),
        "greedy, loss in nats": [0.0] * CLIPS,
        "best by utility, loss in nats": flat(0.1),
        "best by utility, share of choices it beats": flat(0.8),
    }


def found(**changes: object) -> Found:
    scores = {"utility": flat(0.5), "random": WAVE, "attention": flat(0.2), "attention on all pairs": flat(0.5)}
    frames = {
        "utility, sum": flat(0.4),
        "utility, largest": flat(-0.4),
        "random": WAVE,
        "attention, sum": flat(0.1),
        "count of kept tokens": flat(0.0),
    }
    prices = [
        (price, {"expected kept fraction": flat(kept), "share above one half": flat(0.1), "top-1": flat(0.9)})
        for price, kept in ((0.1, 0.5), (1, 0.1))
    ]
    usual = Found(
        data="digits:test", budget=0.25, own_k=2, own_window=0, groups=list(range(CLIPS)),
        pairs={"kept": scores}, frames=frames, price=prices, gaps={"kept": gaps()},
        sets={"alone": {f: instance(0.5, 0.9) for f in ("log probability", "smoothed")}},
        exponents={("MACs of edges", "frames"): Estimate(value=1.0), ("MACs of edges" + LAST, "frames"): Estimate(value=1.3)},
    )  # fmt: skip
    return replace(usual, **changes)  # type: ignore[arg-type]


def verdict(made: list[Claim], part: str) -> bool | None:
    (claim,) = (c for c in made if part in c.claim)
    return claim.holds


def test_means_leave_out_what_is_not_defined_and_say_so() -> None:
    values = [0.25, 0.75, math.nan, 0.5, 0.25, 0.75, 0.5]
    mean = found().mean(values)
    assert (mean.value, mean.samples, mean.reason) == (0.5, (0.25, 0.75, 0.5, 0.25, 0.75, 0.5), "not defined on 1 clips")
    assert mean.low is not None and mean.high is not None
    assert 0.25 <= mean.low <= 0.5 <= mean.high <= 0.75
    assert found().mean([math.nan] * 3).value is None
    assert found().difference(flat(0.5), flat(0.2)).low == pytest.approx(0.3)
    few = found(groups=[0, 0, 1, 2, 3, 4]).mean([0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
    assert (few.value, few.low, above(few), shown(few)) == (1 / 6, None, None, "0.167")
    assert "no interval from 5 groups" in few.reason


def test_clips_of_one_group_are_drawn_together() -> None:
    values = [1.0] * 20 + [0.0] * 20
    alone, together = found().mean(values), found(groups=[i // 5 for i in range(CLIPS)]).mean(values)
    assert None not in (alone.low, alone.high, together.low, together.high)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)  # type: ignore[operator]


def test_shares_have_the_exact_interval() -> None:
    all_of_five = share([1.0] * 5 + [math.nan])
    assert (all_of_five.value, all_of_five.high) == (1.0, 1.0)
    assert all_of_five.low == pytest.approx(0.025 ** (1 / 5))
    assert share([0.0] * 8).high == pytest.approx(1 - 0.025 ** (1 / 8))
    assert share([math.nan]).value is None
    assert at_least([0.5, 0.7, math.nan], 0.6)[:2] == [0.0, 1.0]
    assert median([3.0, math.nan, 1.0, 2.0]).value == 2


def test_an_interval_around_the_bound_decides_nothing() -> None:
    wide, high, touching = Estimate(value=0.1, low=-0.1, high=0.3), Estimate(value=0.2, low=0.1, high=0.3), Estimate(value=0.0, low=0.0, high=0.0)
    assert [above(e) for e in (wide, high, touching)] == [None, True, False]
    assert [below(e) for e in (wide, high, touching)] == [None, False, False]
    assert above(Estimate.missing("too few")) is None
    assert [every(v) for v in ([True, True], [True, None], [None, False])] == [True, None, False]


def test_planted_numbers_have_their_verdicts() -> None:
    made = claims(found())
    assert verdict(made, "pairs, kept: utility ranks") is True
    assert verdict(made, "pairs, kept: better than attention on all pairs") is False  # the same to the last digit
    assert verdict(made, "frames, utility, sum: utility ranks") is True
    assert verdict(made, "frames, utility, largest: utility ranks") is False
    assert verdict(made, "falls with the price") is True
    assert verdict(made, "meets the budget") is True
    assert verdict(made, "attention over its reach") is True
    assert verdict(made, "approximates attention") is True
    assert verdict(made, "as many at random") is True
    assert verdict(made, "nearer than nystrom") is True
    assert verdict(made, "nearer to as many rounds") is True
    assert verdict(made, "linear in frames") is False  # by its last doubling
    assert verdict(made, "gains diminish") is False
    assert verdict(made, "greedy reaches") is True
    assert verdict(made, "the best by utility reach") is True
    assert verdict(made, "beat a choice at random") is True


def test_numbers_the_other_way_have_the_other_verdicts() -> None:
    bad = found(gaps={"kept": gaps(own=0.7, rival=0.4, random=0.3)}, sets={"alone": {f: instance(1.0, 0.4) for f in ("log probability", "smoothed")}})
    made = claims(replace(bad, price=list(bad.price)[:1], budget=0.7))
    assert verdict(made, "falls with the price") is None
    assert verdict(made, "approximates attention") is False
    assert verdict(made, "as many at random") is False
    assert verdict(made, "nearer than nystrom") is False
    assert verdict(made, "gains diminish") is True
    assert verdict(made, "the best by utility reach") is False
    assert verdict(claims(replace(bad, price=list(reversed(bad.price)), budget=0.7)), "meets the budget") is False
    rising = [(price, by_clip) for (price, _), (_, by_clip) in zip(found().price, reversed(found().price), strict=True)]
    assert verdict(claims(found(price=rising)), "falls with the price") is False


def test_a_model_without_a_graph_says_so() -> None:
    bare = found(gaps=None, exponents={})
    assert [(c.found, c.holds) for c in claims(bare) if c.check.startswith("2")] == [("no graph", None)]
    assert numbers(bare)["graph"] == {"reason": "no graph"}


def test_the_table_says_it_plainly() -> None:
    text = table(claims(found()), {"data": "digits:test"})
    assert "| alone: marginal gains diminish | **does not hold** |" in text
    assert "| kept: with k = all in one window it is attention over its reach | **holds** |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_numbers_are_json_and_figures_are_drawn(tmp_path: Path) -> None:
    import json

    json.dumps(to_json(numbers(found())), allow_nan=False)
    growth = [
        {"of": name, "axis": axis, "at": at, "macs": at * 100, "blocks_ms": None, "reason": ""}
        for name in ("edges", "full attention") for axis in ("frames", "tokens a frame") for at in (8, 16)
    ]  # fmt: skip
    timed = [{**row, "blocks_ms": (1.0, 2.0, 3.0)} for row in growth]
    for rows in (growth, timed):
        files = theory_figures.draw(found(), rows, tmp_path)
        assert [f.name for f in files] == ["theory-graph.png", "theory-sets.png", "theory-utility.png"]
        assert all(f.read_bytes().startswith(b"\x89PNG") for f in files)
    assert len(theory_figures.draw(found(gaps=None, price=[(0.3, found().price[0][1])]), [], tmp_path)) == 2
