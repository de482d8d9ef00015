"""The same as `stream`, of a whole clip in one pass: what streaming is held to, written apart from it.

Utility, choice, ViT, graph, bank, memory and readout each run once over all chunks: utility by its parts with the frames ahead of a chunk masked,
chunks as rows of a padded batch, one graph over all nodes with candidates in a causal window, the bank of each frame sought among all earlier nodes,
one scan of the memory, one softmax of the readout; nothing is carried. Meant for checks.

Suffixes beside those of the package: R rows of a padded batch, Q their longest; C chunks, W candidates of a chunk's nodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.backbone.readout import MeanReadout
from vitgs.backbone.tokens import Tokens, gather, rows, split_frames, without_prefix
from vitgs.graphsampler.bank import SCORE_STEPS, LongBank
from vitgs.graphsampler.causal import SIMILARITY_STEPS, best, squared_distance
from vitgs.graphsampler.edges import Edges, build_edges, neighbours
from vitgs.graphsampler.model import TEMPORAL_EDGES, GraphSampler
from vitgs.graphsampler.relative import relative_features
from vitgs.graphsampler.select import choose, kept_shape, ragged
from vitgs.graphsampler.stream import ChunkGrid, grid_of
from vitgs.reduction.utility import Utility, log_utility


@torch.no_grad()
def whole(model: GraphSampler, clip_BTCHW: Tensor, chunk_frames: int, budget: float | None = None, *, past_chunks: int | None = None) -> Tensor:
    """The logits `(B, classes)` of a clip `(B, T, C, H, W)` of any length, chunks as `stream` has them; memory grows with T."""
    grid = grid_of(model, chunk_frames, budget, past_chunks)
    frames = clip_BTCHW.shape[1]
    spans = [min(chunk_frames, frames - first) for first in range(0, frames, chunk_frames)]
    looked = model._look(clip_BTCHW)
    index_BS, bias_BS = _kept(model, clip_BTCHW, looked, grid, spans)
    tokens = gather(looked, index_BS) if looked is not None and model.glance == "patch" else model.vit.embed.some(clip_BTCHW, index_BS)
    shapes = [kept_shape(model.select, model.decision, grid.budget, span, model.tokens) for span in spans]
    counts = [m * k for m, k in shapes]
    timed = Tokens(x_BND=tokens.x_BND, position_BN3=tokens.position_BN3, bias_BN=bias_BS)
    frame_BS = tokens.position_BN3[..., 0].long()
    if model.time is not None:
        entry_T = torch.cat([torch.arange(span) + min(i * chunk_frames, model.frames - span) for i, span in enumerate(spans)])
        timed = timed.with_x(timed.x_BND + model.time.table[entry_T.to(frame_BS.device)[frame_BS]])
    joint = model.attention == "joint"
    if not joint and ragged(model.select, model.decision):
        encoded_BSD, class_BRD = _encoded_by_place(model, timed, index_BS, frames)
        row_BS = frame_BS
    else:
        lengths = counts if joint else [k for m, k in shapes for _ in range(m)]
        encoded_BSD, class_BRD = _encoded(model, timed, lengths)
        row_BS = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(frame_BS).expand(len(frame_BS), -1)
    nodes = before = timed.with_x(encoded_BSD)
    if model.graph is not None:
        edges = _edges(model.appearance(tokens.x_BND), tokens.position_BN3, counts, k=model.k, grid=grid)
        nodes = nodes.with_x(model.graph(nodes.x_BND, edges, bias_BS))
    if model.bank is not None:
        nodes = nodes.with_x(_recalled(model.bank, nodes.x_BND, frame_BS, frames, bias_BS))
    final = None
    if model.memory is not None:
        x_BSD, final = model.memory(nodes.x_BND, frame_BS, frames, bias_BS)
        nodes = nodes.with_x(x_BSD)
    if class_BRD is None:
        answer_BD: Tensor = model.readout(nodes)
    else:
        weight_BS = class_BRD.new_zeros(row_BS.shape) if bias_BS is None else bias_BS
        share_BR = class_BRD.new_zeros(class_BRD.shape[:2]).scatter_add(1, row_BS, weight_BS.softmax(dim=1))
        answer_BD = (class_BRD * share_BR.unsqueeze(-1)).sum(dim=1) + MeanReadout()(nodes.with_x(nodes.x_BND - before.x_BND))
    logits_BC: Tensor = model.head(answer_BD)
    return logits_BC if final is None or model.memory_head is None else logits_BC + model.memory_head(final)


def _kept(model: GraphSampler, clip_BTCHW: Tensor, looked: Tokens | None, grid: ChunkGrid, spans: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """What all chunks keep, as indices into T*N in time order, and its log utility as bias."""
    batch, frames = clip_BTCHW.shape[:2]
    utility_BTN = None
    if model.utility is not None and looked is not None:
        utility_BTN = _utility(model.utility, looked.x_BND, spans)
    scored_BTN = clip_BTCHW.new_zeros(batch, frames, model.tokens) if utility_BTN is None else utility_BTN
    full = sum(span == grid.chunk_frames for span in spans)
    chosen = []
    for first, span, count in ((0, grid.chunk_frames, full), (full * grid.chunk_frames, spans[-1], len(spans) - full)):
        if count:
            part = scored_BTN[:, first : first + span * count].reshape(batch * count, span, -1)
            index = choose(part, select=model.select, decision=model.decision, budget=grid.budget, noise=0.0, fixed=True)
            start_C1 = (first + span * torch.arange(count, device=index.device)[:, None]) * model.tokens
            chosen.append((index.reshape(batch, count, -1) + start_C1).flatten(1))
    index_BS = torch.cat(chosen, dim=1)
    biased = utility_BTN is not None and model.biased
    return index_BS, log_utility(rows(utility_BTN.flatten(1), index_BS)) if biased and utility_BTN is not None else None


def _utility(utility: Utility, x_BND: Tensor, spans: Sequence[int]) -> Tensor:
    """The utility of all frames by its parts; the light policy doesn't see what is ahead of a frame's chunk."""
    batch, frames = len(x_BND), sum(spans)
    h_BTNE = torch.unflatten(F.gelu(utility.down(x_BND)), 1, (frames, -1))
    motion_BTNE = h_BTNE.diff(dim=1, prepend=h_BTNE[:, :1])
    picture = h_BTNE.movedim(3, 2).reshape(batch * frames, -1, utility.rows, utility.columns)
    local_BTNE = h_BTNE + utility.spatial(picture).reshape(batch, frames, -1, h_BTNE.shape[2]).movedim(2, 3)
    local_BTNE = local_BTNE + utility.mix(F.gelu(local_BTNE))
    token_BTN = utility.token(F.gelu(torch.cat([local_BTNE, motion_BTNE], dim=-1))).squeeze(-1)
    peak_BT = token_BTN.amax(dim=2)
    ahead_T = torch.cat([torch.tensor([1.0] * (span - 1) + [0.0]) for span in spans]).to(peak_BT)
    around_BT3 = torch.stack([F.pad(peak_BT, (1, 0))[:, :-1], peak_BT, F.pad(peak_BT, (0, 1))[:, 1:] * ahead_T], dim=-1)
    policy_BTE = F.linear(around_BT3, utility.frame.weight.squeeze(1), utility.frame.bias)
    policy_BT1 = F.linear(F.gelu(policy_BTE), utility.frame_out.weight.squeeze(-1), utility.frame_out.bias)
    return torch.add(token_BTN, policy_BT1)


Run = tuple[int, int]  # first node, nodes


def _runs(lengths: Sequence[int]) -> list[Run]:
    """Runs of so many nodes, one after the other."""
    return list(zip(accumulate(lengths, initial=0), lengths, strict=False))


def _ragged(runs: Sequence[Run], device: torch.device) -> tuple[Tensor, Tensor]:
    """The runs' indices as the rows of a padded batch, `(R, Q)`, and which of its places are real."""
    start_R1, length_R1 = torch.tensor(runs, device=device).unsqueeze(-1).unbind(1)
    within_Q = torch.arange(int(length_R1.max()), device=device)
    real_RQ = within_Q < length_R1
    return torch.where(real_RQ, start_R1 + within_Q, 0), real_RQ


def _encoded(model: GraphSampler, timed: Tokens, lengths: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """The nodes after the ViT, each run of so many among themselves, `(B, S, D)`, and the runs' class tokens `(B, R, D)`."""
    batch = len(timed.x_BND)
    index_RQ, real_RQ = _ragged(_runs(lengths), timed.x_BND.device)

    def padded(value_BS_: Tensor) -> Tensor:
        return value_BS_[:, index_RQ].flatten(0, 1)

    packed = Tokens(
        x_BND=padded(timed.x_BND),
        position_BN3=padded(timed.position_BN3.expand(batch, -1, -1)),
        bias_BN=None if timed.bias_BN is None else padded(timed.bias_BN),
        mask_BN=real_RQ.repeat(batch, 1),
    )
    encoded = model.vit(packed)
    x_BRQD = torch.unflatten(without_prefix(encoded).x_BND, 0, (batch, -1))
    return x_BRQD[:, real_RQ], torch.unflatten(encoded.x_BND[:, 0], 0, (batch, -1)) if encoded.prefix else None


def _encoded_by_place(model: GraphSampler, timed: Tokens, index_BS: Tensor, frames: int) -> tuple[Tensor, Tensor | None]:
    """The same where each frame keeps a number of tokens of its own: a frame is a row with all its places, those of dropped tokens masked.

    The nodes after the ViT, and the frames' class tokens.
    """
    batch, places = len(timed.x_BND), frames * model.tokens

    def spread(value_BS_: Tensor) -> Tensor:
        at_BS_ = index_BS.view(*index_BS.shape, *[1] * (value_BS_.dim() - 2)).expand_as(value_BS_)
        return value_BS_.new_zeros(batch, places, *value_BS_.shape[2:]).scatter(1, at_BS_, value_BS_)

    by_place = Tokens(
        x_BND=spread(timed.x_BND),
        position_BN3=spread(timed.position_BN3.expand(batch, -1, -1)),
        bias_BN=None if timed.bias_BN is None else spread(timed.bias_BN),
        mask_BN=spread(torch.ones_like(index_BS, dtype=torch.bool)),
    )
    encoded = model.vit(split_frames(by_place, frames))
    nodes_BPD = torch.unflatten(without_prefix(encoded).x_BND, 0, (batch, -1)).flatten(1, 2)
    return rows(nodes_BPD, index_BS), torch.unflatten(encoded.x_BND[:, 0], 0, (batch, -1)) if encoded.prefix else None


Found = tuple[Tensor, Tensor, Tensor]  # the node, valid and similarity of `Edges`


def _edges(appearance_BSD: Tensor, position_BS3: Tensor, counts: Sequence[int], *, k: int, grid: ChunkGrid) -> Edges:
    """The edges of all nodes: into their chunk and the `past_chunks` before it; those of a chunk without a past are the model's own."""
    runs = _runs(counts)
    alone = 1 if grid.past_chunks else len(runs)
    found: list[Found] = []
    for c, (start, count) in enumerate(runs[:alone]):
        own = slice(start, start + count)
        # Time counted as in a clip of its own, so that equally near nodes are told apart as there.
        position = position_BS3[:, own] - position_BS3.new_tensor((c * grid.chunk_frames, 0, 0))
        edges = build_edges(appearance_BSD[:, own], position, k=k, temporal=TEMPORAL_EDGES, chunk=count, window=0)
        found.append((edges.node_BSE + start, edges.valid_BSE, edges.similarity_BSE))
    if alone < len(runs):
        first = [runs[max(0, c - grid.past_chunks)][0] for c in range(alone, len(runs))]
        sight = [(f, start + count - f) for f, (start, count) in zip(first, runs[alone:], strict=True)]
        found.append(_windowed(appearance_BSD, position_BS3, runs[alone:], sight, k))
    places = max(node.shape[2] for node, _, _ in found)
    # A place that is left over points to node 0 and isn't valid.
    node, valid, similarity = (torch.cat([F.pad(part[i], (0, places - part[i].shape[2])) for part in found], dim=1) for i in range(3))
    relative = relative_features(position_BS3, neighbours(position_BS3, node))
    return Edges(node_BSE=node, valid_BSE=valid, similarity_BSE=similarity.masked_fill(~valid, 0.0), relative_BSER=relative)


def _windowed(appearance_BSD: Tensor, position_BS3: Tensor, own: Sequence[Run], sight: Sequence[Run], k: int) -> Found:
    """Edges of the chunks' own nodes into what each chunk sees, all chunks in one batch."""
    (own_CQ, real_CQ), (sight_CW, real_CW) = (_ragged(runs, appearance_BSD.device) for runs in (own, sight))
    seen_BCWD = appearance_BSD[:, sight_CW]
    mean_BC1D = (seen_BCWD * real_CW.unsqueeze(-1)).sum(dim=2, keepdim=True) / real_CW.sum(dim=1)[:, None, None]
    unit_BCWD, query_BCQD = F.normalize(seen_BCWD - mean_BC1D, dim=-1), F.normalize(appearance_BSD[:, own_CQ] - mean_BC1D, dim=-1)
    similarity_BCQW = torch.einsum("bcqd,bcwd->bcqw", query_BCQD, unit_BCWD)
    there_BCW3, here_BCQ3 = position_BS3[:, sight_CW], position_BS3[:, own_CQ]
    closed_BCQW = (here_BCQ3[..., :1] == there_BCW3[..., 0].unsqueeze(2)) | ~real_CW.unsqueeze(1)
    order_CQW = sight_CW.unsqueeze(1).expand(-1, own_CQ.shape[1], -1)
    like, alike = best((similarity_BCQW.float() * SIMILARITY_STEPS).round().long(), order_CQW, closed_BCQW, k)
    near, valid = best(-squared_distance(here_BCQ3, there_BCW3), order_CQW, closed_BCQW, TEMPORAL_EDGES)
    valid = valid & ~(near.unsqueeze(4) == like.unsqueeze(3)).any(dim=4)
    place_BCQE = torch.cat([like, near], dim=3)
    heard_BCQE = order_CQW.expand(len(place_BCQE), -1, -1, -1).gather(3, place_BCQE)
    itself_BCQ1 = own_CQ.unsqueeze(-1).expand(len(heard_BCQE), -1, -1, -1)
    return (
        torch.cat([itself_BCQ1, heard_BCQE], dim=3)[:, real_CQ],
        F.pad(torch.cat([alike, valid], dim=3), (1, 0), value=True)[:, real_CQ],
        F.pad(similarity_BCQW.gather(3, place_BCQE), (1, 0), value=1.0)[:, real_CQ],
    )


def _recalled(bank: LongBank, x_BSD: Tensor, frame_BS: Tensor, frames: int, bias_BS: Tensor | None) -> Tensor:
    """The nodes after their read of the bank: for each frame the best of all earlier nodes, sought anew; makes B S K W and B T S numbers."""
    (batch, count), h_BSD = frame_BS.shape, bank.norm(x_BSD)
    score_BS = h_BSD.new_zeros(batch, count) if bias_BS is None else bias_BS
    closed_BTS = frame_BS.unsqueeze(1) >= torch.arange(frames, device=frame_BS.device).unsqueeze(1)
    ranked_BTS = (score_BS.float() * SCORE_STEPS).round().long().unsqueeze(1).expand(-1, frames, -1)
    node_BTK, open_BTK = best(ranked_BTS, torch.arange(count, device=frame_BS.device), closed_BTS, bank.count)
    row_B1 = torch.arange(batch, device=frame_BS.device).unsqueeze(1)
    node_BSK, open_BSK = node_BTK[row_B1, frame_BS], open_BTK[row_B1, frame_BS]
    key_BShd, value_BShd = torch.unflatten(bank.say(h_BSD), 2, (bank.heads, 2, -1)).unbind(3)
    row_B11 = row_B1.unsqueeze(2)
    gap_BSK1 = (frame_BS.unsqueeze(2) - frame_BS[row_B11, node_BSK]).clamp_min(0).log1p().unsqueeze(3).to(h_BSD.dtype)
    query_BShd = torch.unflatten(bank.query(h_BSD), 2, (bank.heads, -1))
    logit_BSKh = torch.einsum("bshd,bskhd->bskh", query_BShd, key_BShd[row_B11, node_BSK]) / query_BShd.shape[3] ** 0.5
    logit_BSKh = logit_BSKh + bank.gap(gap_BSK1) + score_BS[row_B11, node_BSK].unsqueeze(3)
    weight_BSKh = logit_BSKh.masked_fill(~open_BSK.unsqueeze(3), -torch.inf).softmax(dim=2).nan_to_num()
    heard_BSW = torch.einsum("bskh,bskhd->bshd", weight_BSKh, value_BShd[row_B11, node_BSK]).flatten(2)
    added_BSD = bank.output(heard_BSW + bank.gap_value((weight_BSKh * gap_BSK1).sum(dim=2)))
    return torch.where(open_BSK.any(dim=2, keepdim=True), x_BSD + added_BSD, x_BSD)
