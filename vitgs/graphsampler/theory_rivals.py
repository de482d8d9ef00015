"""What else the graph's arithmetic could buy: the attention matrix by Linformer, Performer and Nystrom, and the MACs of each.

MACs are of one round and head: scores, sums and what makes them cheap; q, k, v themselves, softmax and the bias of utility cost all of them the same.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitgs.backbone.cheap_attention import favor_attend, linformer_attend, nystrom_attend, orthogonal_directions, segment_projection

NYSTROM_ITERATIONS = 6


def graph_macs(nodes: int, degree: float, candidates: int, width: int, appearance: int, shared_by: int) -> float:
    """Scores and sums over `degree` edges a node, and a share of the search among `candidates`, which `shared_by` rounds and heads have in common."""
    return 2 * nodes * degree * width + nodes * candidates * (appearance + 3) / shared_by


def full_macs(nodes: int, width: int) -> int:
    """Scores and sums over all pairs."""
    return 2 * nodes * nodes * width


def linformer_macs(nodes: int, width: int, rank: int) -> int:
    """Two projections over the sequence, scores, sums."""
    return 4 * nodes * rank * width


def performer_macs(nodes: int, width: int, features: int) -> int:
    """Features of queries and keys, the summary of keys and values, what queries read of it and of the norm."""
    return 4 * nodes * features * width + nodes * features


def nystrom_macs(nodes: int, width: int, landmarks: int) -> int:
    """Three score matrices, the inverse by `NYSTROM_ITERATIONS` of four products, and the values from right to left."""
    return 4 * nodes * landmarks * width + 2 * landmarks**2 * width + 4 * NYSTROM_ITERATIONS * landmarks**3


def affordable(macs: Callable[[int, int, int], int], limit: float, nodes: int, width: int) -> int:
    """The largest rank, features or landmarks whose MACs are at most `limit`; 1 when none are."""
    best = 1
    while macs(nodes, width, best + 1) <= limit:
        best += 1
    return best


def linformer_random(q: Tensor, k: Tensor, bias_BS: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """Linformer's matrix with one random projection for keys and values, entries N(0, 1/rank) (Wang 2020, section 4)."""
    return _linformer(q, k, bias_BS, torch.randn(k.shape[-2], rank, generator=generator) / rank**0.5)


def linformer_means(q: Tensor, k: Tensor, bias_BS: Tensor, rank: int, generator: torch.Generator) -> Tensor:
    """The same with means over runs of tokens, which is where Linformer's learned projection may start."""
    del generator
    return _linformer(q, k, bias_BS, segment_projection(k.shape[-2], min(rank, k.shape[-2])))


def _linformer(q: Tensor, k: Tensor, bias_BS: Tensor, projection_SK: Tensor) -> Tensor:
    """The bias rides along as one more channel, as in `attend`, so that mixtures of keys carry the mixture of biases."""
    width = q.shape[-1]
    q = torch.cat([q, torch.ones_like(q[..., :1])], dim=-1) * ((width + 1) / width) ** 0.5
    k = torch.cat([k, (bias_BS * width**0.5)[:, None, :, None].expand(*k.shape[:-1], 1)], dim=-1)
    return _as_matrix(linformer_attend(q, k, _identity(k), projection_SK, projection_SK), q)


def performer(q: Tensor, k: Tensor, bias_BS: Tensor, features: int, generator: torch.Generator) -> Tensor:
    """FAVOR+ with orthogonal random features."""
    return _as_matrix(favor_attend(q, k, _identity(k), orthogonal_directions(features, q.shape[-1], generator), bias_BS), q)


def nystrom(q: Tensor, k: Tensor, bias_BS: Tensor, landmarks: int, generator: torch.Generator) -> Tensor:
    """Segment means as landmarks."""
    del generator
    return _as_matrix(nystrom_attend(q, k, _identity(k), landmarks, NYSTROM_ITERATIONS, bias_BS), q)


Rival = Callable[[Tensor, Tensor, Tensor, int, torch.Generator], Tensor]
RIVALS: dict[str, tuple[Rival, Callable[[int, int, int], int]]] = {
    "linformer, random projection": (linformer_random, linformer_macs),
    "linformer, segment means": (linformer_means, linformer_macs),
    "performer": (performer, performer_macs),
    "nystrom": (nystrom, nystrom_macs),
}


def _identity(k: Tensor) -> Tensor:
    return torch.eye(k.shape[-2]).expand(*k.shape[:-1], k.shape[-2])


def _as_matrix(out_BSX: Tensor, q: Tensor) -> Tensor:
    """`(B, S, h*S)` as `attend` gives it -> `(B, h, S, S)`."""
    return torch.unflatten(out_BSX, -1, (q.shape[1], -1)).transpose(1, 2)
