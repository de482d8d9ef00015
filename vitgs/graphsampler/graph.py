"""The graph over kept tokens: who is whose neighbour, and how messages pass. Pure functions for the edges, modules for what is learned.

Nodes are in time order and cut into chunks; a node looks for neighbours in its own chunk and `window` chunks to either side, so the search is
linear in the number of frames. Edges are the k most similar nodes of other frames (by the appearance of their patches) and the nearest nodes in time.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Relative features in units of order 1: frames, half cells, and velocity in twelfths of a cell a frame. Smaller units made the graph useless.
RELATIVE_SCALE = (1.0, 2.0, 2.0, 12.0, 12.0, 1.0)
RELATIVE = len(RELATIVE_SCALE)
# What a frame away counts for among temporal neighbours, in cells.
FRAME_CELLS = 4.0
# Parts of a cell and of a frame that positions are told apart by when distances are compared.
GRID = 2


@dataclass(frozen=True)
class Edges:
    """`node_BSE`: the neighbours of each node, itself first; `valid_BSE`: False for a place that no neighbour fills.

    `similarity_BSE`: cosine of appearance; `relative_BSER`: where and when the neighbour is, seen from the node.
    """

    node_BSE: Tensor
    valid_BSE: Tensor
    similarity_BSE: Tensor
    relative_BSER: Tensor


def chunked_candidates(count: int, chunk: int, window: int, device: torch.device) -> Tensor:
    """The candidates of each chunk as node indices, `(chunks, (2 window + 1) chunk)`; -1 where there is none. `window` 0: every node."""
    chunks = -(-count // chunk)
    if window == 0 or window >= chunks - 1:
        return torch.arange(count, device=device).expand(1, count)
    first = (torch.arange(chunks, device=device) - window) * chunk
    index = first[:, None] + torch.arange((2 * window + 1) * chunk, device=device)
    return torch.where((index >= 0) & (index < count), index, -1)


def relative_features(position_BS3: Tensor, other_BSE3: Tensor) -> Tensor:
    """(dt, dy, dx, dy/dt, dx/dt, squared distance) scaled to order 1 and squashed gently, `(B, S, E, 6)`."""
    delta = other_BSE3 - position_BS3.unsqueeze(2)
    dt, dyx = delta[..., :1], delta[..., 1:]
    velocity = dyx / torch.where(dt == 0, torch.ones_like(dt), dt)
    squared = dyx.square().sum(dim=-1, keepdim=True)
    scaled = torch.cat([dt, dyx, velocity, squared], dim=-1) * delta.new_tensor(RELATIVE_SCALE)
    return torch.asinh(scaled)


def nearness(position_BCQ3: Tensor, other_BCW3: Tensor) -> Tensor:
    """How near candidates are in time and place, `(B, C, Q, W)`: minus the squared distance in cells, up to a term of the node's own.

    Exact for chunks that see up to 360 frames: positions count from the chunk's first node in half cells and half frames, so every term is a whole
    multiple of a quarter and every sum is below 2^24 of them. Rounding thus tells no two equally near nodes apart, whatever the time of the clip.
    """
    # Float32 in every precision of the model: halves couldn't hold the sums, and autocast, which meta tensors don't have, would make halves of them.
    device = position_BCQ3.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):
        first = position_BCQ3[:, :, :1]
        scale = torch.tensor((FRAME_CELLS, 1.0, 1.0), device=first.device)
        here, there = (((value - first).float() * GRID).round() * (scale / GRID) for value in (position_BCQ3, other_BCW3))
        return 2 * here @ there.transpose(2, 3) - there.square().sum(dim=-1).unsqueeze(2)


def build_edges(appearance_BSD: Tensor, position_BS3: Tensor, *, k: int, temporal: int, chunk: int, window: int) -> Edges:
    """Edges of every node: itself, its `k` most similar and its `temporal` nearest nodes of other frames among its candidates.

    Selection has no gradient. Cost O(S W (D + 3)) for W candidates a node, W fixed by chunk and window.
    """
    with torch.no_grad():
        count = appearance_BSD.shape[1]
        unit = F.normalize(appearance_BSD - appearance_BSD.mean(dim=1, keepdim=True), dim=-1)
        candidate_CW = chunked_candidates(count, chunk, window, unit.device)
        chunks = candidate_CW.shape[0]
        own = chunk if chunks > 1 else count

        def by_chunk(value_BSX: Tensor) -> Tensor:
            return torch.unflatten(F.pad(value_BSX, (0, 0, 0, chunks * own - count)), 1, (chunks, own))

        def candidates(value_BSX: Tensor) -> Tensor:
            return value_BSX[:, candidate_CW.clamp_min(0)] if chunks > 1 else value_BSX.unsqueeze(1)

        queries, others = by_chunk(position_BS3), candidates(position_BS3)
        closed = queries[..., :1] == others[..., 0].unsqueeze(2)
        if chunks > 1:
            closed = closed | (candidate_CW < 0).unsqueeze(1)
        similarity = by_chunk(unit) @ candidates(unit).transpose(2, 3)
        lowest = torch.finfo(similarity.dtype).min
        like = similarity.masked_fill_(closed, lowest).topk(min(k, closed.shape[3]), dim=3)
        closeness = nearness(queries, others)
        furthest = torch.finfo(closeness.dtype).min
        near = closeness.masked_fill_(closed, furthest).topk(min(temporal, closed.shape[3]), dim=3)
        # A temporal neighbour that is also among the most similar counts once.
        twice = (near.indices.unsqueeze(4) == like.indices.unsqueeze(3)).any(dim=4)
        valid = torch.cat([like.values > lowest, (near.values > furthest) & ~twice], dim=3)
        place = torch.cat([like.indices, near.indices], dim=3)
        alike = torch.cat([like.values, similarity.gather(3, near.indices)], dim=3)
        node = place if chunks == 1 else candidate_CW[torch.arange(chunks, device=place.device)[:, None, None], place].clamp_min(0)
        node, valid, alike = (value.flatten(1, 2)[:, :count] for value in (node, valid, alike))
        itself = torch.arange(count, device=node.device)[None, :, None].expand(node.shape[0], -1, 1)
        node = torch.cat([itself, node], dim=2)
        return Edges(
            node_BSE=node,
            valid_BSE=F.pad(valid, (1, 0), value=True),
            similarity_BSE=F.pad(alike, (1, 0), value=1.0).masked_fill(~F.pad(valid, (1, 0), value=True), 0.0),
            relative_BSER=relative_features(position_BS3, neighbours(position_BS3, node)),
        )


def neighbours(value_BSD: Tensor, node_BSE: Tensor) -> Tensor:
    """The values of each node's neighbours, `(B, S, E, D)`."""
    batch, count, width = value_BSD.shape
    if batch > 1:
        node_BSE = node_BSE + torch.arange(batch, device=node_BSE.device)[:, None, None] * count
    return value_BSD.reshape(batch * count, width).index_select(0, node_BSE.flatten()).view(*node_BSE.shape, width)


class EdgeLogits(nn.Module):
    """What an edge weighs before the nodes are looked at, for all layers at once: e_ij = beta cos_ij + MLP(rel_ij) + log u_j, -inf for no edge."""

    def __init__(self, layers: int, heads: int) -> None:
        super().__init__()
        self.layers = layers
        self.similarity = nn.Parameter(torch.full((layers * heads,), 2.0))
        self.relative = nn.Sequential(nn.Linear(RELATIVE, 16), nn.GELU(), nn.Linear(16, layers * heads))

    def forward(self, edges: Edges, bias_BS: Tensor | None) -> tuple[Tensor, ...]:
        """Logits `(B, S, E, h)` for each layer."""
        logit_BSEX = torch.addcmul(self.relative(edges.relative_BSER), edges.similarity_BSE.unsqueeze(-1), self.similarity)
        if bias_BS is not None:
            logit_BSEX = logit_BSEX + neighbours(bias_BS.unsqueeze(-1), edges.node_BSE)
        logit_BSEX = logit_BSEX.masked_fill(~edges.valid_BSE.unsqueeze(-1), torch.finfo(logit_BSEX.dtype).min)
        return logit_BSEX.chunk(self.layers, dim=-1)


class GraphLayer(nn.Module):
    """One round of message passing and a feed-forward, both residual.

    GAT-style attention over edges (Velickovic 2018, eqs. 1-4, with dot products): a_ij = softmax_j(q_i.k_j/sqrt(d) + e_ij), e_ij from `EdgeLogits`;
    message_i = sum_j a_ij (V h_j + R rel_ij). `message="mean"` weighs edges by e alone.
    """

    def __init__(self, width: int, graph_width: int, heads: int, *, message: str, eps: float) -> None:
        super().__init__()
        self.heads, self.message, self.graph_width = heads, message, graph_width
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, (3 if message == "attention" else 1) * graph_width)
        self.relative_value = nn.Linear(heads * RELATIVE, graph_width, bias=False)
        self.output = nn.Linear(graph_width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.feed = nn.Sequential(nn.Linear(width, 2 * graph_width), nn.GELU(), nn.Linear(2 * graph_width, width))

    def forward(self, x_BSD: Tensor, edges: Edges, logit_BSEh: Tensor) -> Tensor:
        """Nodes `(B, S, D)` after one round."""
        projected = self.qkv(self.norm1(x_BSD))
        if self.message == "attention":
            query, key_value = projected.split((self.graph_width, 2 * self.graph_width), dim=-1)
            key, value = neighbours(key_value, edges.node_BSE).chunk(2, dim=-1)
            q_BS1hd = self._heads(query * (self.graph_width // self.heads) ** -0.5).unsqueeze(2)
            logit_BSEh = logit_BSEh + (self._heads(key) * q_BS1hd).sum(dim=-1)
        else:
            value = neighbours(projected, edges.node_BSE)
        weight_BSEh = logit_BSEh.softmax(dim=2)
        gathered = (self._heads(value) * weight_BSEh.unsqueeze(-1)).sum(dim=2).flatten(2)
        # R is linear, so the relative features are averaged first and projected once a node.
        relative = (weight_BSEh.transpose(2, 3) @ edges.relative_BSER).flatten(2)
        x_BSD = x_BSD + self.output(gathered + self.relative_value(relative))
        out: Tensor = x_BSD + self.feed(self.norm2(x_BSD))
        return out

    def _heads(self, value: Tensor) -> Tensor:
        return torch.unflatten(value, -1, (self.heads, -1))


class Graph(nn.Module):
    """L rounds of message passing over the same edges."""

    def __init__(self, width: int, graph_width: int, layers: int, *, message: str, eps: float) -> None:
        super().__init__()
        heads = next(h for h in (4, 3, 2, 1) if graph_width % h == 0)
        self.logits = EdgeLogits(layers, heads)
        self.layers = nn.ModuleList(GraphLayer(width, graph_width, heads, message=message, eps=eps) for _ in range(layers))

    def forward(self, x_BSD: Tensor, edges: Edges, bias_BS: Tensor | None) -> Tensor:
        """Nodes `(B, S, D)` after all rounds; `bias_BS`: their log utility."""
        for layer, logit_BSEh in zip(self.layers, self.logits(edges, bias_BS), strict=True):
            x_BSD = layer(x_BSD, edges, logit_BSEh)
        return x_BSD
