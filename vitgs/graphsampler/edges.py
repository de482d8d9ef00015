"""Who is whose neighbour in the graph over kept tokens: pure functions, without parameters.

Nodes are in time order and cut into chunks; a node looks for neighbours in its own chunk and `window` chunks to either side, so the search is
linear in the number of frames. Edges are the k most similar nodes of other frames (by the appearance of their patches) and the nearest nodes in time.
The search goes by blocks of nodes, each of which sees a run of candidates: nothing is copied for it, and its scores stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# Relative features in units of order 1: frames, half cells, and velocity in twelfths of a cell a frame. Smaller units made the graph useless.
RELATIVE_SCALE = (1.0, 2.0, 2.0, 12.0, 12.0, 1.0)
RELATIVE = len(RELATIVE_SCALE)
# What a frame away counts for among temporal neighbours, in cells.
FRAME_CELLS = 4.0
# Parts of a cell and of a frame that positions are told apart by when distances are compared.
GRID = 2
# Most elements of what a block of nodes is worked on with: what a core's cache holds on a CPU, and few launches elsewhere.
CACHED, LAUNCHED = 2**20, 2**26


@dataclass(frozen=True)
class Edges:
    """`node_BSE`: the neighbours of each node, itself first; `valid_BSE`: False for a place that no neighbour fills.

    `similarity_BSE`: cosine of appearance; `relative_BSER`: where and when the neighbour is, seen from the node.
    """

    node_BSE: Tensor
    valid_BSE: Tensor
    similarity_BSE: Tensor
    relative_BSER: Tensor


@dataclass(frozen=True)
class Block:
    """Nodes `first` up to `last`, which look for neighbours among nodes `low` up to `high`."""

    first: int
    last: int
    low: int
    high: int


def block_rows(width: int, device: torch.device) -> int:
    """Rows of `width` elements that are worked on at once; all of them where a compiler takes care of that."""
    if torch.compiler.is_compiling():
        return LAUNCHED
    return max(1, (CACHED if device.type == "cpu" else LAUNCHED) // width)


def blocks(count: int, chunk: int, window: int, most: int) -> Iterator[Block]:
    """Blocks of at most `most` nodes. Those of `window` chunks in a row see the same run of candidates, half as much again as one chunk needs, so
    how many fit into a block picks nobody among equally near nodes. `window` 0: every node is a candidate.
    """
    group = window * chunk if window else count
    for start in range(0, count, group):
        end = min(start + group, count)
        low, high = (max(start - group, 0), min(-(-end // chunk) * chunk + group, count)) if window else (0, count)
        for first in range(start, end, most):
            yield Block(first, min(first + most, end), low, high)


def relative_features(position_BS3: Tensor, other_BSE3: Tensor) -> Tensor:
    """(dt, dy, dx, dy/dt, dx/dt, squared distance) scaled to order 1 and squashed gently, `(B, S, E, 6)`."""
    delta = other_BSE3 - position_BS3.unsqueeze(2)
    dt, dyx = delta[..., :1], delta[..., 1:]
    velocity = dyx / torch.where(dt == 0, torch.ones_like(dt), dt)
    squared = dyx.square().sum(dim=-1, keepdim=True)
    scaled = torch.cat([dt, dyx, velocity, squared], dim=-1) * delta.new_tensor(RELATIVE_SCALE)
    return torch.asinh(scaled)


def nearness(position_BQ3: Tensor, other_BW3: Tensor) -> Tensor:
    """How near candidates are in time and place, `(B, Q, W)`: minus the squared distance in cells, up to a term of the node's own.

    Exact for nodes that see up to 360 frames: positions count from the first node in half cells and half frames, so every term is a whole
    multiple of a quarter and every sum is below 2^24 of them. Rounding thus tells no two equally near nodes apart, whatever the time of the clip.
    """
    # Float32 in every precision of the model: halves couldn't hold the sums, and autocast, which meta tensors don't have, would make halves of them.
    device = position_BQ3.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        first = position_BQ3[:, :1]
        scale = torch.tensor((FRAME_CELLS, 1.0, 1.0), device=first.device)
        here, there = (((value - first).float() * GRID).round() * (scale / GRID) for value in (position_BQ3, other_BW3))
        return torch.baddbmm(there.square().sum(dim=-1).unsqueeze(1), here, there.transpose(1, 2), beta=-1, alpha=2)


def build_edges(appearance_BSD: Tensor, position_BS3: Tensor, *, k: int, temporal: int, chunk: int, window: int) -> Edges:
    """Edges of every node: itself, its `k` most similar and its `temporal` nearest nodes of other frames among its candidates.

    N(i) = {i} + top-k_j cos(a_i - mean a, a_j - mean a) + top-temporal_j -(16 dt^2 + dy^2 + dx^2), over j of other frames within the window.
    Selection has no gradient. Cost O(S W (D + 3)) for W candidates a node, W fixed by chunk and window.
    """
    with torch.no_grad():
        batch, count = appearance_BSD.shape[:2]
        unit_BSD = F.normalize(appearance_BSD - appearance_BSD.mean(dim=1, keepdim=True), dim=-1)
        reach = window if (window + 1) * chunk < count else 0
        sight = min((2 * reach + 1) * chunk, count) if reach else count
        plan = blocks(count, chunk, reach, block_rows(batch * sight, unit_BSD.device))
        found = [_search(unit_BSD, position_BS3, block, min(k, sight), min(temporal, sight), chunk, reach) for block in plan]
        node, valid, alike = found[0] if len(found) == 1 else (torch.cat(part, dim=1) for part in zip(*found, strict=True))
        itself = torch.arange(count, device=node.device)[None, :, None].expand(batch, -1, 1)
        node, valid = torch.cat([itself, node], dim=2), F.pad(valid, (1, 0), value=True)
        return Edges(
            node_BSE=node,
            valid_BSE=valid,
            similarity_BSE=F.pad(alike, (1, 0), value=1.0).masked_fill(~valid, 0.0),
            relative_BSER=relative_features(position_BS3, neighbours(position_BS3, node)),
        )


def _search(unit_BSD: Tensor, position_BS3: Tensor, block: Block, k: int, temporal: int, chunk: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """For each node of a block the others it is joined to, which of these places are filled, and the cosines, each `(B, Q, k + temporal)`."""
    own, seen = slice(block.first, block.last), slice(block.low, block.high)
    here, there = position_BS3[:, own], position_BS3[:, seen]
    closed = here[..., :1] == there[..., 0].unsqueeze(1)
    if window:
        chunk_S = torch.arange(position_BS3.shape[1], device=here.device) // chunk
        closed = closed | ((chunk_S[own, None] - chunk_S[seen]).abs() > window)
    similarity = unit_BSD[:, own] @ unit_BSD[:, seen].transpose(1, 2)
    lowest = torch.finfo(similarity.dtype).min
    like = similarity.masked_fill_(closed, lowest).topk(min(k, closed.shape[2]), dim=2)
    closeness = nearness(here, there)
    furthest = torch.finfo(closeness.dtype).min
    near = closeness.masked_fill_(closed, furthest).topk(min(temporal, closed.shape[2]), dim=2)
    # A temporal neighbour that is also among the most similar counts once.
    twice = (near.indices.unsqueeze(3) == like.indices.unsqueeze(2)).any(dim=3)
    place = torch.cat([like.indices, near.indices], dim=2)
    valid = torch.cat([like.values > lowest, (near.values > furthest) & ~twice], dim=2)
    alike = torch.cat([like.values, similarity.gather(2, near.indices)], dim=2)
    spare = k + temporal - place.shape[2]
    return (F.pad(place + block.low, (0, spare)), F.pad(valid, (0, spare)), F.pad(alike, (0, spare))) if spare else (place + block.low, valid, alike)


def neighbours(value_BSD: Tensor, node_BSE: Tensor) -> Tensor:
    """The values of each node's neighbours, `(B, S, E, D)`."""
    width = value_BSD.shape[2]
    return value_BSD.reshape(-1, width).index_select(0, flat_nodes(node_BSE, value_BSD.shape[1]).flatten()).view(*node_BSE.shape, width)


def flat_nodes(node_BSE: Tensor, count: int) -> Tensor:
    """The same nodes as rows of all clips of a batch put one behind the other, `count` nodes each."""
    batch = node_BSE.shape[0]
    return node_BSE if batch == 1 else node_BSE + torch.arange(batch, device=node_BSE.device)[:, None, None] * count
