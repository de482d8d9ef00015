"""What the model did on one clip, as data: what it kept, how it scored it, who listened to whom, what the memory took up. Of the long-term bank
nothing is shown; what it added is in the memory's writes and in the answer.

Pure functions beside the model, which itself stays without flags: its own parts are run once more in its own order, and the weights that they
use inside are computed from the same inputs. A test holds the logits and the choice to be the model's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vitgs.backbone.batch import check_clip
from vitgs.backbone.tokens import Tokens, without_prefix
from vitgs.graphsampler.edges import Edges, neighbours
from vitgs.graphsampler.graph import Graph, GraphLayer
from vitgs.graphsampler.memory import MemoryBank
from vitgs.graphsampler.model import TEMPORAL_EDGES, GraphSampler
from vitgs.reduction.selection import check_budget

Kind = Literal["none", "self", "similar", "temporal", "both"]
KINDS: tuple[Kind, ...] = ("none", "self", "similar", "temporal", "both")


@dataclass(frozen=True, kw_only=True)
class GraphTrace:
    """Who listens to whom. `neighbour_SE`: a node of the clip's S kept ones; `kind_SE`: index into `KINDS`; `weight_LSE`: attention of a node on
    each neighbour in each round, the mean over heads, 1 in all."""

    neighbour_SE: Tensor
    kind_SE: Tensor
    similarity_SE: Tensor
    weight_LSE: Tensor

    @property
    def mean_weight_SE(self) -> Tensor:
        """The attention of each edge, the mean over rounds."""
        return self.weight_LSE.mean(dim=0)

    @property
    def heard_S(self) -> Tensor:
        """How much attention a node gets from others, in all."""
        others_SE = self.mean_weight_SE.masked_fill(self.kind_SE <= KINDS.index("self"), 0.0)
        return torch.zeros(len(others_SE)).index_add(0, self.neighbour_SE.flatten(), others_SE.flatten())


@dataclass(frozen=True, kw_only=True)
class MemoryTrace:
    """What each slot did in each frame. `gated`: whether its cell has gates; `gate_TM`: how far its update gate opened, 0 to 1, the mean over the
    state, 1 where there is none; `change_TM`: root mean square of the state's change, its numbers lying within about ±1; both 0 in a frame without
    nodes. `share_SM`: a node's share in what its frame wrote."""

    gated: bool
    gate_TM: Tensor
    change_TM: Tensor
    share_SM: Tensor


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """One clip. `grid`: frames, rows and columns of patches; `position_S3`: the kept (t, y, x), in time order; `utility_TN`: utility as a
    probability, None when nothing scores; `graph`, `memory`: None when the model has none."""

    grid: tuple[int, int, int]
    budget: float
    logits_C: Tensor
    position_S3: Tensor
    utility_TN: Tensor | None
    graph: GraphTrace | None
    memory: MemoryTrace | None

    @property
    def index_S(self) -> Tensor:
        """The kept pairs as indices into T*N."""
        _, rows, columns = self.grid
        t, y, x = self.position_S3.unbind(1)
        return (t * rows + y) * columns + x

    @property
    def utility_S(self) -> Tensor | None:
        """The utility of what was kept."""
        return None if self.utility_TN is None else self.utility_TN.flatten()[self.index_S]

    @property
    def kept_T(self) -> Tensor:
        """How many tokens of each frame were kept."""
        return torch.bincount(self.position_S3[:, 0], minlength=self.grid[0])

    @property
    def score_T(self) -> Tensor:
        """A frame's score: the sum of its tokens' utilities; the number of kept ones when nothing scores."""
        return self.kept_T.float() if self.utility_TN is None else self.utility_TN.sum(dim=1)

    def best_nodes(self, count: int) -> list[int]:
        """The nodes that are worth a look: the best of its frame, best frames first; then the rest by the same order. By utility; without one, by
        how much others listen to them."""
        worth_S = self.utility_S
        if worth_S is None:
            worth_S = torch.zeros(len(self.position_S3)) if self.graph is None else self.graph.heard_S
        ranked = worth_S.argsort(descending=True, stable=True).tolist()
        frames: set[int] = set()
        first: list[int] = []
        later: list[int] = []
        for node in ranked:
            frame = int(self.position_S3[node, 0])
            (later if frame in frames else first).append(node)
            frames.add(frame)
        return [*first, *later][:count]


def explain(model: GraphSampler, clip_TCHW: Tensor, budget: float | None = None) -> Explanation:
    """Runs the model on one clip, as at test time, and keeps what it did; `budget` None: the one it was built with."""
    model.check_plain("explain")
    check_clip(clip_TCHW.unsqueeze(0) if isinstance(clip_TCHW, Tensor) else clip_TCHW, model.shape)
    share = model.budget if budget is None else check_budget(budget)
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return _explain(model, clip_TCHW.unsqueeze(0), share)
    finally:
        model.train(was_training)


def _explain(model: GraphSampler, clip_1TCHW: Tensor, share: float) -> Explanation:
    """The model's own forward pass, part by part."""
    kept, utility = model._keep(clip_1TCHW, share, 0.0)
    appearance = model.appearance(kept.x_BND)
    kept = kept if model.time is None else model.time(kept)
    encoded = model._encode(kept, share)
    before = model._together(without_prefix(encoded), 1)
    nodes, final, graph, memory = before, None, None, None
    if model.graph is not None:
        edges = model._edges(nodes, appearance, share)
        x, weight_LBSE = graph_weights(model.graph, nodes.x_BND, edges, nodes.bias_BN)
        graph = GraphTrace(
            neighbour_SE=edges.node_BSE[0].cpu(),
            kind_SE=edge_kinds(edges, model.k, TEMPORAL_EDGES)[0].cpu(),
            similarity_SE=edges.similarity_BSE[0].cpu(),
            weight_LSE=weight_LBSE[:, 0].cpu(),
        )
        nodes = nodes.with_x(x)
    if model.bank is not None:
        nodes = nodes.with_x(model.bank(nodes.x_BND, nodes.position_BN3[..., 0].long(), model.frames, nodes.bias_BN))
    if model.memory is not None:
        memory = memory_trace(model.memory, nodes, model.frames)
        x, final = model.memory(nodes.x_BND, nodes.position_BN3[..., 0].long(), model.frames, nodes.bias_BN)
        nodes = nodes.with_x(x)
    logits_BC = model.head(model._read(encoded, before, nodes))
    if final is not None and model.memory_head is not None:
        logits_BC = logits_BC + model.memory_head(final)
    embed = model.vit.embed
    return Explanation(
        grid=(model.frames, embed.rows, embed.columns),
        budget=share,
        logits_C=logits_BC[0].cpu(),
        position_S3=before.position_BN3[0].long().cpu(),
        utility_TN=None if utility is None else torch.sigmoid(utility[0]).cpu(),
        graph=graph,
        memory=memory,
    )


def graph_weights(graph: Graph, x_BSD: Tensor, edges: Edges, bias_BS: Tensor | None) -> tuple[Tensor, Tensor]:
    """The nodes after all rounds, and the attention of each round on each edge, the mean over heads, `(L, B, S, E)`."""
    weights = []
    for layer, logit_BSEh in zip(graph.layers, graph.logits(edges, bias_BS), strict=True):
        assert isinstance(layer, GraphLayer)
        weights.append(layer_weights(layer, x_BSD, edges, logit_BSEh).mean(dim=-1))
        x_BSD = layer(x_BSD, edges, logit_BSEh)
    return x_BSD, torch.stack(weights)


def layer_weights(layer: GraphLayer, x_BSD: Tensor, edges: Edges, logit_BSEh: Tensor) -> Tensor:
    """The weights by which one round sums its messages, `(B, S, E, h)`."""
    if layer.message == "attention":
        projected = layer.qkv(layer.norm1(x_BSD))
        query, key, _ = projected.split(layer.graph_width, dim=-1)
        q_BS1hd = torch.unflatten(query * (layer.graph_width // layer.heads) ** -0.5, -1, (layer.heads, -1)).unsqueeze(2)
        key_BSEhd = torch.unflatten(neighbours(key, edges.node_BSE), -1, (layer.heads, -1))
        logit_BSEh = logit_BSEh + (key_BSEhd * q_BS1hd).sum(dim=-1)
    return logit_BSEh.softmax(dim=2)


def edge_kinds(edges: Edges, k: int, temporal: int) -> Tensor:
    """What each place of `build_edges` holds, as an index into `KINDS`: itself, then the most similar, then the nearest in time.

    A temporal neighbour that is also a similar one counts once, as "both", in the place of the similar one.
    """
    places = edges.node_BSE.shape[2] - 1
    similar = next(min(k, seen) for seen in range(1, k + temporal + 1) if min(k, seen) + min(temporal, seen) == places)
    kind = torch.full_like(edges.node_BSE, KINDS.index("similar"))
    kind[..., 0] = KINDS.index("self")
    kind[..., 1 + similar :] = KINDS.index("temporal")
    like, near = edges.node_BSE[..., 1 : 1 + similar], edges.node_BSE[..., 1 + similar :]
    near_too = ((like.unsqueeze(3) == near.unsqueeze(2)) & ~edges.valid_BSE[..., 1 + similar :].unsqueeze(2)).any(dim=3)
    kind[..., 1 : 1 + similar].masked_fill_(near_too, KINDS.index("both"))
    return kind.masked_fill(~edges.valid_BSE, KINDS.index("none"))


def memory_trace(bank: MemoryBank, nodes: Tokens, frames: int) -> MemoryTrace:
    """What the bank does with those nodes of one clip (of a batch, the first)."""
    frame_BS = nodes.position_BN3[..., 0].long()
    logit_BSM, message_BTMW, held_BT = bank.messages(nodes.x_BND, frame_BS, frames, nodes.bias_BN)
    biased_BSM = logit_BSM if nodes.bias_BN is None else logit_BSM + nodes.bias_BN.unsqueeze(-1)
    states_BTMW = bank.update(message_BTMW, held_BT)
    first_B1MW = bank.slot.expand(len(states_BTMW), 1, -1, -1)
    before_BTMW = torch.cat([first_B1MW, states_BTMW[:, :-1]], dim=1)
    opened_BTM = bank.cell.opened(bank.incoming(message_BTMW, held_BT, None), bank.hidden(before_BTMW))
    held_TS = frame_BS[0] == torch.arange(frames, device=frame_BS.device).unsqueeze(1)
    within_TSM = biased_BSM[0].masked_fill(~held_TS.unsqueeze(-1), -torch.inf)
    share_SM = torch.where(held_TS.unsqueeze(-1), (within_TSM - within_TSM.logsumexp(dim=1, keepdim=True)).exp(), 0.0).sum(dim=0)
    return MemoryTrace(
        gated=bank.cell.products > 1,  # one product is that of the next state, any more are of gates
        gate_TM=(opened_BTM * held_BT.unsqueeze(-1))[0].cpu(),
        change_TM=(states_BTMW - before_BTMW).square().mean(dim=-1).sqrt()[0].cpu(),
        share_SM=share_SM.cpu(),
    )
