"""Message passing over the graph of kept tokens: the modules for what is learned.

Whose neighbour a node is, is in `edges.py`; a round of messages, as a pure function, in `messages.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitgs.backbone.runs import may_read
from vitgs.graphsampler.edges import Edges, block_rows, neighbours
from vitgs.graphsampler.messages import pass_messages
from vitgs.graphsampler.relative import RELATIVE


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
        query_BSD, said_BSX = self.say(x_BSD)
        return self.take(x_BSD, *pass_messages(said_BSX, edges, logit_BSEh, query_BSD))

    def say(self, x_BSD: Tensor) -> tuple[Tensor | None, Tensor]:
        """The nodes' queries, None for mean messages, and what they say to their neighbours: keys and values, or values alone."""
        projected: Tensor = self.qkv(self.norm1(x_BSD))
        if self.message == "mean":
            return None, projected
        query_BSD, said_BSX = torch.split(projected, [self.graph_width, 2 * self.graph_width], dim=-1)
        return query_BSD, said_BSX

    def take(self, x_BSD: Tensor, message_BSD: Tensor, source_BSX: Tensor) -> Tensor:
        """Nodes after what `pass_messages` made them hear. R is linear, so the relative features are averaged first and projected once a node."""
        x_BSD = x_BSD + self.output(message_BSD + self.relative_value(source_BSX))
        out: Tensor = x_BSD + self.feed(self.norm2(x_BSD))
        return out


class Graph(nn.Module):
    """L rounds of message passing over the same edges."""

    def __init__(self, width: int, graph_width: int, layers: int, *, message: str, eps: float) -> None:
        super().__init__()
        heads = next(h for h in (4, 3, 2, 1) if graph_width % h == 0)
        self.logits = EdgeLogits(layers, heads)
        self.layers = nn.ModuleList(GraphLayer(width, graph_width, heads, message=message, eps=eps) for _ in range(layers))

    def forward(self, x_BSD: Tensor, edges: Edges, bias_BS: Tensor | None) -> Tensor:
        """Nodes `(B, S, D)` after all rounds; `bias_BS`: their log utility. Where nothing is learned, as many clips at once as a cache holds."""
        at_once = max(1, block_rows(x_BSD.shape[2], x_BSD.device) // x_BSD.shape[1]) if may_read(x_BSD) else len(x_BSD)
        if len(x_BSD) <= at_once:
            return self._rounds(x_BSD, edges, bias_BS)
        parts = [slice(first, first + at_once) for first in range(0, len(x_BSD), at_once)]
        return torch.cat([self._rounds(x_BSD[part], edges.of(part), None if bias_BS is None else bias_BS[part]) for part in parts])

    def _rounds(self, x_BSD: Tensor, edges: Edges, bias_BS: Tensor | None) -> Tensor:
        for layer, logit_BSEh in zip(self.layers, self.logits(edges, bias_BS), strict=True):
            x_BSD = layer(x_BSD, edges, logit_BSEh)
        return x_BSD
