"""What `theory` runs: the checks over batches of clips, and the growth of the graph's MACs and time with frames and tokens."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from vitgs.cli.checkpoint import sampler
from vitgs.data.source import Clips, Source
from vitgs.executor.machine_lock import machine_lock
from vitgs.graphsampler import theory_checks as checks
from vitgs.graphsampler import theory_gaps
from vitgs.graphsampler.model import GraphSampler
from vitgs.graphsampler.theory import check_model
from vitgs.graphsampler.theory_graph import full_attention, message_passing
from vitgs.measure import clock
from vitgs.measure.formula import FormulaCounter
from vitgs.record import Estimate
from vitgs.report.theory import LAST, Found

SEED = 0
SPLITS = {"half": 2, "fifth": 5}
FRAMES, TOKENS = (8, 16, 32, 64, 128), (4, 8, 16, 32, 64)
FIXED_TOKENS, FIXED_FRAMES = 8, 8
NARROW = 2  # chunks to either side, beside the model's own window
EDGES, FULL = "edges and messages", "full attention"


def load(checkpoint: Path, about: Mapping[str, Any], budget: float | None) -> GraphSampler:
    """The model of a checkpoint, in evaluation mode, if the theory can be checked on it."""
    model = sampler(checkpoint, about, "theory needs graphsampler, whose claims it checks", budget)
    check_model(model)
    return model.requires_grad_(False)


def settings(clips: int, found: Found) -> dict[str, Any]:
    """What the numbers depend on beside model and data."""
    return {
        "clips": found.clips,
        "clips_of_sets": _part(clips, "half"),
        "clips_of_all_pairs": _part(clips, "fifth"),
        "seed": SEED,
        "candidates": checks.CANDIDATES,
        "chosen": checks.CHOSEN,
        "chains_a_clip": checks.CHAINS,
        "tolerance_nats": checks.TOLERANCE,
        "least_gain_nats": checks.LEAST_GAIN,
    }


def measured(
    models: Sequence[GraphSampler],
    prices: Sequence[float],
    source: Source,
    clips: int,
    budget: float | None,
    *,
    seconds: float | None,
    tell: Callable[[str], None],
) -> tuple[Found, list[dict[str, Any]]]:
    """All three checks on the first model, the price on all, and the rows of the growth (`scaling`), timed for `seconds` where that isn't None."""
    model = models[0]
    share = model.budget if budget is None else budget
    parts = list(source.evaluation(clips))
    half, fifth = _first(parts, _part(clips, "half")), _first(parts, _part(clips, "fifth"))
    generator, rng = torch.Generator().manual_seed(SEED), random.Random(SEED)
    tell("utility: leave one out")
    pairs = {
        f"{pool}{'' if bias else ', utility not as bias'}": _joined(
            [checks.correlations(model, part.clip_BTCHW, part.label_B, at, generator, bias=bias) for part in some]
        )
        for pool, some, at in (("kept", parts, share), ("all", fifth, 1.0))
        for bias in (True, False)
    }
    frames = _joined([checks.frame_correlations(model, part.clip_BTCHW, part.label_B, share, generator) for part in parts])
    tell("price of utility")
    by_price = [
        (price, _joined([checks.priced(m, part.clip_BTCHW, part.label_B, share) for part in parts])) for m, price in zip(models, prices, strict=True)
    ]
    tell("graph against full attention")
    gaps = None
    if model.graph is not None:
        gaps = {
            pool: theory_gaps.joined([theory_gaps.gaps(model, part.clip_BTCHW, at, generator) or [] for part in some])
            for pool, some, at in (("kept", parts, share), ("all", fifth, 1.0))
        }
    tell("submodularity")
    sets = {}
    for kind, context in (("alone", False), ("in context", True)):
        found = [checks.submodularity(model, part.clip_BTCHW, part.label_B, share, rng, context=context) for part in half]
        if found[0]:
            sets[kind] = {name: _joined([one[name] for one in found]) for name in found[0]}
    tell("growth with frames and tokens")
    rows, exponents = growth(model, seconds) if model.graph is not None else ([], {})
    groups = [int(group) for part in parts for group in part.group_B]
    return Found(
        data=source.name, budget=share, own_k=model.k, own_window=theory_gaps.own_window(model), groups=groups,
        pairs=pairs, frames=frames, price=by_price, gaps=gaps, sets=sets, exponents=exponents,
    ), rows  # fmt: skip


def _part(clips: int, which: str) -> int:
    return max(1, clips // SPLITS[which])


def _first(parts: Sequence[Clips], count: int) -> list[Clips]:
    """The first `count` clips of some batches."""
    found: list[Clips] = []
    for part in parts:
        if count > 0:
            found.append(part.first(count))
            count -= len(found[-1])
    return found


def _joined(parts: Sequence[checks.ByClip]) -> checks.ByClip:
    """The numbers of several batches as one list each."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def growth(model: GraphSampler, seconds: float | None) -> tuple[list[dict[str, Any]], dict[tuple[str, str], Estimate]]:
    """MACs, and ms where asked, of building the edges and passing messages over T frames of N kept tokens; and the exponents in T and in N, fitted
    on logarithms. The model's own window, and a narrow one; beside them the same rounds with attention over all nodes."""
    assert model.graph is not None
    graph, rows = model.graph, []
    windows = {f"{EDGES}, window {window or 'of the whole clip'}": window for window in dict.fromkeys((model.window, NARROW))}
    exponents: dict[tuple[str, str], Estimate] = {}
    for axis, grid in (("frames", FRAMES), ("tokens a frame", TOKENS)):
        shapes = [(at, FIXED_TOKENS) if axis == "frames" else (FIXED_FRAMES, at) for at in grid]
        calls: dict[tuple[str, int], Callable[[], object]] = {}
        for at, (frames, tokens) in zip(grid, shapes, strict=True):
            for name, window in windows.items():
                calls[name, at] = message_passing(graph, frames, tokens, k=model.k, window=window)
            if graph.layers[0].message == "attention":
                calls[FULL, at] = full_attention(graph, frames, tokens)
        macs = {key: _macs(call) for key, call in calls.items()}
        timed = {} if seconds is None else _timed(calls, seconds / 2)
        for name in dict.fromkeys(name for name, _ in calls):
            for sizes, suffix in ((grid, ""), (grid[-2:], LAST)):
                exponents[f"MACs of {name}{suffix}", axis] = Estimate(value=slope(sizes, [macs[name, at] for at in sizes]), method="least squares")
                if timed:
                    rounds = zip(*(timed[name, at] for at in sizes), strict=True)
                    exponents[f"time of {name}{suffix}", axis] = clock.estimate([slope(sizes, one) for one in rounds])
        rows += [
            {"of": name, "axis": axis, "at": at, "macs": count, "blocks_ms": timed.get((name, at)), "reason": "" if timed else "not timed: no --time"}
            for (name, at), count in macs.items()
        ]
    return rows, exponents


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """The exponent b of y = a x^b by least squares on logarithms."""
    u, v = ([math.log(value) for value in side] for side in (x, y))
    mean_u, mean_v = sum(u) / len(u), sum(v) / len(v)
    return sum((a - mean_u) * (b - mean_v) for a, b in zip(u, v, strict=True)) / sum((a - mean_u) ** 2 for a in u)


def _macs(call: Callable[[], object]) -> int:
    with FormulaCounter() as counter:
        call()
    return counter.macs


def _timed(calls: Mapping[tuple[str, int], Callable[[], object]], seconds: float) -> dict[tuple[str, int], tuple[float, ...]]:
    """ms a call of each block, all calls interleaved, so that one round gives one exponent; nothing else of ours runs meanwhile."""
    named = {f"{name} {at}": (name, at) for name, at in calls}
    by_name = {text: calls[key] for text, key in named.items()}
    with machine_lock(alone=True):
        timings = clock.time_interleaved(by_name, target_half_width=0.02, min_blocks=10, max_seconds=seconds, rng_seed=SEED)
    return {named[text]: timing.blocks_ms for text, timing in timings.items()}
