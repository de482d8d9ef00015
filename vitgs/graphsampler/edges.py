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

from vitgs.backbone.runs import may_read
from vitgs.graphsampler.bags import flat_rows
from vitgs.graphsampler.long_search import FRAME_CELLS, Seen, close, see
from vitgs.graphsampler.relative import Grid, looked_up, relative_features

# Parts of a cell and of a frame that positions are told apart by when distances are compared.
GRID = 2
# Among how many candidates it pays to read where frames and nodes lie.
LONG_RUN = 640
# Most dimensions that appearance is compared in.
SEARCH_WIDTH = 128
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

    def of(self, clips: slice) -> Edges:
        """Those of some clips of the batch."""
        return Edges(self.node_BSE[clips], self.valid_BSE[clips], self.similarity_BSE[clips], self.relative_BSER[clips])


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


def blocks(count: int, chunk: int, window: int, most: int, group: int) -> Iterator[Block]:
    """Blocks of at most `most` nodes. Those of `group` chunks in a row see the same run of candidates. `window` 0: every node is a candidate."""
    together = group * chunk if window else count
    for start in range(0, count, together):
        end = min(start + together, count)
        low, high = (max(start - window * chunk, 0), min((-(-end // chunk) + window) * chunk, count)) if window else (0, count)
        for first in range(start, end, most):
            yield Block(first, min(first + most, end), low, high)


def nearness(position_BW3: Tensor, own: slice) -> Tensor:
    """How near candidates are in time and place, `(B, Q, W)`, to those among them that are `own`: minus the squared distance in cells, up to a term
    of the node's own.

    Exact for nodes that see up to 360 frames: positions count from the first node in half cells and half frames, so every term is a whole
    multiple of a quarter and every sum is below 2^24 of them. Rounding thus tells no two equally near nodes apart, whatever the time of the clip.
    """
    # Float32 in every precision of the model: halves couldn't hold the sums, and autocast, which meta tensors don't have, would make halves of them.
    device = position_BW3.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        scale = torch.tensor((FRAME_CELLS / GRID, 1.0 / GRID, 1.0 / GRID), device=position_BW3.device)
        there = ((position_BW3 - position_BW3[:, own][:, :1]).float() * GRID).round() * scale
        return torch.baddbmm(there.square().sum(dim=-1).unsqueeze(1), there[:, own], there.transpose(1, 2), beta=-1, alpha=2)


def search_basis(width: int) -> Tensor:
    """The directions in which appearance of more than `SEARCH_WIDTH` dimensions is compared, `(D, SEARCH_WIDTH)`: orthonormal, drawn at random but
    always the same. Cosines of like nodes hardly change by it (after Johnson and Lindenstrauss 1984): see DECISIONS.md.
    """
    drawn = torch.randn(width, SEARCH_WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64, device="cpu")
    basis: Tensor = torch.linalg.qr(drawn).Q.to(torch.get_default_dtype())
    return basis


def build_edges(appearance_BSD: Tensor, position_BS3: Tensor, *, k: int, temporal: int, chunk: int, window: int, grid: Grid | None = None) -> Edges:
    """Edges of every node: itself, its `k` most similar and its `temporal` nearest nodes of other frames among its candidates.

    N(i) = {i} + top-k_j cos(a_i - mean a, a_j - mean a) + top-temporal_j -(16 dt^2 + dy^2 + dx^2), over j of other frames within the window.
    Selection has no gradient. Cost O(S W (D + 3)) for W candidates a node, W fixed by chunk and window. `grid`: in whose cells all nodes lie, None
    where they may lie between cells.
    """
    with torch.no_grad():
        batch, count = appearance_BSD.shape[:2]
        unit_BSD = F.normalize(appearance_BSD - appearance_BSD.mean(dim=1, keepdim=True), dim=-1)
        reach = window if (window + 1) * chunk < count else 0
        sight = min((2 * reach + 1) * chunk, count) if reach else count
        places = min(k, sight), min(temporal, sight)
        rows = block_rows(sight, unit_BSD.device)
        # A clip that fills a block goes alone; of its chunks as many go together as a block holds, whatever the batch.
        clips = batch if count <= rows else 1
        plan = list(blocks(count, chunk, reach, max(1, rows // clips), max(1, min(reach, rows // chunk))))
        readable = clips == 1 and places[1] and sight >= LONG_RUN and may_read(position_BS3)
        each = [(unit_BSD, position_BS3)] if clips == batch else zip(torch.split(unit_BSD, 1), torch.split(position_BS3, 1), strict=True)
        found = []
        for unit, position in each:
            seen = see(position, places[1], chunk, reach) if readable else None
            parts = [_search(unit, position, block, *places, chunk, reach, seen) for block in plan]
            found.append(parts[0] if len(parts) == 1 else [torch.cat(part, dim=1) for part in zip(*parts, strict=True)])
        node, valid, alike = found[0] if len(found) == 1 else (torch.cat(part) for part in zip(*found, strict=True))
        itself = torch.arange(count, device=node.device)[None, :, None].expand(batch, -1, 1)
        node, valid = torch.cat([itself, node], dim=2), F.pad(valid, (1, 0), value=True)
        relative = None if grid is None else looked_up(position_BS3, node, grid)
        return Edges(
            node_BSE=node,
            valid_BSE=valid,
            similarity_BSE=F.pad(alike, (1, 0), value=1.0).masked_fill(~valid, 0.0),
            relative_BSER=relative_features(position_BS3, neighbours(position_BS3, node)) if relative is None else relative,
        )


def _closed(position_BS3: Tensor, block: Block, chunk: int, window: int) -> Tensor:
    """Which candidates a node of the block may not be joined to, `(B, Q, W)`: those of its own frame, and of chunks out of its window."""
    time_BS = position_BS3[..., 0]
    closed_BQW = time_BS[:, block.first : block.last, None] == time_BS[:, None, block.low : block.high]
    chunks = (block.last - 1) // chunk - block.low // chunk, (block.high - 1) // chunk - block.first // chunk
    if not window or max(chunks) <= window:
        return closed_BQW
    # By bounds of each row, so that no whole number is kept for a pair.
    own_Q, seen_W = (torch.arange(*span, device=time_BS.device, dtype=torch.int32) for span in ((block.first, block.last), (block.low, block.high)))
    start_Q1 = (own_Q // chunk * chunk).unsqueeze(1)
    return closed_BQW | (seen_W < start_Q1 - window * chunk) | (seen_W >= start_Q1 + (window + 1) * chunk)


def _search(
    unit_BSD: Tensor, position_BS3: Tensor, block: Block, k: int, temporal: int, chunk: int, window: int, seen: Seen | None
) -> tuple[Tensor, Tensor, Tensor]:
    """For each node of a block the others it is joined to, which of these places are filled, and the cosines, each `(B, Q, k + temporal)`."""
    own, run, candidates = slice(block.first, block.last), slice(block.low, block.high), block.high - block.low
    similarity = unit_BSD[:, own] @ unit_BSD[:, run].transpose(1, 2)
    lowest = torch.finfo(similarity.dtype).min
    if seen is None:
        closed = _closed(position_BS3, block, chunk, window)
        similarity.masked_fill_(closed, lowest)
        near, there_is = _nearest(position_BS3, block, closed, min(temporal, candidates))
    else:
        close(similarity, block.first, block.low, seen, chunk, window)
        near = seen.nearest_1SE[:, own] - block.low
        there_is = torch.ones_like(near, dtype=torch.bool)
    like = similarity.topk(min(k, candidates), dim=2)
    # A temporal neighbour that is also among the most similar counts once.
    twice = (near.unsqueeze(3) == like.indices.unsqueeze(2)).any(dim=3)
    place = torch.cat([like.indices, near], dim=2)
    valid = torch.cat([like.values > lowest, there_is & ~twice], dim=2)
    alike = torch.cat([like.values, similarity.gather(2, near)], dim=2)
    spare = k + temporal - place.shape[2]
    return (F.pad(place + block.low, (0, spare)), F.pad(valid, (0, spare)), F.pad(alike, (0, spare))) if spare else (place + block.low, valid, alike)


def _nearest(position_BS3: Tensor, block: Block, closed_BQW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The nearest open candidates in time and place, and which of these places are filled, each `(B, Q, count)`."""
    closeness = nearness(position_BS3[:, block.low : block.high], slice(block.first - block.low, block.last - block.low))
    furthest = torch.finfo(closeness.dtype).min
    near = closeness.masked_fill_(closed_BQW, furthest).topk(count, dim=2)
    return near.indices, near.values > furthest


def neighbours(value_BSD: Tensor, node_BSE: Tensor) -> Tensor:
    """The values of each node's neighbours, `(B, S, E, D)`."""
    width = value_BSD.shape[2]
    return value_BSD.reshape(-1, width).index_select(0, flat_rows(node_BSE, value_BSD.shape[1]).flatten()).view(*node_BSE.shape, width)
