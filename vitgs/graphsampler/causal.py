"""The parts of streaming: edges into the past, one round of messages, memory and pooling that go on from what is carried. Pure functions.

A node of a chunk hears the nodes of its own chunk and of earlier ones, which are not updated again. So an earlier node is what it said: its keys and
values in each round. The weights are those of `graph.py`, `memory.py` and the readouts.

Suffixes beside those of the package: P nodes of earlier chunks, A all that can be heard, past ones first; X what a node says, heads together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.readout import AttentionReadout
from vitgs.backbone.tokens import Tokens
from vitgs.graphsampler.edges import Edges, build_edges, neighbours
from vitgs.graphsampler.graph import GraphLayer
from vitgs.graphsampler.long_search import FRAME_CELLS
from vitgs.graphsampler.memory import Memory, MemoryBank, frames_since
from vitgs.graphsampler.messages import pass_messages
from vitgs.graphsampler.relative import relative_features

# Similarities are compared in steps of 1/SIMILARITY_STEPS, so that rounding, which differs with the shape of a product, rarely picks neighbours.
SIMILARITY_STEPS = 2**16
_ORDERS = 2**32


def best(score_BSA: Tensor, order_A: Tensor, closed_BSA: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` highest whole-number scores of each row and whether each was open, `(B, S, count)`; of a tie, the later in `order_A`.

    No two keys are equal, so the choice is the same however the candidates are laid out.
    """
    lowest = torch.iinfo(torch.int64).min
    found = (score_BSA * _ORDERS + order_A).masked_fill(closed_BSA, lowest).topk(min(count, score_BSA.shape[-1]), dim=-1)
    return found.indices, found.values > lowest


def squared_distance(position_BS3: Tensor, other_BA3: Tensor) -> Tensor:
    """How far apart in time and place, in whole squared cells, `(B, S, A)`: what `edges.nearness` ranks by, without rounding."""
    here, there = position_BS3.long().unsqueeze(-2), other_BA3.long().unsqueeze(-3)
    t, y, x = (here - there).square().unbind(-1)
    return int(FRAME_CELLS**2) * t + y + x


def causal_edges(appearance_BAD: Tensor, position_BA3: Tensor, own: int, *, k: int, temporal: int) -> Edges:
    """Edges of the last `own` nodes into all A: itself, the `k` most similar, the `temporal` nearest nodes of other frames.

    As `build_edges` has them, appearance relative to the mean of the A; a chunk without a past is a clip of its own, and its edges are those of
    `build_edges`. Cost O(own A (D + 3)).
    """
    count = appearance_BAD.shape[1]
    if own == count:
        return build_edges(appearance_BAD, position_BA3, k=k, temporal=temporal, chunk=count, window=0)
    unit = F.normalize(appearance_BAD - appearance_BAD.mean(dim=1, keepdim=True), dim=-1)
    position_BS3 = position_BA3[:, -own:]
    similarity_BSA = unit[:, -own:] @ unit.transpose(1, 2)
    closed_BSA = position_BS3[..., :1] == position_BA3[..., 0].unsqueeze(1)
    order_A = torch.arange(count, device=unit.device)
    # In float32, because as many steps are more than the largest number of float16.
    like, alike = best((similarity_BSA.float() * SIMILARITY_STEPS).round().long(), order_A, closed_BSA, k)
    near, valid = best(-squared_distance(position_BS3, position_BA3), order_A, closed_BSA, temporal)
    twice = (near.unsqueeze(3) == like.unsqueeze(2)).any(dim=3)
    itself = order_A[-own:, None].expand(len(unit), -1, 1)
    valid = F.pad(torch.cat([alike, valid & ~twice], dim=2), (1, 0), value=True)
    node = torch.cat([itself, like, near], dim=2)
    return Edges(
        node_BSE=node,
        valid_BSE=valid,
        similarity_BSE=F.pad(similarity_BSA.gather(2, node[..., 1:]), (1, 0), value=1.0).masked_fill(~valid, 0.0),
        relative_BSER=relative_features(position_BS3, neighbours(position_BA3, node)),
    )


def listen(layer: GraphLayer, x_BSD: Tensor, past_BPX: Tensor | None, edges: Edges, logit_BSEh: Tensor) -> tuple[Tensor, Tensor]:
    """A chunk's nodes after one round `(B, S, D)`, and what they said in it `(B, S, X)`: keys and values, or values alone for mean messages."""
    query_BSD, said_BSX = layer.say(x_BSD)
    said_BAX = said_BSX if past_BPX is None else torch.cat([past_BPX, said_BSX], dim=1)
    return layer.take(x_BSD, *pass_messages(said_BAX, edges, logit_BSEh, query_BSD)), said_BSX


def blank_memory(bank: MemoryBank, batch: int) -> Memory:
    """The memory before the first frame."""
    return Memory(state_BMW=bank.slot.expand(batch, -1, -1), since_B=bank.slot.new_zeros(batch, dtype=torch.float32))


def remember(bank: MemoryBank, nodes: Tokens, frames: int, memory: Memory) -> tuple[Tensor, Memory]:
    """The nodes of `frames` more frames (t counted from the first of them) enriched by the state of their time `(B, S, D)`, and the memory after."""
    frame_BS = nodes.position_BN3[..., 0].long()
    logit_BSM, message_BTMW, held_BT = bank.messages(nodes.x_BND, frame_BS, frames, nodes.bias_BN)
    states_BTMW = bank.update(message_BTMW, held_BT, memory)
    since_B = torch.where(held_BT[:, -1], 0.0, frames_since(held_BT, memory.since_B)[:, -1])
    return bank.tell(nodes.x_BND, frame_BS, logit_BSM, states_BTMW), Memory(state_BMW=states_BTMW[:, -1].clone(), since_B=since_B)


@dataclass(frozen=True, kw_only=True)
class Pooled:
    """A softmax-weighted mean so far, and the log of the weights' sum: running numerator, denominator and maximum of a softmax in one.

    In float32 at least: in a half precision what one chunk adds to a long video would be rounded away.
    """

    mean_Bhd: Tensor
    log_weight_Bh: Tensor


def pool(x_BSD: Tensor, logit_BSh: Tensor) -> Pooled:
    """The softmax-weighted mean of a chunk's nodes, for each head."""
    x_BShd = torch.unflatten(x_BSD, -1, (logit_BSh.shape[-1], -1))
    mean_Bhd = torch.einsum("bsh,bshd->bhd", logit_BSh.softmax(dim=1), x_BShd)
    wide = torch.promote_types(x_BSD.dtype, torch.float32)
    return Pooled(mean_Bhd=mean_Bhd.to(wide), log_weight_Bh=logit_BSh.to(wide).logsumexp(dim=1))


def pool_nodes(readout: nn.Module, nodes: Tokens) -> Pooled:
    """The same with the weights that attention pooling gives its nodes; any other readout weighs them by utility, or alike."""
    if isinstance(readout, AttentionReadout):
        logit_BSh: Tensor = readout.score(nodes.x_BND)
    else:
        logit_BSh = torch.zeros_like(nodes.x_BND[..., :1])
    return pool(nodes.x_BND, logit_BSh if nodes.bias_BN is None else logit_BSh + nodes.bias_BN.unsqueeze(-1))


def joined(earlier: Pooled | None, later: Pooled) -> Pooled:
    """The mean over both."""
    if earlier is None:
        return later
    log_weight_Bh = torch.logaddexp(earlier.log_weight_Bh, later.log_weight_Bh)
    share_Bh1 = (later.log_weight_Bh - log_weight_Bh).exp().unsqueeze(-1)
    return Pooled(mean_Bhd=torch.lerp(earlier.mean_Bhd, later.mean_Bhd, share_Bh1), log_weight_Bh=log_weight_Bh)
