"""From pixels to tokens: patch embedding with an image position table that is resized to any grid, and a table for time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError
from vitgs.record import Clip, Size


def grid_of(clip: Clip, patch: int) -> tuple[int, int]:
    """Rows and columns of patches in a frame."""
    if clip.height % patch or clip.width % patch:
        raise UsageError(
            "a frame's height and width must be multiples of the patch",
            given=f"{clip.height}x{clip.width} with patch {patch}",
            remedy=f"use {max(clip.height // patch, 1) * patch}x{max(clip.width // patch, 1) * patch} or another patch",
        )
    return clip.height // patch, clip.width // patch


def check_clip(clip_BTCHW: object, shape: tuple[int, int, int, int]) -> None:
    """Refuses what isn't one float tensor of at least one clip, each of the (frames, channels, height, width) that the model is for.

    Reads no values, so that nothing waits for a device and a compiler sees constants.
    """
    given = type(clip_BTCHW).__name__
    if isinstance(clip_BTCHW, Tensor):
        if clip_BTCHW.shape[1:] == shape and len(clip_BTCHW) > 0 and clip_BTCHW.is_floating_point():
            return
        given = f"{'x'.join(map(str, clip_BTCHW.shape))} of {clip_BTCHW.dtype}"
    elif isinstance(clip_BTCHW, (list, tuple)):
        given = f"a {given} of {len(clip_BTCHW)}"
    rule = f"a batch is one tensor of floats, Bx{'x'.join(map(str, shape))} for this model"
    remedy = "sample as many frames of each clip and stack them, or build the model for that clip; a video of any length can be streamed"
    raise UsageError(rule, given=given, remedy=remedy)


class PatchEmbed(nn.Module):
    """Frames to patch tokens with their spatial position; the class token's own position is kept in `class_token` (Dosovitskiy 2021, eq. 1)."""

    def __init__(self, size: Size, style: Style, clip: Clip, patch: int) -> None:
        super().__init__()
        self.rows, self.columns = grid_of(clip, patch)
        self.patch = nn.Conv2d(clip.channels, size.width, patch, patch, bias=style.patch_bias)
        self.position = nn.Parameter(torch.zeros(self.rows * self.columns, size.width))
        self.class_token = nn.Parameter(torch.zeros(1, 1, size.width))
        nn.init.trunc_normal_(self.position, std=style.position_init_std)
        nn.init.normal_(self.class_token, std=0.02)

    @property
    def count(self) -> int:
        """Patches a frame, N."""
        return self.rows * self.columns

    def forward(self, clip_BTCHW: Tensor) -> Tokens:
        """`(B, T, C, H, W)` -> patch tokens `(B, T*N, D)` in time order, rows first inside a frame."""
        batch, frames = clip_BTCHW.shape[:2]
        x: Tensor = self.patch(clip_BTCHW.flatten(0, 1)).flatten(2).transpose(1, 2) + self.position
        return Tokens(x_BND=x.reshape(batch, frames * self.count, -1), position_BN3=self.positions(batch, frames, x))

    def some(self, clip_BTCHW: Tensor, index_BK: Tensor) -> Tokens:
        """Only the tokens at `index_BK` into T*N, with the numbers that `forward` gives them; other patches are never read."""
        batch = clip_BTCHW.shape[0]
        side = self.patch.weight.shape[-1]
        cut = clip_BTCHW.reshape(*clip_BTCHW.shape[:3], self.rows, side, self.columns, side)
        grid = cut.permute(0, 1, 3, 5, 2, 4, 6)
        frame_BK, place_BK = index_BK // self.count, index_BK % self.count
        row = torch.arange(batch, device=index_BK.device).unsqueeze(-1)
        pixels_BKP = grid[row, frame_BK, place_BK // self.columns, place_BK % self.columns].flatten(2)
        x = F.linear(pixels_BKP, self.patch.weight.flatten(1), self.patch.bias) + self.position[place_BK]
        position = torch.stack([frame_BK, place_BK // self.columns, place_BK % self.columns], dim=-1)
        return Tokens(x_BND=x, position_BN3=position.to(x.dtype))

    def positions(self, batch: int, frames: int, like: Tensor) -> Tensor:
        """`(t, y, x)` of each token, `(B, T*N, 3)`, without memory of its own for the batch."""
        t = torch.arange(frames, device=like.device, dtype=like.dtype)
        y = torch.arange(self.rows, device=like.device, dtype=like.dtype)
        x = torch.arange(self.columns, device=like.device, dtype=like.dtype)
        grid = torch.stack(torch.meshgrid(t, y, x, indexing="ij"), dim=-1)
        return grid.reshape(1, -1, 3).expand(batch, -1, -1)


def resize_grid(table_ND: Tensor, rows: int, columns: int) -> Tensor:
    """A position table of a square grid, bicubically resized to `rows x columns` (antialiased, as timm does)."""
    side = round(table_ND.shape[0] ** 0.5)
    image = table_ND.reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    out = F.interpolate(image, size=(rows, columns), mode="bicubic", antialias=True, align_corners=False)
    return out.permute(0, 2, 3, 1).reshape(rows * columns, -1).to(table_ND.dtype)


def shrunk(clip_BTCHW: Tensor, height: int) -> Tensor:
    """The clip at a lower resolution, bilinear and antialiased, its proportions kept; itself when it has that height already."""
    frames, rows, columns = clip_BTCHW.shape[1], clip_BTCHW.shape[3], clip_BTCHW.shape[4]
    if rows == height:
        return clip_BTCHW
    size = (height, round(columns * height / rows))
    image = clip_BTCHW.flatten(0, 1)
    if image.dtype in (torch.float16, torch.bfloat16):  # torch resizes with antialiasing in these on no CPU
        image = image.float()
    small = F.interpolate(image, size=size, mode="bilinear", antialias=True, align_corners=False).to(clip_BTCHW.dtype)
    return torch.unflatten(small, 0, (-1, frames))


class TimeEmbed(nn.Module):
    """A learned vector per frame index, added to every token of that frame, so that attention across frames can tell them apart."""

    def __init__(self, frames: int, width: int, init_std: float) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(frames, width) * init_std)

    def forward(self, tokens: Tokens) -> Tokens:
        """Adds the vector of each token's frame; works on any subset of tokens, since the frame is read from the position."""
        with stage("backbone"):
            return tokens.with_x(tokens.x_BND + self.table[tokens.position_BN3[..., 0].long()])

    def all_frames(self, tokens: Tokens) -> Tokens:
        """The same for tokens of all frames in order, without an index: `(B, T*N, D)`."""
        frames, width = self.table.shape
        x = tokens.x_BND
        with stage("backbone"):
            return tokens.with_x((x.view(x.shape[0], frames, -1, width) + self.table[:, None]).view_as(x))
