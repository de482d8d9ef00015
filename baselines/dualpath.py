"""DualPath: one frozen image ViT walked on two paths, over a few frames for what is seen and over grids of shrunken frames for how it changes.

Source: "Dual-path adaptation from image to video transformers" (Park 2023, arXiv 2303.09857, section 3): the spatial path takes T_s frames, with
adapters beside attention and MLP; the temporal path takes grid images of w x h frames, each shrunk to 1/w x 1/h, with adapters in front of attention,
behind it and behind the MLP. Both paths' class tokens are averaged over images, concatenated and classified. The spatial path starts as the image
model; the temporal one passes nothing on at the start, because its adapters are serial, without a skip, and zero. Trained are adapters, the temporal
path's places and the head. Published: style clip, size B, 16 frames of 224 px (one grid of 4x4 and 8 frames): 104.8 M parameters, 17.8 M in adapters.

From the released code, where the text leaves it open: in place of the image's positions the temporal path has places of its own, learned from a
random start, and a fixed sine-cosine of the frame's number (from 1; 0 for the class token), resized bilinearly where a patch has parts of two frames;
tokens end in CLIP's projection (here in style clip alone) and two layers. That file doesn't parse and reads undefined names; the outputs here were
compared with it after its two broken passages were taken out.
Deviations: released training also moves the image's positions and class token, which the text freezes; the spatial frames are the middles of their
shares, not their first; frames are shrunk with antialiasing, each by itself; no dropout in adapters. For other lengths than 16: the largest grid up
to 4 that the clip fills and that divides the frame, and as many grids as there are frames for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.adapters import bottleneck
from vitgs.backbone.attention import attend
from vitgs.backbone.block import Block
from vitgs.backbone.embeddings import shrunk
from vitgs.backbone.layouts import OPENAI_RULES, OPENAI_TEXT_RULES, Rules, under
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, split_frames, with_prefix
from vitgs.backbone.vit import Vit
from vitgs.backbone.weights import TIMM_VIT, Layout
from vitgs.errors import UsageError
from vitgs.reduction.selection import spread_frames
from vitgs.spec import Clip, Knob, Size, System

MOST_SIDE = 4
CELLS = 4  # of a frame, a side, in the map of frame numbers before it is resized to patches


class Adapters(nn.Module):
    """The five of one block: two of the spatial path, three of the temporal."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.space_attention = bottleneck(width, hidden)
        self.space_mlp = bottleneck(width, hidden)
        self.time_before = bottleneck(width, hidden)
        self.time_attention = bottleneck(width, hidden)
        self.time_mlp = bottleneck(width, hidden)


def over_space(block: Block, adapters: Adapters, tokens: Tokens) -> Tokens:
    """The block with an adapter beside each part."""
    x = block.norm1(tokens.x_BND)
    tokens = tokens.with_x(tokens.x_BND + block.scale1(block.attention(tokens.with_x(x))) + adapters.space_attention(x))
    x = block.norm2(tokens.x_BND)
    return tokens.with_x(tokens.x_BND + block.scale2(block.mlp(x)) + adapters.space_mlp(x))


def over_time(block: Block, adapters: Adapters, tokens: Tokens) -> Tokens:
    """The block with adapters in series, none with a skip of its own."""
    x = adapters.time_before(block.norm1(tokens.x_BND))
    branch = block.scale1(block.attention.output(attend(*block.attention.project(x))))
    tokens = tokens.with_x(tokens.x_BND + adapters.time_attention(branch))
    return tokens.with_x(tokens.x_BND + adapters.time_mlp(block.scale2(block.mlp(block.norm2(tokens.x_BND)))))


def side_of(clip: Clip, grid: int) -> int:
    """Frames along a side of a grid image."""

    def fits(side: int) -> bool:
        return side**2 <= clip.frames and clip.height % side == 0 and clip.width % side == 0

    if grid and not fits(grid):
        raise UsageError(
            "a grid needs as many frames as it has places, and a frame whose height and width it divides",
            given=f"grid {grid}, {clip.frames} frames of {clip.height}x{clip.width}",
            remedy=f"set grid to {side_of(clip, 0)}, or to 0",
        )
    return grid or max(side for side in range(1, MOST_SIDE + 1) if fits(side))


def grid_images(clip_BTCHW: Tensor, side: int) -> Tensor:
    """`(B, T, C, H, W)` -> `(B, T // side^2, C, H, W)`: frames in reading order, each shrunk to its place."""
    total, grids = clip_BTCHW.shape[1], clip_BTCHW.shape[1] // side**2
    if grids * side**2 < total:
        clip_BTCHW = clip_BTCHW[:, spread_frames(total, grids * side**2, clip_BTCHW.device)]
    small = torch.unflatten(shrunk(clip_BTCHW, clip_BTCHW.shape[3] // side), 1, (grids, side, side))
    return small.permute(0, 1, 4, 2, 5, 3, 6).flatten(5, 6).flatten(3, 4)


def sines(number: Tensor, width: int) -> Tensor:
    """Fixed positions of any numbers, sine and cosine in turns: `(...)` -> `(..., D)`."""
    angle = number.unsqueeze(-1) / 10000 ** (torch.arange(0, width, 2) / width)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)[..., :width]


def frame_numbers(grids: int, side: int, rows: int, columns: int) -> Tensor:
    """The number of the frame, from 1, that each patch of the grid images shows, `(G, rows * columns)`."""
    number = torch.arange(1.0, 1 + grids * side**2).reshape(grids, 1, side, side)
    cells = number.repeat_interleave(CELLS, dim=2).repeat_interleave(CELLS, dim=3)
    return F.interpolate(cells, size=(rows, columns), mode="bilinear", align_corners=False).flatten(1)


def text_width(width: int) -> int:
    """The width that CLIP projects images to, 512 for B and 768 for L; a third less for smaller towers."""
    return (width - min(256, width // 3)) // 8 * 8


class DualPath(nn.Module):
    """`grid`: frames along a side of a grid image (0: as many as fit); `spatial`: frames of the spatial path; `width`: of adapters (0: a quarter)."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, grid: int, spatial: int, width: int, readout: str) -> None:
        super().__init__()
        self.side, self.spatial = side_of(clip, grid), spatial
        self.grids = clip.frames // self.side**2
        self.vit = Vit(size, style, clip, class_token=readout == "class").requires_grad_(False)
        embed = self.vit.embed
        numbers = frame_numbers(self.grids, self.side, embed.rows, embed.columns)
        self.register_buffer("fixed", sines(numbers, size.width), persistent=False)
        self.places = nn.Parameter(torch.randn(embed.count, size.width) * size.width**-0.5)
        if readout == "class":
            self.register_buffer("class_fixed", sines(torch.zeros(1, 1), size.width), persistent=False)
            self.class_place = nn.Parameter(torch.randn(1, 1, size.width) * size.width**-0.5)
        self.adapters = nn.ModuleList(Adapters(size.width, width or size.width // 4) for _ in range(size.depth))
        self.readout = build_readout(readout, size.width, size.heads)
        out = text_width(size.width) if style.name == "clip" else size.width
        self.projection = nn.Linear(size.width, out, bias=False).requires_grad_(False) if style.name == "clip" else nn.Identity()
        self.head_hidden = nn.Sequential(nn.Linear(2 * out, out), nn.GELU())
        self.head = nn.Linear(out, clip.class_count)

    def forward(self, clip_BTCHW: Tensor, spatial: int | None = None) -> Tensor:
        frames = clip_BTCHW.shape[1]
        kept = min(self.spatial if spatial is None else spatial, frames)
        chosen = clip_BTCHW if kept == frames else clip_BTCHW[:, spread_frames(frames, kept, clip_BTCHW.device)]
        space = self.vit.enter(split_frames(self.vit.patches(chosen), kept))
        with stage("backbone"):
            time = self.time_tokens(clip_BTCHW)
            for block, adapters in zip(self.vit.blocks, self.adapters, strict=True):
                assert isinstance(block, Block)
                assert isinstance(adapters, Adapters)
                space, time = over_space(block, adapters, space), over_time(block, adapters, time)
            space, time = (path.with_x(self.vit.norm(path.x_BND)) for path in (space, time))
        with stage("head"):
            paths = [torch.unflatten(self.projection(self.readout(path)), 0, (-1, n)).mean(dim=1) for path, n in ((time, self.grids), (space, kept))]
            logits: Tensor = self.head(self.head_hidden(torch.cat(paths, dim=-1)))
            return logits

    def time_tokens(self, clip_BTCHW: Tensor) -> Tokens:
        """Tokens of the grid images in front of the blocks, grid images as rows of the batch."""
        images = grid_images(clip_BTCHW, self.side)
        x_BGND = torch.unflatten(self.vit.embed.patch(images.flatten(0, 1)).flatten(2).transpose(1, 2), 0, (-1, self.grids))
        x = (x_BGND + self.get_buffer("fixed") + self.places).flatten(0, 1)
        tokens = Tokens(x_BND=x, position_BN3=self.vit.embed.positions(x.shape[0], 1, x))
        if self.vit.has_class_token:
            tokens = with_prefix(tokens, self.vit.embed.class_token + self.get_buffer("class_fixed") + self.class_place)
        return tokens.with_x(self.vit.pre_norm(tokens.x_BND))


def _adapt(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """CLIP's projection as a layer; the temporal path's class token doesn't have the image's position, which ours is told apart from."""
    if "projection.weight" in state:
        state["projection.weight"] = state["projection.weight"].T
    table, places = state.get("vit.position_with_class"), state.pop("places_with_class", None)
    if table is not None and places is not None:
        state |= {"places": places[1:], "class_place": (places[0] - table[0]).reshape(1, 1, -1)}
    return TIMM_VIT.adapt(state)


_BLOCK = r"transformer\.resblocks\.(\d+)\."
_NAMES = {
    "s_adapter_attn": "space_attention", "s_adapter_mlp": "space_mlp",
    "t_adapter_attn_b": "time_before", "t_adapter_attn": "time_attention", "t_adapter_mlp": "time_mlp",
}  # fmt: skip
_RULES: Rules = (
    *(
        (rf"{_BLOCK}{theirs}\.{part}_proj\.(weight|bias)", rf"adapters.\1.{ours}.{layer}.\2")
        for theirs, ours in _NAMES.items()
        for part, layer in (("down", "fc1"), ("up", "fc2"))
    ),
    (r"spatial_positional_embedding", "places_with_class"),
    (r"head\.linear1\.(weight|bias)", r"head_hidden.0.\1"),
    (r"head\.linear2\.(weight|bias)", r"head.\1"),
    (r"proj", "projection.weight"),
    *OPENAI_RULES,
)
OFFICIAL = tuple(
    Layout(
        name="DualPath, official",
        marks=(f"{prefix}spatial_positional_embedding", f"{prefix}transformer.resblocks.0.t_adapter_attn_b.down_proj.weight"),
        rules=(*under(prefix, _RULES), *OPENAI_TEXT_RULES),
        adapt=_adapt,
    )
    for prefix in ("visual.", "")
)
CLIP_WITH_PROJECTION = tuple(
    Layout(
        name="CLIP, OpenAI, with its projection",
        marks=(f"{prefix}proj", f"{prefix}transformer.resblocks.0.attn.in_proj_weight"),
        rules=(*under(prefix, _RULES), *OPENAI_TEXT_RULES),
        adapt=_adapt,
    )
    for prefix in ("visual.", "")
)
SYSTEM = System(
    name="dualpath",
    group="image-to-video adaptation",
    paper="DualPath, arXiv 2303.09857",
    construct=DualPath,
    space={
        "grid": Knob(values=(0, 1, 2), default=0, low=0, high=64, help="frames along a side of a grid image; 0 for the most up to 4 that fit"),
        "spatial": Knob(values=(8, 4, 2), default=8, when="run", low=1, high=4096, help="frames of the spatial path, at most the clip's"),
        "width": Knob(values=(0, 8, 16), default=0, low=0, high=4096, help="width of an adapter's bottleneck; 0 for a quarter of the model's"),
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
    },
    paper_rule={"spatial": 8},
    layouts=(*OFFICIAL, *CLIP_WITH_PROJECTION),
    reference="the released CLIP_custom/clip/model.py, repaired, its outputs frozen",
    parity=4e-7,
    note="utility: not applicable, half of its images are grids of frames",
)
