"""Attention within segments of a packed sequence where their lengths may be read: equally long ones are rows of a batch, with no mask and no padding.

`packed_attention` has shapes that depend on no value, as compilers, CUDA graphs and counters need, and pays with keys that its masks close. On a CPU
the lengths cost nothing to read. So segments of all clips are put in order of their lengths once, in front of the ViT; each length is then one call
of fused attention, on views, that computes on real keys alone. They go through the ViT in parts that a cache holds.

Suffixes beside those of the package: S tokens of a clip, A those of all clips one behind the other, Q tokens of a segment, R segments.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.backbone.tokens import Tokens

# q, k and v, each `(B, h, S, d)`, to what attention makes of them, heads merged: `(B, S, h*d)`.
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
# What a call of fused attention and a segment in it cost beside what they compute, as MACs of masked attention, and the elements of a hidden layer
# that the cache of a CPU holds. All measured: see DECISIONS.md.
CALL_MACS, SEGMENT_MACS, CACHED = 2_500_000, 30_000, 2_500_000


def may_read(x: Tensor) -> bool:
    """Whether shapes may depend on values: in inference on a CPU, unless torch's fast paths are switched off, as they are where costs are counted."""
    eager = not torch.is_grad_enabled() and x.device.type == "cpu" and not torch.compiler.is_compiling()
    return eager and torch.backends.mha.get_fastpath_enabled()


def cached_tokens(width: int) -> int:
    """How many tokens go through blocks of that width at once, so that the hidden layer of the MLP, of four times that, stays in the cache."""
    return max(1, CACHED // (4 * width))


@dataclass(frozen=True)
class Run:
    """`segments` of `length` tokens each, one behind the other."""

    segments: int
    length: int

    @property
    def tokens(self) -> int:
        return self.segments * self.length


def tokens_of(runs: Sequence[Run]) -> int:
    """How many tokens they have in all."""
    return sum(run.tokens for run in runs)


@dataclass(frozen=True)
class Part:
    """Runs that go through the ViT together, and the bias on the keys of each, `(R, 1, 1, Q)`, None without one."""

    runs: Sequence[Run]
    biases: Sequence[Tensor | None]

    @classmethod
    def of(cls, runs: Sequence[Run], bias_A: Tensor | None) -> Part:
        """With a bias on all their keys, one run behind the other."""
        if bias_A is None:
            return cls(runs, [None] * len(runs))
        each = torch.split(bias_A, [run.tokens for run in runs])
        return cls(runs, [bias.view(run.segments, 1, 1, run.length) for run, bias in zip(runs, each, strict=True)])

    @property
    def tokens(self) -> int:
        return tokens_of(self.runs)

    def attend(self, q_1hAd: Tensor, k_1hAd: Tensor, v_1hAd: Tensor) -> Tensor:
        """softmax_j(q_i.k_j / sqrt(d) + b_j) over the j of i's own segment, heads merged: `(1, A, h*d)`."""
        lengths, out = [run.tokens for run in self.runs], []
        pieces = (torch.split(value[0], lengths, dim=1) for value in (q_1hAd, k_1hAd, v_1hAd))
        for run, bias, *each in zip(self.runs, self.biases, *pieces, strict=True):
            q, k, v = (torch.unflatten(value_hAd, 1, (run.segments, -1)).transpose(0, 1) for value_hAd in each)
            heard_RhQd = F.scaled_dot_product_attention(q, k, v, attn_mask=None if bias is None else bias.to(q.dtype))
            out.append(heard_RhQd.transpose(1, 2).reshape(run.tokens, -1))
        return torch.cat(out).unsqueeze(0)


@dataclass(frozen=True)
class Runs:
    """Tokens of all clips in order of the lengths of their segments, `order_A`, what turns that round, `back_A`, and the parts they go in."""

    order_A: Tensor
    back_A: Tensor
    parts: Sequence[Part]

    def within(self, step: Callable[[Attend, Tokens], Tokens], tokens: Tokens) -> Tokens:
        """What `step` makes of the tokens, part by part and each within its segment, back in their own order."""
        x_1AD = tokens.x_BND.flatten(0, 1)[self.order_A].unsqueeze(0)
        pieces = torch.split(x_1AD, [part.tokens for part in self.parts], dim=1)
        done = [step(part.attend, Tokens(x, x.new_empty(0))).x_BND for part, x in zip(self.parts, pieces, strict=True)]
        return tokens.with_x(torch.cat(done, dim=1)[0, self.back_A].view_as(tokens.x_BND))


def in_parts(runs: Sequence[Run], most: int) -> Iterator[list[Run]]:
    """The runs in parts of at most `most` tokens, or of one segment that is longer."""
    part: list[Run] = []
    for run in runs:
        left = run.segments
        while left:
            fit = (most - tokens_of(part)) // run.length
            if part and fit < 1:
                yield part
                part = []
            else:
                part.append(Run(min(left, max(fit, 1)), run.length))
                left -= part[-1].segments
    yield part


def put_in_runs(tokens: Tokens, segment_BS: Tensor, masked_keys: int) -> Runs | None:
    """The tokens of a batch by their segments, which may lie anywhere in their clip. None where that would take longer than `masked_keys` keys a
    token, as many as `packed_attention` would look at.
    """
    width, masked_macs = tokens.x_BND.shape[2], segment_BS.numel() * masked_keys * 2 * tokens.x_BND.shape[2]
    if masked_macs < CALL_MACS:
        return None
    number_A = (segment_BS + torch.arange(len(segment_BS))[:, None] * (segment_BS.max() + 1)).flatten()
    length_R = number_A.bincount()
    lengths, counts = torch.unique_consecutive(length_R[length_R > 0].sort().values, return_counts=True)
    runs = [Run(segments, length) for segments, length in zip(counts.tolist(), lengths.tolist(), strict=True)]
    plan = list(in_parts(runs, cached_tokens(width)))
    own_macs = sum(run.segments * run.length**2 for run in runs) * 2 * width
    if masked_macs < own_macs + CALL_MACS * sum(map(len, plan)) + SEGMENT_MACS * sum(run.segments for run in runs):
        return None
    order_A = (length_R[number_A] * len(length_R) + number_A).argsort(stable=True)
    bias_BS = tokens.key_bias_BN()
    biases = [None] * len(plan) if bias_BS is None else torch.split(bias_BS.flatten()[order_A], list(map(tokens_of, plan)))
    return Runs(order_A, order_A.argsort(), [Part.of(*both) for both in zip(plan, biases, strict=True)])
