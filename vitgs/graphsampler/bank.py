"""A long-term bank: the K best nodes of all frames so far, which the nodes of later frames attend to, in constant memory however long the video.

The slots of `memory.py` sum up what was seen; an entry of the bank stays as it was until better ones push it out. With c_i the score of node i, its
bias as a key (log utility; behind `merge` plus its log size; 0 where there is neither), t_i its frame and nodes numbered in time order:

* Write: a frame writes all its nodes. Evict: of the entries the lowest scores go, of equal ones the earlier, until K are left. So
  bank(t) = best_K(bank(t-1), frame t) = best_K{i : t_i <= t} by (c_i, i): the same however a video is cut, frame after frame or all at once.
* Read, before the frame is written: x_i + O sum_j a_ij (v_j + R g_ij) over j in bank(t_i - 1), with the time gap g_ij = log(1 + t_i - t_j) and
  a_ij = softmax_j(q_i . k_j / sqrt(d) + MLP(g_ij) + c_j). O starts at zero. From an empty bank nothing is added.

Keys and values of what was seen as memory: MeMViT (Wu 2022), which keeps the latest; to keep the best is this project's.

Suffixes beside those of the package: K entries, A all that may be held, carried ones first; X what a node says: key and value of each head in turn.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vitgs.backbone.tokens import Tokens, rows
from vitgs.graphsampler.edges import block_rows, neighbours

# Scores are compared in steps of 1/SCORE_STEPS, so that rounding, which differs with the shape of a product, rarely chooses among nodes of a picture
# that stands still.
SCORE_STEPS = 2**16


@dataclass(frozen=True, kw_only=True)
class Entries:
    """Nodes as the bank has them. `said_BAX`: their keys and values; `score_BA`: their scores c_i, the lowest number for a place without a node;
    `frame_BA`: counted from the first frame of the clip or chunk, so below 0 for those of earlier chunks."""

    said_BAX: Tensor
    score_BA: Tensor
    frame_BA: Tensor


@dataclass(frozen=True, kw_only=True)
class Held:
    """What the bank holds before each of T frames and, in the last row, after them: `node_BTK`, worst first, and `filled_BTK`, False for a place
    that no node fills yet; there the node is any."""

    node_BTK: Tensor
    filled_BTK: Tensor


@torch.no_grad()
def held_before(score_BA: Tensor, frame_BA: Tensor, frames: int, count: int) -> Held:
    """The `count` best nodes by (score, place in A) among those of earlier frames, for each of `frames` frames and after the last, T + 1 rows.

    Frames below 0 are before the first. A node whose score is the lowest number (a masked one, an empty place) is never held. All frames at once: the
    best of each frame, then a scan in log2 T rounds, each of which merges two spans that meet (Hillis 1986). Cost O(A log A + T K log T).
    """
    total = score_BA.shape[1]
    # Worst first, of equal ones the earlier. From here on a node is its rank, and no two are equal.
    order_BA = (score_BA.float() * SCORE_STEPS).round().argsort(dim=1, stable=True)
    best_BA = order_BA.flip(1)
    slot_BA = (frame_BA + 1).clamp_min(0).gather(1, best_BA)
    by_slot_BA = slot_BA.argsort(dim=1, stable=True)
    slot_BA, node_BA = slot_BA.gather(1, by_slot_BA), best_BA.gather(1, by_slot_BA)
    real_BA = score_BA.gather(1, node_BA) > torch.finfo(score_BA.dtype).min
    rank_BA = torch.where(real_BA, total - 1 - by_slot_BA, -1)
    size_BT = torch.zeros_like(slot_BA[:, :1]).expand(-1, frames + 1).scatter_add(1, slot_BA, torch.ones_like(slot_BA))
    within_BA = torch.arange(total, device=slot_BA.device) - (size_BT.cumsum(1) - size_BT).gather(1, slot_BA)
    # What is not among the best of its frame goes to one place more, which is cut off.
    place_BA = torch.where(within_BA < count, slot_BA * count + within_BA, (frames + 1) * count)
    none_BX = torch.full_like(slot_BA[:, :1], -1).expand(-1, (frames + 1) * count + 1)
    held_BTK = torch.unflatten(none_BX.scatter(1, place_BA, rank_BA)[:, :-1], 1, (frames + 1, count))
    reach = 1
    while reach <= frames:
        merged_BTK = torch.cat([held_BTK[:, reach:], held_BTK[:, :-reach]], dim=2).topk(count, dim=2).values
        held_BTK = torch.cat([held_BTK[:, :reach], merged_BTK], dim=1)
        reach *= 2
    held_BTK = held_BTK.flip(2)
    node_BTK = torch.unflatten(order_BA.gather(1, held_BTK.clamp_min(0).flatten(1)), 1, (frames + 1, count))
    return Held(node_BTK=node_BTK, filled_BTK=held_BTK >= 0)


def written(entries: Entries, held: Held, frames: int) -> Entries:
    """What the bank carries on after `frames` frames: the K entries of the last row, their frames counted from the one that comes next."""
    node_BK, filled_BK = held.node_BTK[:, -1], held.filled_BTK[:, -1]
    score_BK = rows(entries.score_BA, node_BK)
    return Entries(
        said_BAX=rows(entries.said_BAX, node_BK),
        score_BA=score_BK.masked_fill(~filled_BK, torch.finfo(score_BK.dtype).min),
        frame_BA=rows(entries.frame_BA, node_BK) - frames,
    )


def joined_entries(earlier: Entries, later: Entries) -> Entries:
    """Both, the earlier ones first."""
    pairs = ((earlier.said_BAX, later.said_BAX), (earlier.score_BA, later.score_BA), (earlier.frame_BA, later.frame_BA))
    said_BAX, score_BA, frame_BA = (torch.cat(pair, dim=1) for pair in pairs)
    return Entries(said_BAX=said_BAX, score_BA=score_BA, frame_BA=frame_BA)


def attend(query_BSD: Tensor, said_BTKX: Tensor, logit_BTKh: Tensor, gap_BTK: Tensor, frame_BS: Tensor) -> tuple[Tensor, Tensor]:
    """What each node hears from the entries that its frame sees, `(B, S, D)`, and how long ago that was for each head, `(B, S, h)`.

    a_ij = softmax_j(q_i . k_j / sqrt(d) + e_ij); heard_i = sum_j a_ij v_j; ago_i = sum_j a_ij g_ij. It goes by blocks of nodes, which a cache holds.
    """
    batch, frames, count, heads = logit_BTKh.shape
    said_NhKX = torch.unflatten(said_BTKX, 3, (heads, -1)).transpose(2, 3).flatten(0, 1)
    logit_NhK, gap_N1K = logit_BTKh.transpose(2, 3).flatten(0, 1), gap_BTK.flatten(0, 1).unsqueeze(1)
    query_Shd = torch.unflatten(query_BSD.flatten(0, 1), 1, (heads, -1))
    row_S = (frame_BS + torch.arange(batch, device=frame_BS.device).unsqueeze(1) * frames).flatten()
    step, depth = block_rows(count * said_BTKX.shape[3], said_BTKX.device), query_Shd.shape[2]
    heard = []
    for first in range(0, len(row_S), step):
        block = slice(first, first + step)
        said_ShKX = said_NhKX.index_select(0, row_S[block])
        score_ShK = (said_ShKX[..., :depth] @ (query_Shd[block] * depth**-0.5).unsqueeze(3)).squeeze(3)
        weight_ShK = (score_ShK + logit_NhK.index_select(0, row_S[block])).softmax(dim=2)
        message_Shd = (weight_ShK.unsqueeze(2) @ said_ShKX[..., depth:]).squeeze(2)
        heard.append((message_Shd.flatten(1), (weight_ShK * gap_N1K.index_select(0, row_S[block])).sum(dim=2)))
    message, ago = heard[0] if len(heard) == 1 else (torch.cat(part) for part in zip(*heard, strict=True))
    return torch.unflatten(message, 0, (batch, -1)), torch.unflatten(ago, 0, (batch, -1))


class LongBank(nn.Module):
    """A bank of `count` entries of keys and values as wide as the memory, and what reads it."""

    def __init__(self, width: int, memory_width: int, count: int, *, eps: float) -> None:
        super().__init__()
        self.count, self.width = count, memory_width
        self.heads = next(h for h in (4, 3, 2, 1) if memory_width % h == 0)
        self.norm = nn.LayerNorm(width, eps=eps)
        self.query = nn.Linear(width, memory_width)
        self.say = nn.Linear(width, 2 * memory_width)
        self.gap = nn.Sequential(nn.Linear(1, 16), nn.GELU(), nn.Linear(16, self.heads))
        self.gap_value = nn.Linear(self.heads, memory_width, bias=False)
        self.output = nn.Linear(memory_width, width)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)

    def forward(self, x_BSD: Tensor, frame_BS: Tensor, frames: int, bias_BS: Tensor | None) -> Tensor:
        """The nodes of a clip `(B, S, D)` after each has read the bank as it was before its frame; `bias_BS`: their scores
        c_i, which are log utility, plus log size behind `merge`."""
        h_BSD = self.norm(x_BSD)
        entries = self.entries(h_BSD, frame_BS, bias_BS)
        return self.read(x_BSD, h_BSD, frame_BS, entries, held_before(entries.score_BA, entries.frame_BA, frames, self.count))

    def go_on(self, nodes: Tokens, frames: int, earlier: Entries | None) -> tuple[Tensor, Entries]:
        """The same of `frames` more frames of a video, t counted from the first of them, and what the bank holds after; None for its start."""
        frame_BS, h_BSD = nodes.position_BN3[..., 0].long(), self.norm(nodes.x_BND)
        now = self.entries(h_BSD, frame_BS, nodes.bias_BN)
        entries = joined_entries(self.blank(now) if earlier is None else earlier, now)
        held = held_before(entries.score_BA, entries.frame_BA, frames, self.count)
        return self.read(nodes.x_BND, h_BSD, frame_BS, entries, held), written(entries, held, frames)

    def entries(self, h_BSD: Tensor, frame_BS: Tensor, bias_BS: Tensor | None) -> Entries:
        """What normalised nodes write."""
        score_BS = torch.zeros_like(h_BSD[..., 0]) if bias_BS is None else bias_BS
        return Entries(said_BAX=self.say(h_BSD), score_BA=score_BS, frame_BA=frame_BS)

    def blank(self, like: Entries) -> Entries:
        """The empty bank, K places of those numbers' kinds."""
        (batch, _, width), lowest = like.said_BAX.shape, torch.finfo(like.score_BA.dtype).min
        return Entries(
            said_BAX=like.said_BAX.new_zeros(batch, self.count, width),
            score_BA=like.score_BA.new_full((batch, self.count), lowest),
            frame_BA=like.frame_BA.new_full((batch, self.count), -1),
        )

    def read(self, x_BSD: Tensor, h_BSD: Tensor, frame_BS: Tensor, entries: Entries, held: Held) -> Tensor:
        """The nodes after their read. What is the same for all nodes of a frame is computed once a frame."""
        node_BTK, filled_BTK = held.node_BTK[:, :-1], held.filled_BTK[:, :-1]
        frames = node_BTK.shape[1]
        since_BTK = torch.arange(frames, device=node_BTK.device).unsqueeze(1) - _of(entries.frame_BA, node_BTK)
        gap_BTK = since_BTK.clamp_min(1).float().log1p().to(h_BSD.dtype)
        logit_BTKh = self.gap(gap_BTK.unsqueeze(3)) + _of(entries.score_BA, node_BTK).unsqueeze(3)
        # All places of an empty bank weigh the same, so that no softmax is without a finite number; what they say isn't taken.
        some_BT1 = filled_BTK.any(dim=2, keepdim=True)
        shut_BTKh = torch.zeros_like(logit_BTKh).masked_fill(some_BT1.unsqueeze(3), torch.finfo(logit_BTKh.dtype).min)
        logit_BTKh = torch.where(filled_BTK.unsqueeze(3), logit_BTKh, shut_BTKh)
        message_BSW, ago_BSh = attend(self.query(h_BSD), neighbours(entries.said_BAX, node_BTK), logit_BTKh, gap_BTK, frame_BS)
        added_BSD = self.output(message_BSW + self.gap_value(ago_BSh))
        out_BSD: Tensor = x_BSD + torch.where(rows(some_BT1, frame_BS), added_BSD, 0.0)
        return out_BSD


def _of(value_BA: Tensor, node_BTK: Tensor) -> Tensor:
    """The values of the nodes held."""
    return torch.unflatten(value_BA.gather(1, node_BTK.flatten(1)), 1, node_BTK.shape[1:])
