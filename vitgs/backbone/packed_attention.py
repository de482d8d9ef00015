"""Attention within segments of a packed sequence: frames that kept a number of tokens of their own lie one behind the other, and none sees another.

Nothing is padded to a frame, so linear layers never see a dropped token. No shape depends on values: it compiles, and costs are counted on shapes.
A segment of at most `longest` tokens reaches less than `longest` to each side of a token. So the sequence is cut into blocks of a third of that,
or of 32 if that is more. Each looks at itself and `longest - 1` tokens to either side, and a mask closes what is of another segment: 7/3 `longest`
keys a token, or 32 and twice `longest`, however long the sequence. Clips of a batch are one sequence for this. In inference on a CPU `runs` reads
the lengths and just the keys of a token's own segment; on CUDA a variable-length kernel would.

Suffixes beside those of the package: S tokens of a clip, A those of all clips one behind the other, C blocks of Q tokens, W what a block looks at.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.backbone.block import Block
from vitgs.backbone.runs import Attend, Runs, may_read, put_in_runs
from vitgs.backbone.tokens import Tokens, rows

# A block of a few tokens takes as long as one of this many, in time, whatever is counted for it: see DECISIONS.md.
SHORTEST_BLOCK = 32


def rides(x: Tensor) -> bool:
    """Whether a bias on keys is one more channel where `x` is, as `attention.attend` has it, instead of part of the mask."""
    return torch.is_grad_enabled() or x.is_cuda


def with_channel(q_BhSd: Tensor, k_BhSd: Tensor, v_BhSd: Tensor, bias_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v with the channel that the bias rides in: ones, bias sqrt(d), and zeros, for a scale of 1/sqrt(d)."""
    bias_BhS1 = (bias_BS * q_BhSd.shape[-1] ** 0.5)[:, None, :, None].expand(*k_BhSd.shape[:-1], 1).to(k_BhSd.dtype)
    return torch.cat([q_BhSd, torch.ones_like(q_BhSd[..., :1])], dim=-1), torch.cat([k_BhSd, bias_BhS1], dim=-1), F.pad(v_BhSd, (0, 1))


@dataclass(frozen=True)
class Cut:
    """Blocks of `block` tokens, each of which looks `reach` tokens to either side; there are `count` tokens in all."""

    block: int
    reach: int
    count: int

    @property
    def sight(self) -> int:
        """How many tokens a block looks at, W."""
        return self.block + 2 * self.reach

    @property
    def spare(self) -> int:
        """How many places of the last block are left over."""
        return -self.count % self.block

    def blocks(self, value_A_: Tensor, fill: int = 0) -> Tensor:
        """`(A, ...)` -> `(C, Q, ...)`, the last block filled up."""
        return torch.unflatten(_padded(value_A_, 0, self.spare, fill), 0, (-1, self.block))

    def sights(self, value_A_: Tensor, fill: int = 0) -> Tensor:
        """`(A, ...)` -> `(C, W, ...)`: what each block looks at, filled up beyond the ends. Blocks share their memory, nothing is copied for each."""
        padded = _padded(value_A_, self.reach, self.reach + self.spare, fill)
        return padded.unfold(0, self.sight, self.block).movedim(-1, 1)


def _padded(value_A_: Tensor, before: int, behind: int, fill: int) -> Tensor:
    return F.pad(value_A_, (0, 0) * (value_A_.dim() - 1) + (before, behind), value=fill)


@dataclass(frozen=True)
class Sight:
    """Who sees whom, the same in all blocks of a ViT. `mask`: added to logits, `(B, 1, S, S)`, or `(C, 1, Q, W)` where there is a `cut`.

    `riding_BS`: the bias on keys where it can't be in the mask, because it has a gradient.
    """

    mask: Tensor
    riding_BS: Tensor | None
    cut: Cut | None


def cut_for(segment_BS: Tensor, longest: int) -> Cut:
    """The blocks for segments of at most `longest` tokens."""
    return Cut(block=max(-(-longest // 3), SHORTEST_BLOCK), reach=longest - 1, count=segment_BS.numel())


def one_mask(segment_BS: Tensor, longest: int) -> bool:
    """Whether a block would look at all tokens of a clip anyway."""
    return segment_BS.shape[1] <= cut_for(segment_BS, longest).sight


def keys_seen(segment_BS: Tensor, longest: int) -> int:
    """How many keys a token looks at, open or closed."""
    return segment_BS.shape[1] if one_mask(segment_BS, longest) else cut_for(segment_BS, longest).sight


def sight(segment_BS: Tensor, bias_BS: Tensor | None, longest: int, dtype: torch.dtype) -> Sight:
    """Tokens of one segment, which lie side by side and are at most `longest`, see each other, and nobody else; `bias_BS` is added for keys."""
    cut = cut_for(segment_BS, longest)
    riding_BS = bias_BS if rides(segment_BS) else None
    masked_BS = None if rides(segment_BS) else bias_BS
    if one_mask(segment_BS, longest):
        same = segment_BS.unsqueeze(2) == segment_BS.unsqueeze(1)
        added = torch.zeros((), dtype=dtype, device=same.device) if masked_BS is None else masked_BS.unsqueeze(1).to(dtype)
        return Sight(mask=torch.where(same, added, -torch.inf).unsqueeze(1), riding_BS=riding_BS, cut=None)
    # Numbered anew, since clips have frames of the same numbers; what fills up is a segment too, so that softmax has something to see in each row.
    begins_BS = F.pad(segment_BS.diff(dim=1) != 0, (1, 0), value=True)
    number_A = begins_BS.flatten().cumsum(dim=0)
    same = cut.blocks(number_A).unsqueeze(2) == cut.sights(number_A).unsqueeze(1)
    added = torch.zeros((), dtype=dtype, device=same.device) if masked_BS is None else cut.sights(masked_BS.flatten()).unsqueeze(1).to(dtype)
    return Sight(mask=torch.where(same, added, -torch.inf).unsqueeze(1), riding_BS=riding_BS, cut=cut)


def attend_seen(q_BhSd: Tensor, k_BhSd: Tensor, v_BhSd: Tensor, seen: Sight) -> Tensor:
    """Fused attention of each token to what it sees, heads merged: `(B, S, h*d)`."""
    batch, scale = q_BhSd.shape[0], q_BhSd.shape[-1] ** -0.5
    q, k, v = (q_BhSd, k_BhSd, v_BhSd) if seen.riding_BS is None else with_channel(q_BhSd, k_BhSd, v_BhSd, seen.riding_BS)
    mask = seen.mask.to(q.dtype)
    if seen.cut is None:
        out_BShd = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2)
    else:
        q_Ahd, k_Ahd, v_Ahd = (value.transpose(1, 2).flatten(0, 1) for value in (q, k, v))
        q_ChQd = seen.cut.blocks(q_Ahd).transpose(1, 2)
        k_ChWd, v_ChWd = (seen.cut.sights(value).transpose(1, 2) for value in (k_Ahd, v_Ahd))
        out_ChQd = F.scaled_dot_product_attention(q_ChQd, k_ChWd, v_ChWd, attn_mask=mask, scale=scale)
        out_BShd = torch.unflatten(out_ChQd.transpose(1, 2).flatten(0, 1)[: seen.cut.count], 0, (batch, -1))
    return (out_BShd if seen.riding_BS is None else out_BShd[..., :-1]).flatten(2)


def attend_within(q_BhSd: Tensor, k_BhSd: Tensor, v_BhSd: Tensor, segment_BS: Tensor, bias_BS: Tensor | None, longest: int) -> Tensor:
    """softmax_j(q_i.k_j / sqrt(d) + b_j) over the j of i's own segment, heads merged: `(B, S, h*d)`; segments lie as `sight` says."""
    return attend_seen(q_BhSd, k_BhSd, v_BhSd, sight(segment_BS, bias_BS, longest, q_BhSd.dtype))


@dataclass(frozen=True)
class Packing:
    """How tokens of several segments go through blocks. `order_BS` brings the tokens of a segment side by side and `back_BS` turns that round; None
    where they may stay as they lie."""

    seen: Sight
    order_BS: Tensor | None
    back_BS: Tensor | None

    def within(self, step: Callable[[Attend, Tokens], Tokens], tokens: Tokens) -> Tokens:
        """What `step` makes of the tokens as attention wants them to lie, back in their own order."""
        attend = partial(attend_seen, seen=self.seen)
        if self.order_BS is None or self.back_BS is None:
            return step(attend, tokens)
        return tokens.with_x(rows(step(attend, tokens.with_x(rows(tokens.x_BND, self.order_BS))).x_BND, self.back_BS))


def pack(tokens: Tokens, segment_BS: Tensor, longest: int) -> Packing | Runs:
    """For tokens in the order of their segments, but for class tokens in front, which go to the segments that they are given.

    Where one mask over all tokens of a clip will do, it says who sees whom however they lie; where lengths may be read and that is faster, no mask.
    """
    if may_read(tokens.x_BND) and (runs := put_in_runs(tokens, segment_BS, keys_seen(segment_BS, longest))):
        return runs
    bias_BS = tokens.key_bias_BN()
    if not tokens.prefix or one_mask(segment_BS, longest):
        return Packing(sight(segment_BS, bias_BS, longest, tokens.x_BND.dtype), None, None)
    order_BS = segment_BS.argsort(dim=1, stable=True)
    sorted_BS = segment_BS.gather(1, order_BS)
    sorted_bias_BS = None if bias_BS is None else rows(bias_BS, order_BS)
    return Packing(sight(sorted_BS, sorted_bias_BS, longest, tokens.x_BND.dtype), order_BS, order_BS.argsort(dim=1))


def packed_block(block: Block, attend: Attend, tokens: Tokens) -> Tokens:
    """The block, with the attention of each token to its own segment alone."""
    branch_BSD = block.attention.output(attend(*block.attention.project(block.norm1(tokens.x_BND))))
    return block.feed(tokens.with_x(tokens.x_BND + block.scale1(branch_BSD)))
