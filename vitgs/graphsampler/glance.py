"""The look at all frames that the utility scores: the patch embedding itself, the same at half the resolution for a quarter of its cost, or what the
first block of the ViT makes of the patches, a frame at a time, which sees more and costs a block on all tokens.

Of the first block appearance, by which edges are drawn, is the block's output too. A scorer from the shared start was trained on patch embeddings, so
there it starts further from its place than with the others.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.embeddings import PatchEmbed
from vitgs.backbone.runs import may_read
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, join_frames, split_frames
from vitgs.backbone.vit import Vit
from vitgs.errors import UsageError

GLANCES = ("patch", "half", "block")


def check_glance(glance: str, patch: int) -> None:
    """Half the resolution needs a patch that can be halved."""
    if glance == "half" and patch % 2:
        raise UsageError("a glance at half the resolution needs an even patch", given=f"patch {patch}", remedy="set glance=patch")


def first_block(vit: Vit, clip_BTCHW: Tensor) -> Tokens:
    """The patch tokens of the whole clip behind the first block, each frame by itself, `(B, T*N, D)`. Class tokens join behind it."""
    frames = clip_BTCHW.shape[1]
    tokens = split_frames(vit.patches(clip_BTCHW), frames)
    with stage("backbone"):
        tokens = vit.blocks[0](tokens.with_x(vit.pre_norm(tokens.x_BND)))
    return join_frames(tokens, frames)


def half_patches(embed: PatchEmbed, clip_BTCHW: Tensor) -> Tokens:
    """Tokens of the whole clip from 2x2 averages of its pixels, `(B, T*N, D)`.

    The filter is summed over the same 2x2 pixels: no weight of its own, and equal to the patch embedding of a clip whose 2x2 pixels are equal.
    """
    batch, frames = clip_BTCHW.shape[:2]
    weight = _pairs(embed.patch.weight)
    x_MDHW = F.conv2d(_pairs(clip_BTCHW.flatten(0, 1)) / 4, weight, embed.patch.bias, stride=weight.shape[-1])
    x: Tensor = x_MDHW.flatten(2).transpose(1, 2) + embed.position
    return Tokens(x_BND=x.reshape(batch, frames * embed.count, -1), position_BN3=embed.positions(batch, frames, x))


class AppliedBefore(nn.Linear):
    """A layer whose weights have been applied where its input was made."""

    def forward(self, input: Tensor) -> Tensor:
        return input


def half_patches_through(layer: nn.Linear, embed: PatchEmbed, clip_BTCHW: Tensor) -> Tokens:
    """What `layer`, D to E, makes of the tokens of `half_patches`, `(B, T*N, E)`, for about E / D of their cost.

    A linear layer behind a linear filter is one filter with E outputs in the place of D, and one table of positions. These tokens are for a scorer,
    which knows where they are by their order, and name no places.
    """
    batch, frames = clip_BTCHW.shape[:2]
    filter_DP = _pairs(embed.patch.weight).flatten(1) / 4
    side = embed.patch.weight.shape[-1] // 2
    filter_ECHW = torch.unflatten(layer.weight @ filter_DP, 1, (-1, side, side))
    table_ND = embed.position if embed.patch.bias is None else embed.position + embed.patch.bias
    image_MCHW = clip_BTCHW.flatten(0, 1)
    if may_read(clip_BTCHW):
        # Each pixel times its pair's weight: four times the multiply-adds, which a CPU does sooner than it adds pixels up (see DECISIONS.md).
        whole_ECHW = filter_ECHW.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        x_MEHW = F.conv2d(image_MCHW, whole_ECHW, stride=2 * side)
    else:
        x_MEHW = F.conv2d(_pairs(image_MCHW), filter_ECHW, stride=side)
    x = x_MEHW.flatten(2).transpose(1, 2) + F.linear(table_ND, layer.weight, layer.bias)
    return Tokens(x_BND=x.reshape(batch, frames * embed.count, -1), position_BN3=x.new_empty(0))


def _pairs(image_MCHW: Tensor) -> Tensor:
    """Sums of 2x2 pixels, `(M, C, H/2, W/2)`: two strided additions take a tenth of the time of a pooling operator on CPU."""
    rows_MCHW = image_MCHW[..., 0::2, :] + image_MCHW[..., 1::2, :]
    return rows_MCHW[..., 0::2] + rows_MCHW[..., 1::2]
