"""The graph's propagation matrices against full attention on a model and some clips: k, window and rounds growing, controls and rivals beside them.

What the matrices are is defined in `theory_graph`. One number a clip, no verdicts yet.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitgs.graphsampler.model import GraphSampler
from vitgs.graphsampler.theory import look
from vitgs.graphsampler.theory_graph import Rounds, distances, graph_mask, heaviest_mask, product, random_mask, restricted, rounds
from vitgs.graphsampler.theory_rivals import RIVALS, affordable, full_macs, graph_macs

NEIGHBOURS = (1, 2, 4, 8, 16)
WINDOWS = (0, 1, 2)
ROUNDS = (1, 2, 4)


@dataclass(frozen=True, kw_only=True)
class Gap:
    """How far one matrix is from another, by clip, the mean over heads and rounds.

    `matrix`: graph, random edges, heaviest edges, or a rival; `logits`: own or plain; `against`: full (as many rounds of attention over all nodes),
    limit (the same over all that the graph may reach) or one round (of full attention); `k` None: all. `mass`: the weight that the exact matrix
    gives to what the other reaches; `macs` of one round and head; `setting`: a rival's rank, features or landmarks.
    """

    matrix: str
    logits: str
    against: str
    k: int | None
    window: int
    rounds: int
    macs: float | None = None
    setting: int | None = None
    frobenius: list[float] = field(default_factory=list)
    spectral: list[float] = field(default_factory=list)
    mass: list[float] = field(default_factory=list)


def gaps(model: GraphSampler, clip_BTCHW: Tensor, budget: float, generator: torch.Generator) -> list[Gap] | None:
    """The graph's propagation matrix against full attention, k, window and rounds growing, and beside it the rivals; None without a graph."""
    found = rounds(model, look(model, clip_BTCHW, budget))
    if found is None:
        return None
    windows = sorted({*WINDOWS, own_window(model)})
    return [*_by_edges(found, model.k, windows, generator), *_by_rounds(found, model.k), *_rivals(found, model.k, generator)]


def own_window(model: GraphSampler) -> int:
    """The model's window, 0 where it holds the whole clip."""
    return 0 if model.window >= model.frames - 1 else model.window


def _grid(own_k: int, count: int) -> list[int | None]:
    """The numbers of neighbours, the model's own among them, as far as there are nodes; None for all."""
    return [*sorted(k for k in {*NEIGHBOURS, own_k} if k < count), None]


def _mask(r: Rounds, k: int | None, window: int) -> Tensor:
    return graph_mask(r.appearance_BSD, r.nodes.position_BN3, r.frames, k=k, window=window)


def _by_edges(r: Rounds, own_k: int, windows: Sequence[int], generator: torch.Generator) -> Iterator[Gap]:
    full, position = r.full_lBhSS, r.nodes.position_BN3
    limit = restricted(full, _mask(r, None, 0))
    weight_BSS = full.mean(dim=(0, 2))
    for k in _grid(own_k, r.nodes.count):
        for window in windows:
            mask = _mask(r, k, window)
            graph = restricted(full, mask)
            yield _gap("graph", "own", "full", k, window, graph, full, mask)
            yield _gap("graph", "own", "limit", k, window, graph, limit, mask)
        if k is not None:
            degree_BS = _mask(r, k, 0).sum(dim=2)
            for name, other in (
                ("random edges", random_mask(position, degree_BS, generator)),
                ("heaviest edges", heaviest_mask(weight_BSS, position, degree_BS)),
            ):
                yield _gap(name, "own", "full", k, 0, restricted(full, other), full, other)


def _by_rounds(r: Rounds, own_k: int) -> Iterator[Gap]:
    full_lBSS = r.full_lBhSS.mean(dim=2)
    for k in _grid(own_k, r.nodes.count):
        graph_lBSS = restricted(r.full_lBhSS, _mask(r, k, 0)).mean(dim=2)
        for count in ROUNDS:
            graph, full = product(graph_lBSS, count), product(full_lBSS, count)
            yield _gap("graph, heads averaged", "own", "full", k, 0, graph, full, graph > 0, count)
            yield _gap("graph, heads averaged", "own", "one round", k, 0, graph, full_lBSS[0], graph > 0, count)


def _rivals(r: Rounds, own_k: int, generator: torch.Generator) -> Iterator[Gap]:
    if r.plain_lBhSS is None or r.query_lBhSd is None or r.key_lBhSd is None:
        return
    nodes, width, plain = r.nodes.count, r.query_lBhSd.shape[-1], r.plain_lBhSS
    shared_by = r.query_lBhSd.shape[0] * r.query_lBhSd.shape[2]
    for k in _grid(own_k, nodes):
        mask = _mask(r, k, 0)
        macs = graph_macs(nodes, float(mask.sum(dim=2).float().mean()), nodes, width, r.appearance_BSD.shape[2], shared_by)
        yield _gap("graph", "plain", "full", k, 0, restricted(plain, mask), plain, mask, macs=macs)
        for name, (rival, cost) in RIVALS.items():
            setting = affordable(cost, macs, nodes, width)
            matrix = torch.stack([rival(q, key, r.bias_BS, setting, generator) for q, key in zip(r.query_lBhSd, r.key_lBhSd, strict=True)])
            yield _gap(name, "plain", "full", k, 0, matrix, plain, macs=cost(nodes, width, setting), setting=setting)
    yield Gap(matrix="full", logits="plain", against="full", k=None, window=0, rounds=1, macs=full_macs(nodes, width))


def _gap(
    matrix: str,
    logits: str,
    against: str,
    k: int | None,
    window: int,
    found: Tensor,
    exact: Tensor,
    mask_BSS: Tensor | None = None,
    count: int = 1,
    *,
    macs: float | None = None,
    setting: int | None = None,
) -> Gap:
    """Matrices are `(l, B, h, S, S)` or `(B, S, S)`."""
    frobenius, spectral = (_by_clip(value) for value in distances(found, exact))
    mass = [] if mask_BSS is None else _by_clip((exact * mask_BSS.unsqueeze(-3) if exact.dim() == 5 else exact * mask_BSS).sum(dim=-1).mean(dim=-1))
    return Gap(
        matrix=matrix, logits=logits, against=against, k=k, window=window, rounds=count, macs=macs, setting=setting,
        frobenius=frobenius, spectral=spectral, mass=mass,
    )  # fmt: skip


def _by_clip(value: Tensor) -> list[float]:
    """The mean over rounds and heads, `(l, B, h)` or `(B,)`."""
    by_clip: list[float] = (value if value.dim() == 1 else value.mean(dim=(0, 2))).tolist()
    return by_clip


def joined(parts: Sequence[list[Gap]]) -> list[Gap]:
    """The gaps of several batches as one."""
    for same in zip(*parts, strict=True):
        first, *others = same
        for other in others:
            for name in ("frobenius", "spectral", "mass"):
                getattr(first, name).extend(getattr(other, name))
    return parts[0] if parts else []
