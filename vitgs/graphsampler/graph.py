"""The graph over kept tokens: who is whose neighbour, and how messages pass. Pure functions for the edges, one module for a layer.

Nodes are in time order and cut into chunks; a node looks for neighbours in its own chunk and `window` chunks to either side, so the search is
linear in the number of frames. Edges are the k most similar nodes of other frames (by the appearance of their patches) and the nearest nodes in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Relative features in units of order 1: frames, half cells, and velocity in twelfths of a cell a frame. Smaller units made the graph useless.
RELATIVE_SCALE = (1.0, 2.0, 2.0, 12.0, 12.0, 1.0)
RELATIVE = len(RELATIVE_SCALE)


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
        return torch.arange(count, device=device).expand(chunks, count)
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


def build_edges(appearance_BSD: Tensor, position_BS3: Tensor, *, k: int, temporal: int, chunk: int, window: int) -> Edges:
    """Edges of every node: itself, its `k` most similar and its `temporal` nearest nodes of other frames among its candidates.

    Selection has no gradient. Cost O(S W (D + 1)) for W candidates a node, W fixed by chunk and window.
    """
    with torch.no_grad():
        batch, count, _ = appearance_BSD.shape
        unit = F.normalize(appearance_BSD - appearance_BSD.mean(dim=1, keepdim=True), dim=-1)
        candidate_CW = chunked_candidates(count, chunk, window, unit.device)
        chunks, width = candidate_CW.shape
        if width == count:
            similarity = unit @ unit.transpose(1, 2)
            candidate_SW = candidate_CW[:1].expand(count, -1)
        else:
            padding = chunks * chunk - count
            query = torch.unflatten(F.pad(unit, (0, 0, 0, padding)), 1, (chunks, chunk))
            keys = unit[:, candidate_CW.clamp_min(0)]
            similarity = (query @ keys.transpose(2, 3)).flatten(1, 2)[:, :count]
            candidate_SW = candidate_CW.repeat_interleave(chunk, dim=0)[:count]
        other = position_BS3[:, candidate_SW.clamp_min(0)] if width != count else position_BS3.unsqueeze(1).expand(-1, count, -1, -1)
        delta = other - position_BS3.unsqueeze(2)
        open_BSW = (delta[..., 0] != 0) & (candidate_SW >= 0)
        lowest = torch.finfo(similarity.dtype).min
        pick_like = similarity.masked_fill(~open_BSW, lowest).topk(min(k, width), dim=2)
        near = -(delta[..., 0].abs() * 4 + delta[..., 1:].abs().sum(dim=-1))
        pick_near = near.masked_fill(~open_BSW, lowest).topk(min(temporal, width), dim=2)
        chosen = torch.cat([pick_like.indices, pick_near.indices], dim=2)
        valid = torch.cat([pick_like.values, pick_near.values], dim=2) > lowest
        # A temporal neighbour that is also among the most similar counts once.
        twice = (pick_near.indices.unsqueeze(3) == pick_like.indices.unsqueeze(2)).any(dim=3)
        valid[..., pick_like.indices.shape[2] :] &= ~twice
        node = candidate_SW.expand(batch, -1, -1).gather(2, chosen).clamp_min(0)
        alike = similarity.gather(2, chosen)
        itself = torch.arange(count, device=node.device)[None, :, None].expand(batch, -1, 1)
        node = torch.cat([itself, node], dim=2)
        valid = torch.cat([torch.ones_like(itself, dtype=torch.bool), valid], dim=2)
        alike = torch.cat([torch.ones_like(alike[..., :1]), alike], dim=2)
        relative = relative_features(position_BS3, neighbours(position_BS3, node))
        return Edges(node_BSE=node, valid_BSE=valid, similarity_BSE=alike, relative_BSER=relative)


def neighbours(value_BSD: Tensor, node_BSE: Tensor) -> Tensor:
    """The values of each node's neighbours, `(B, S, E, D)`."""
    batch, count, width = value_BSD.shape
    offset = torch.arange(batch, device=node_BSE.device)[:, None, None] * count
    return value_BSD.reshape(batch * count, width)[(node_BSE + offset).flatten()].view(*node_BSE.shape, width)


class GraphLayer(nn.Module):
    """One round of message passing and a feed-forward, both residual.

    GAT-style attention over edges (Velickovic 2018, eqs. 1-4, with dot products): logit_ij = q_i.k_j/sqrt(d) + beta cos_ij + MLP(rel_ij) + log u_j;
    message_i = sum_j a_ij (V h_j + R rel_ij). `message="mean"` weighs all edges by similarity instead of learned attention.
    """

    def __init__(self, width: int, graph_width: int, heads: int, *, message: str, eps: float) -> None:
        super().__init__()
        self.heads, self.message = heads, message
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.qkv = nn.Linear(width, (3 if message == "attention" else 1) * graph_width)
        self.similarity_weight = nn.Parameter(torch.full((heads,), 2.0))
        self.relative_bias = nn.Sequential(nn.Linear(RELATIVE, 16), nn.GELU(), nn.Linear(16, heads))
        self.relative_value = nn.Linear(heads * RELATIVE, graph_width, bias=False)
        self.output = nn.Linear(graph_width, width)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.feed = nn.Sequential(nn.Linear(width, 2 * graph_width), nn.GELU(), nn.Linear(2 * graph_width, width))

    def forward(self, x_BSD: Tensor, edges: Edges, bias_BS: Tensor | None) -> Tensor:
        """Nodes `(B, S, D)` after one round."""
        node = edges.node_BSE
        projected = self.qkv(self.norm1(x_BSD))
        logit_BSEh = edges.similarity_BSE.unsqueeze(-1) * self.similarity_weight + self.relative_bias(edges.relative_BSER)
        if self.message == "attention":
            query, key_value = projected.split((projected.shape[-1] // 3, projected.shape[-1] // 3 * 2), dim=-1)
            key, value = neighbours(key_value, node).chunk(2, dim=-1)
            q_BS1hd = self._heads(query).unsqueeze(2)
            logit_BSEh = logit_BSEh + (self._heads(key) * q_BS1hd).sum(dim=-1) * q_BS1hd.shape[-1] ** -0.5
        else:
            value = neighbours(projected, node)
        if bias_BS is not None:
            logit_BSEh = logit_BSEh + neighbours(bias_BS.unsqueeze(-1), node)
        logit_BSEh = logit_BSEh.masked_fill(~edges.valid_BSE.unsqueeze(-1), torch.finfo(logit_BSEh.dtype).min)
        weight_BSEh = logit_BSEh.softmax(dim=2)
        gathered = (self._heads(value) * weight_BSEh.unsqueeze(-1)).sum(dim=2).flatten(2)
        # R is linear, so the relative features are averaged first and projected once a node.
        relative = (weight_BSEh.transpose(2, 3) @ edges.relative_BSER).flatten(2)
        x_BSD = x_BSD + self.output(gathered + self.relative_value(relative))
        out: Tensor = x_BSD + self.feed(self.norm2(x_BSD))
        return out

    def _heads(self, value: Tensor) -> Tensor:
        return torch.unflatten(value, -1, (self.heads, -1))
