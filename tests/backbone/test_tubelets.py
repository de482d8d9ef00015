"""Tubelet embedding: against a 3-D convolution, token by token, its fixed positions, and its start from an image model's weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from vitgs.backbone.attention import Attention
from vitgs.backbone.embeddings import PatchEmbed
from vitgs.backbone.sizes import size, style
from vitgs.backbone.tokens import Tokens
from vitgs.backbone.tubelets import OverwritingGelu, QvLinear, TubeletEmbed, TubeletVit, central, inflated, sine_table
from vitgs.errors import UsageError
from vitgs.record import Clip

SIZE, STYLE = size("test"), style("digits")
CLIP = Clip(frames=6, height=16, width=24)


def embed(tubelet: int = 2, positions: str = "learned", clip: Clip = CLIP) -> TubeletEmbed:
    torch.manual_seed(0)
    return TubeletEmbed(SIZE, STYLE, clip, tubelet=tubelet, positions=positions)


@pytest.mark.parametrize("tubelet", [1, 2, 3, 6])
@torch.no_grad()
def test_is_a_convolution(tubelet: int) -> None:
    part, clip = embed(tubelet), torch.randn(2, *CLIP.shape)
    tokens = part(clip)
    plain = F.conv3d(clip.transpose(1, 2), part.patch.weight, part.patch.bias, stride=part.patch.stride)
    torch.testing.assert_close(tokens.x_BND, plain.flatten(2).transpose(1, 2) + part.position)
    assert tokens.position_BN3.shape == (2, 6 // tubelet * 2 * 3, 3)
    assert tokens.position_BN3[1, -1].tolist() == [6 // tubelet - 1, 1, 2]


@torch.no_grad()
def test_some_tokens_have_the_numbers_of_all() -> None:
    part, clip = embed(), torch.randn(3, *CLIP.shape)
    whole = part(clip).x_BND
    clips, places = torch.tensor([2, 0, 1, 2]), torch.tensor([17, 0, 9, 5])
    torch.testing.assert_close(part.some(clip, clips, places), whole[clips, places])
    index_BK = torch.tensor([[1, 2], [0, 17], [3, 4]])
    torch.testing.assert_close(part.some(clip, torch.arange(3)[:, None], index_BK), whole.gather(1, index_BK[..., None].expand(-1, -1, SIZE.width)))


def test_fixed_positions_are_no_weights() -> None:
    assert sorted(embed(positions="sine").state_dict()) == ["patch.bias", "patch.weight"]
    assert sorted(embed(positions="learned").state_dict()) == ["patch.bias", "patch.weight", "position"]
    table = sine_table(5, 6)
    assert table[0].tolist() == [0, 1, 0, 1, 0, 1]
    expected = [torch.tensor(3 * 10000 ** (-2 * (c // 2) / 6), dtype=torch.float64) for c in range(6)]
    torch.testing.assert_close(table[3], torch.stack([x.sin() if c % 2 == 0 else x.cos() for c, x in enumerate(expected)]).float())


@pytest.mark.parametrize(
    ("clip", "tubelet", "given"),
    [(CLIP, 4, "6 frames"), (replace(CLIP, frames=1), 2, "1 frames"), (replace(CLIP, height=20), 2, "20x24"), (CLIP, 2, "positions")],
)
def test_what_does_not_fit_is_one_line(clip: Clip, tubelet: int, given: str) -> None:
    with pytest.raises(UsageError) as error:
        embed(tubelet, "no such" if given == "positions" else "sine", clip)
    assert given in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("start", ["inflated", "central"])
@torch.no_grad()
def test_starts_as_the_image_embedding_on_a_still(start: str) -> None:
    image = PatchEmbed(SIZE, STYLE, replace(CLIP, frames=1), STYLE.patch)
    part = embed()
    weights = part.from_image({f"vit.embed.{name}": value for name, value in image.state_dict().items()}, start=start)
    del weights["vit.embed.class_token"]
    part.load_state_dict({name.removeprefix("vit.embed."): value for name, value in weights.items()})
    frame = torch.randn(2, 1, *CLIP.shape[1:])
    torch.testing.assert_close(part(frame.expand(-1, 6, -1, -1, -1)).x_BND, image(frame).x_BND.repeat(1, 3, 1), rtol=1e-5, atol=1e-5)


def test_filters_over_time() -> None:
    image = torch.randn(4, 3, 2, 2)
    for tubelet, index in ((2, 1), (3, 1), (4, 2)):
        middle = central(image, tubelet)
        assert torch.equal(middle[:, :, index], image) and middle.count_nonzero() == image.count_nonzero()
    torch.testing.assert_close(inflated(image, 3).sum(dim=2), image)


@torch.no_grad()
def test_positions_of_another_grid_are_resized() -> None:
    part = embed(positions="learned", clip=replace(CLIP, width=16))
    fitted = part.from_image({"vit.embed.position": torch.randn(16, SIZE.width)})
    assert fitted["vit.embed.position"].shape == (3 * 2 * 2, SIZE.width)
    assert "vit.embed.position" not in embed(positions="sine").from_image({"vit.embed.position": torch.randn(16, SIZE.width)})


@torch.no_grad()
def test_a_bias_on_keys_changes_nothing() -> None:
    plain, other = (Attention(SIZE.width, SIZE.heads) for _ in range(2))
    torch.nn.init.normal_(plain.qkv.bias)
    other.qkv = QvLinear(SIZE.width)
    q, _, v = plain.qkv.bias.chunk(3)
    other.load_state_dict({**plain.state_dict(), "qkv.bias": torch.cat([q, v])})
    tokens = Tokens(x_BND=torch.randn(2, 7, SIZE.width), position_BN3=torch.zeros(2, 7, 3))
    torch.testing.assert_close(plain(tokens), other(tokens), rtol=1e-5, atol=1e-5)


def test_gelu_overwrites_only_without_a_gradient() -> None:
    x = torch.randn(3, 5)
    expected, kept = torch.nn.functional.gelu(x), x.clone()
    assert torch.equal(OverwritingGelu()(x), expected) and torch.equal(x, kept)
    leaf = x.clone().requires_grad_()
    OverwritingGelu()(leaf * 2).sum().backward()
    assert leaf.grad is not None and torch.autograd.gradcheck(OverwritingGelu(), torch.randn(3, 5, dtype=torch.float64, requires_grad=True))
    with torch.no_grad():
        out = OverwritingGelu()(x)
    assert torch.equal(out, expected) and out.data_ptr() == x.data_ptr()


def test_names_are_those_of_the_image_model() -> None:
    vit = TubeletVit(SIZE, STYLE, CLIP, tubelet=2, patch=4, positions="learned", class_token=True)
    assert {name.split(".")[0] for name in vit.state_dict()} == {"embed", "blocks", "norm"}
    assert vit.embed.class_token.shape == (1, 1, SIZE.width)
    assert vit.enter(vit.patches(torch.randn(1, *CLIP.shape))).count == 1 + 3 * 4 * 6
