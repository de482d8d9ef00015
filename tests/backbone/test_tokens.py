"""`Tokens` and what regroups them: nothing gets lost, everything moves along."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import pytest
import torch

from vitgs.backbone.embeddings import PatchEmbed, TimeEmbed
from vitgs.backbone.sizes import size, style
from vitgs.backbone.tokens import Tokens, gather, join_frames, rows, split_frames, with_prefix, without_prefix
from vitgs.spec import Clip

CLIP = Clip(frames=3, height=16, width=32)


def full(batch: int = 2, count: int = 12) -> Tokens:
    """Tokens with every field set, each a function of (row, place), so that a mix-up shows."""
    code = (torch.arange(batch)[:, None] * 100 + torch.arange(count)).float()
    return Tokens(
        x_BND=code.unsqueeze(-1).expand(-1, -1, 4).clone(),
        position_BN3=code.unsqueeze(-1).expand(-1, -1, 3).clone(),
        size_BN=code + 1,
        bias_BN=-code,
        mask_BN=code % 2 == 0,
    )


def fields(tokens: Tokens) -> tuple[torch.Tensor, ...]:
    assert tokens.size_BN is not None
    assert tokens.bias_BN is not None
    assert tokens.mask_BN is not None
    return tokens.x_BND, tokens.position_BN3, tokens.size_BN, tokens.bias_BN, tokens.mask_BN


def test_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        full().prefix = 3  # type: ignore[misc]


def test_frames_split_and_join() -> None:
    tokens = full()
    split = split_frames(tokens, 3)
    assert split.x_BND.shape == (6, 4, 4)
    assert split.x_BND[:, 0, 0].tolist() == [0, 4, 8, 100, 104, 108]
    for a, b in zip(fields(join_frames(split, 3)), fields(tokens), strict=True):
        assert torch.equal(a, b)


def test_gather_takes_every_field_along() -> None:
    index = torch.tensor([[0, 3, 7], [11, 2, 2]])
    for got, whole in zip(fields(gather(full(), index)), fields(full()), strict=True):
        assert torch.equal(got, rows(whole, index))
        assert torch.equal(got, torch.stack([whole[b, index[b]] for b in range(2)]))


def test_prefix_on_and_off() -> None:
    tokens = with_prefix(full(), torch.full((1, 1, 4), 9.0))
    x, position, sizes, bias, mask = fields(tokens)
    assert tokens.prefix == 1
    assert (x[:, 0] == 9).all()
    assert (position[:, 0] == -1).all()
    assert (sizes[:, 0] == 1).all()
    assert (bias[:, 0] == 0).all()
    assert mask[:, 0].all()
    for a, b in zip(fields(without_prefix(tokens)), fields(full()), strict=True):
        assert torch.equal(a, b)
    assert without_prefix(tokens).prefix == 0
    bare = with_prefix(Tokens(x_BND=full().x_BND, position_BN3=full().position_BN3), torch.zeros(1, 1, 4))
    assert bare.size_BN is None
    assert bare.key_bias_BN() is None


def test_weights_are_size_times_utility() -> None:
    utility, sizes = torch.rand(2, 5) + 0.1, torch.randint(1, 4, (2, 5)).float()
    tokens = Tokens(x_BND=torch.zeros(2, 5, 4), position_BN3=torch.zeros(2, 5, 3), size_BN=sizes, bias_BN=utility.log())
    weight = tokens.weight_BN()
    assert weight is not None
    torch.testing.assert_close(weight, sizes * utility / (sizes * utility).sum(dim=1, keepdim=True))


def test_positions_and_time() -> None:
    embed = PatchEmbed(size("test"), style("digits"), CLIP, 8)
    clip = torch.randn(2, *CLIP.shape)
    tokens = embed(clip)
    assert (embed.rows, embed.columns, embed.count) == (2, 4, 8)
    assert tokens.position_BN3[1].tolist() == [[t, y, x] for t in range(3) for y in range(2) for x in range(4)]
    # The token at (t, y, x) is that patch and no other.
    other = clip.clone()
    other[:, 1, :, 8:16, 16:24] += 1
    changed = (embed(other).x_BND != tokens.x_BND).any(dim=-1)
    assert [tokens.position_BN3[0, i].tolist() for i in changed[0].nonzero().flatten()] == [[1, 1, 2]]
    time = TimeEmbed(3, 32, 1.0)
    assert torch.equal(time(tokens).x_BND, time.all_frames(tokens).x_BND)
    kept = torch.tensor([[1, 20], [8, 9]])
    assert torch.equal(time(gather(tokens, kept)).x_BND, rows(time.all_frames(tokens).x_BND, kept))


@pytest.mark.parametrize("name", ["digits", "clip"])
def test_some_patches_have_the_numbers_of_all(name: str) -> None:
    clip_shape = Clip(frames=3, height=32, width=64, channels=3)
    row = style(name)
    embed = PatchEmbed(size("test"), row, clip_shape, row.patch)
    torch.nn.init.normal_(embed.patch.weight)
    if embed.patch.bias is not None:
        torch.nn.init.normal_(embed.patch.bias)
    clip = torch.randn(2, *clip_shape.shape)
    index = torch.stack([torch.randperm(3 * embed.count)[:7] for _ in range(2)])
    some, every = embed.some(clip, index), gather(embed(clip), index)
    torch.testing.assert_close(some.x_BND, every.x_BND, rtol=0, atol=1e-4)
    assert torch.equal(some.position_BN3, every.position_BN3)
