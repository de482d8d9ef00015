"""Runs of equal segments: the same values as masks give, whatever the parts, on no more keys than a segment has, and only where that is faster."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.backbone.test_packed_attention import LENGTHS, segments
from vitgs.backbone import runs, sizes
from vitgs.backbone.block import Block
from vitgs.backbone.packed_attention import Packing, keys_seen, pack, packed_block
from vitgs.backbone.runs import Run, Runs, in_parts, may_read, put_in_runs
from vitgs.backbone.sizes import style
from vitgs.backbone.tokens import Tokens
from vitgs.measure.formula import FormulaCounter
from vitgs.measure.setting import no_fast_path

LONGEST = 31


@pytest.fixture(autouse=True)
def at_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls cost nothing, so that lengths are read in clips as small as a test's."""
    monkeypatch.setattr(runs, "CALL_MACS", 0)
    monkeypatch.setattr(runs, "SEGMENT_MACS", 0)


def packed(lengths: tuple[tuple[int, ...], ...], *, biased: bool) -> tuple[Tokens, Tensor]:
    """Tokens with class tokens in front, one for each segment's number, and which segment each is of."""
    frame = segments(lengths)
    frames = int(frame.max()) + 1
    segment = torch.cat([torch.arange(frames).expand(len(frame), -1), frame], dim=1)
    torch.manual_seed(0)
    x, bias = torch.randn(*segment.shape, sizes.size("test").width), torch.randn(segment.shape) if biased else None
    return Tokens(x_BND=x, position_BN3=torch.zeros(*segment.shape, 3), prefix=frames, bias_BN=bias), segment


def block() -> Block:
    torch.manual_seed(1)
    return Block(sizes.size("test"), style("digits"))


@pytest.mark.parametrize("most", [1, 40, 10**6])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values_are_those_by_masks(monkeypatch: pytest.MonkeyPatch, lengths: tuple[tuple[int, ...], ...], biased: bool, most: int) -> None:
    monkeypatch.setattr(runs, "cached_tokens", lambda width: most)
    tokens, segment = packed(lengths, biased=biased)
    step = partial(packed_block, block())
    with torch.no_grad():
        by_runs = pack(tokens, segment, LONGEST)
        with no_fast_path():
            by_masks = pack(tokens, segment, LONGEST)
        assert isinstance(by_runs, Runs) and isinstance(by_masks, Packing)
        ours, expected = by_runs.within(step, tokens), by_masks.within(step, tokens)
    assert ours.bias_BN is tokens.bias_BN and ours.prefix == tokens.prefix
    torch.testing.assert_close(ours.x_BND, expected.x_BND, rtol=0, atol=1e-5)
    assert [part.tokens <= most or (len(part.runs) == 1 and part.runs[0].segments == 1) for part in by_runs.parts] == [True] * len(by_runs.parts)


def test_each_key_that_is_computed_is_of_the_token_s_own_segment() -> None:
    tokens, segment = packed(LENGTHS["in blocks"], biased=True)
    frames = int(segment.max()) + 1
    one, width = block(), sizes.size("test").width
    with torch.no_grad(), FormulaCounter() as counter:
        pack(tokens, segment, LONGEST).within(partial(packed_block, one), tokens)
    length_R = [row[row > 0] for row in (clip.bincount(minlength=frames) for clip in segment)]
    pairs = sum(int(lengths.square().sum()) for lengths in length_R)
    linear = sum(weight.numel() for name, weight in one.named_parameters() if name.endswith("weight") and weight.dim() == 2)
    assert counter.macs == segment.numel() * linear + 2 * pairs * width


def test_parts_end_between_segments() -> None:
    assert list(in_parts([Run(2, 1), Run(1, 2), Run(3, 3)], 7)) == [[Run(2, 1), Run(1, 2), Run(1, 3)], [Run(2, 3)]]
    assert list(in_parts([Run(2, 5)], 4)) == [[Run(1, 5)], [Run(1, 5)]]


def test_lengths_are_read_only_where_that_is_free() -> None:
    x = torch.zeros(1)
    with torch.no_grad():
        assert may_read(x) and not may_read(x.to("meta"))
        assert not torch.compile(lambda x: x + may_read(x), backend="eager", fullgraph=True)(x).any()
        with no_fast_path():
            assert not may_read(x)
    assert not may_read(x)


def test_a_few_short_segments_stay_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    tokens, segment = packed(LENGTHS["in blocks"], biased=False)
    with torch.no_grad():
        assert put_in_runs(tokens, segment, keys_seen(segment, LONGEST)) is None
        wide = Tokens(torch.zeros(2, 8 * 197, 384), torch.zeros(0))
        whole = torch.arange(8).repeat_interleave(197).expand(2, -1)
        found = put_in_runs(wide, whole, keys_seen(whole, 197))
    assert found is not None and [part.runs for part in found.parts] == [[Run(8, 197)], [Run(8, 197)]]
