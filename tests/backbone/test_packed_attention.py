"""Attention within segments: each as if it were alone, in values and gradients, however long the sequence is, and at a cost that is linear in it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from vitgs.backbone import sizes
from vitgs.backbone.attention import attend
from vitgs.backbone.block import Block
from vitgs.backbone.packed_attention import SHORTEST_BLOCK, Cut, attend_within, cut_for, pack, packed_block, sight
from vitgs.backbone.sizes import style
from vitgs.backbone.tokens import Tokens
from vitgs.measure.formula import FormulaCounter

LONGEST = 30
# Lengths of two clips' segments; both clips have as many tokens. One is short enough to be seen at a glance, the others are cut into blocks.
LENGTHS = {
    "at once": ((15, 1, 30), (23, 23)),
    "in blocks": ((30, 30, 1, 2, 30, 20, 1), (1, 1, 1, 1, 30, 30, 30, 20)),
    "full": ((30,) * 5, (30,) * 5),
    "single": ((1,) * 100, (30, 30, 30, 10)),
}


def segments(lengths: tuple[tuple[int, ...], ...]) -> Tensor:
    """Numbered as frames are, some of which are left out, and the last of a clip the first of the next."""
    return torch.stack([torch.repeat_interleave(2 * torch.arange(len(row)).flip(0), torch.tensor(row)) for row in lengths])


def apart(q: Tensor, k: Tensor, v: Tensor, segment_BS: Tensor, bias_BS: Tensor | None) -> Tensor:
    """A loop over segments."""
    batch, _, count, _ = q.shape
    out = torch.zeros(batch, count, q.shape[1] * q.shape[3], dtype=q.dtype)
    for b in range(batch):
        for number in set(segment_BS[b].tolist()):
            at = (segment_BS[b] == number).nonzero().squeeze(1)
            one, bias = slice(b, b + 1), None if bias_BS is None else bias_BS[b : b + 1, at]
            out = out.index_put((torch.tensor(b), at), attend(q[one, :, at], k[one, :, at], v[one, :, at], bias)[0])
    return out


def inputs(count: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 3, count, 4, dtype=dtype, requires_grad=True) for _ in range(3)]


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_each_segment_is_as_if_alone(lengths: tuple[tuple[int, ...], ...], biased: bool) -> None:
    segment = segments(lengths)
    count = segment.shape[1]
    q, k, v = inputs(count)
    bias = torch.randn(2, count, dtype=torch.float64, requires_grad=True) if biased else None
    ours, expected = attend_within(q, k, v, segment, bias, LONGEST), apart(q, k, v, segment, bias)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(attend_within(q, k, v, segment, bias, LONGEST), expected, rtol=0, atol=1e-10)
    weight, learned = torch.randn_like(expected), [q, k, v] if bias is None else [q, k, v, bias]
    got, wanted = (torch.autograd.grad((out * weight).sum(), learned) for out in (ours, expected))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", ["at once", "in blocks"])
def test_gradients_by_differences(name: str) -> None:
    segment = segments(LENGTHS[name])
    q, k, v = inputs(segment.shape[1])
    bias = torch.randn(2, segment.shape[1], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda q, k, v, bias: attend_within(q, k, v, segment, bias, LONGEST), (q, k, v, bias), fast_mode=True)


@pytest.mark.parametrize("longest", [1, 2, 3, 4, 7, 30])
def test_any_limit_that_holds_gives_the_same(longest: int) -> None:
    segment = torch.arange(60).div(longest, rounding_mode="floor").expand(2, -1)
    q, k, v = inputs(60)
    torch.testing.assert_close(attend_within(q, k, v, segment, None, longest), apart(q, k, v, segment, None), rtol=0, atol=1e-10)


def test_half_precision_and_no_gradient() -> None:
    segment = segments(LENGTHS["in blocks"])
    q, k, v = inputs(segment.shape[1])
    bias = torch.randn(2, segment.shape[1])
    expected = apart(q, k, v, segment, bias)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        low = [value.detach().to(dtype).requires_grad_() for value in (q, k, v)]
        out = attend_within(low[0], low[1], low[2], segment, bias.to(dtype), LONGEST)
        assert out.dtype == dtype and all(g.isfinite().all() for g in torch.autograd.grad(out.float().sum(), low))
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=5e-2 if dtype.itemsize == 2 else 1e-5)


def test_a_block_sees_as_far_as_a_segment_can_reach() -> None:
    cut = Cut(block=2, reach=5, count=9)
    blocks, sights = cut.blocks(torch.arange(9), -1), cut.sights(torch.arange(9), -1)
    assert blocks.tolist() == [[0, 1], [2, 3], [4, 5], [6, 7], [8, -1]] and sights.shape == (5, cut.sight)
    for row, seen in zip(blocks.tolist(), sights.tolist(), strict=True):
        expected = range(row[0] - 5, row[0] + 7)
        assert seen == [i if 0 <= i < 9 else -1 for i in expected]


def test_the_cost_is_linear_and_needs_no_values() -> None:
    macs = []
    for frames in (16, 32, 64):
        q = torch.empty(1, 3, frames * 10, 8, device="meta")
        segment = torch.empty(1, frames * 10, dtype=torch.long, device="meta")
        with FormulaCounter() as counter, torch.no_grad():
            assert attend_within(q, q, q, segment, torch.empty(1, frames * 10, device="meta"), 30).shape == (1, frames * 10, 24)
        macs.append(counter.macs)
    assert macs[0] == 160 * (32 + 2 * 29) * 2 * 24 and macs == [macs[0], 2 * macs[0], 4 * macs[0]]


def test_no_mask_is_larger_than_what_blocks_look_at() -> None:
    assert sight(torch.zeros(1, 90, dtype=torch.long), None, 30, torch.float32).mask.shape == (1, 1, 90, 90)
    assert sight(torch.zeros(1, 91, dtype=torch.long), None, 30, torch.float32).mask.shape == (3, 1, 32, 90)


@pytest.mark.parametrize(("longest", "block"), [(1, SHORTEST_BLOCK), (17, SHORTEST_BLOCK), (197, 66)])
def test_a_block_is_a_third_of_a_segment_but_never_short(longest: int, block: int) -> None:
    cut = cut_for(torch.zeros(2, 300, dtype=torch.long), longest)
    assert cut == Cut(block=block, reach=longest - 1, count=600)


@pytest.mark.parametrize("lengths", [LENGTHS["at once"], LENGTHS["in blocks"]], ids=["at once", "in blocks"])
def test_class_tokens_in_front_belong_to_the_segments_they_are_given(lengths: tuple[tuple[int, ...], ...]) -> None:
    torch.manual_seed(0)
    block = Block(sizes.size("test"), style("digits"))
    frame = segments(lengths)
    frames, batch = int(frame.max()) + 1, len(frame)
    segment = torch.cat([torch.arange(frames).expand(batch, -1), frame], dim=1)
    x, bias = torch.randn(*segment.shape, sizes.size("test").width), torch.randn(segment.shape)
    tokens = Tokens(x_BND=x, position_BN3=torch.zeros(*segment.shape, 3), prefix=frames, bias_BN=bias)
    packing = pack(tokens, segment, LONGEST + 1)
    packed = packing.within(partial(packed_block, block), tokens)
    assert packed.prefix == frames and packed.bias_BN is bias
    for b in range(batch):
        for number in range(frames):
            at = segment[b] == number
            alone = Tokens(x_BND=x[b : b + 1, at], position_BN3=torch.zeros(1, int(at.sum()), 3), bias_BN=bias[b : b + 1, at])
            torch.testing.assert_close(packed.x_BND[b : b + 1, at], block(alone).x_BND, rtol=0, atol=1e-5)
