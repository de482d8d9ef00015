"""From clips to tubelet tokens, patches that are several frames deep, and the ViT around them that VideoMAE, RLT and AdaptFormer share.

Source: ViViT (Arnab 2021, arXiv 2103.15691, section 3.2, tubelet embedding, and 3.4, its start from image filters: inflated or central frame);
VideoMAE (Tong 2022, arXiv 2203.12602, section 3.3): joint attention over all tubelets, fixed sine-cosine positions, no bias on keys.

Shapes: B batch, T frames, S slots (T / tubelet), N patches a slot, R rows and Q columns of them, C channels, D width, M any number of tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.block import Block
from vitgs.backbone.embeddings import grid_of, resize_grid
from vitgs.backbone.flax import joined
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, with_prefix
from vitgs.backbone.vit import Vit
from vitgs.backbone.weights import TIMM_VIT, Layout
from vitgs.errors import UsageError, unknown
from vitgs.record import Clip, Size

POSITIONS = ("sine", "learned")


def slots_of(clip: Clip, tubelet: int) -> int:
    """How many tubelets follow each other in a clip."""
    if clip.frames % tubelet:
        remedy = f"use {max(clip.frames // tubelet, 1) * tubelet} frames or another tubelet"
        raise UsageError("a clip's frames must be a multiple of the tubelet", given=f"{clip.frames} frames with tubelet {tubelet}", remedy=remedy)
    return clip.frames // tubelet


def sine_table(count: int, width: int) -> Tensor:
    """Fixed positions (Vaswani 2017, section 3.5), sines in even and cosines in odd channels, `(count, width)`; computed in float64."""
    channel = torch.arange(width)
    angle = torch.arange(count, dtype=torch.float64)[:, None] * 10000.0 ** (-(channel - channel % 2).double() / width)
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()


def inflated(filter_DCHW: Tensor, tubelet: int) -> Tensor:
    """An image filter as a filter over time that answers the same to a still: copies divided by their number, `(D, C, t, H, W)`."""
    return filter_DCHW.unsqueeze(2).repeat(1, 1, tubelet, 1, 1) / tubelet


def central(filter_DCHW: Tensor, tubelet: int) -> Tensor:
    """An image filter as a filter over time that sees only frame `t // 2` of a tubelet: zeros elsewhere."""
    out = filter_DCHW.new_zeros(*filter_DCHW.shape[:2], tubelet, *filter_DCHW.shape[2:])
    out[:, :, tubelet // 2] = filter_DCHW
    return out


class TubeletEmbed(nn.Module):
    """Tubelet tokens with their positions: `sine` is fixed and no weight (not in the state dict), `learned` has a vector for each token of a clip.

    The filter `patch` has the shape of a Conv3d's. It is applied as one matrix product, so that `some` gives the numbers that `forward` gives.
    """

    position: Tensor
    class_token: nn.Parameter
    """Put there by a model that has one, with its own position inside."""

    def __init__(self, size: Size, style: Style, clip: Clip, *, tubelet: int, patch: int = 0, positions: str = "sine") -> None:
        super().__init__()
        side = patch or style.patch
        self.tubelet, self.slots = tubelet, slots_of(clip, tubelet)
        self.rows, self.columns = grid_of(clip, side)
        self.patch = nn.Conv3d(clip.channels, size.width, (tubelet, side, side), (tubelet, side, side), bias=style.patch_bias)
        total = self.slots * self.count
        if positions == "sine":
            self.register_buffer("position", sine_table(total, size.width), persistent=False)
        elif positions == "learned":
            self.position = nn.Parameter(torch.zeros(total, size.width))
            nn.init.trunc_normal_(self.position, std=style.position_init_std)
        else:
            raise unknown("positions", positions, POSITIONS)

    @property
    def count(self) -> int:
        """Patches a slot, N."""
        return self.rows * self.columns

    def cut(self, clip_BTCHW: Tensor) -> Tensor:
        """The pixels of each tubelet, `(B, S, R, Q, C, t, height, width)`: a view of the clip, read by nobody yet."""
        depth, side = self.patch.kernel_size[0], self.patch.kernel_size[1]
        batch, _, channels = clip_BTCHW.shape[:3]
        grid = clip_BTCHW.reshape(batch, self.slots, depth, channels, self.rows, side, self.columns, side)
        return grid.permute(0, 1, 4, 6, 3, 2, 5, 7)

    def forward(self, clip_BTCHW: Tensor) -> Tokens:
        """`(B, T, C, H, W)` -> tokens `(B, S*N, D)` in time order, rows first inside a slot; `t` of a position counts slots."""
        pixels = self.cut(clip_BTCHW).flatten(4).flatten(1, 3)
        x_BND = F.linear(pixels, self.patch.weight.flatten(1), self.patch.bias) + self.position
        return Tokens(x_BND=x_BND, position_BN3=self.grid(x_BND).expand(x_BND.shape[0], -1, -1))

    def some(self, clip_BTCHW: Tensor, clip_M: Tensor, token_M: Tensor) -> Tensor:
        """Only the tokens `token_M` (into S*N) of the clips `clip_M`, `(..., D)` for indices of any one shape; other tubelets are never read."""
        slot_M, place_M = token_M // self.count, token_M % self.count
        pixels = self.cut(clip_BTCHW)[clip_M, slot_M, place_M // self.columns, place_M % self.columns].flatten(-4)
        return F.linear(pixels, self.patch.weight.flatten(1), self.patch.bias) + self.position[token_M]

    def grid(self, like: Tensor) -> Tensor:
        """`(slot, row, column)` of each token, `(S*N, 3)`."""
        axes = [torch.arange(extent, device=like.device, dtype=like.dtype) for extent in (self.slots, self.rows, self.columns)]
        return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)

    def from_image(self, state: Mapping[str, Tensor], *, start: str = "inflated") -> dict[str, Tensor]:
        """Weights of an image ViT with its filter made a tubelet's (`inflated` or `central`) and its positions repeated in every slot.

        With fixed positions the image's are left out: they would be reported as left over.
        """
        fitted = dict(state)
        filter_DCHW, table_ND = fitted.get("vit.embed.patch.weight"), fitted.pop("vit.embed.position", None)
        if filter_DCHW is not None and filter_DCHW.dim() == 4:
            fitted["vit.embed.patch.weight"] = central(filter_DCHW, self.tubelet) if start == "central" else inflated(filter_DCHW, self.tubelet)
        if table_ND is not None and isinstance(self.position, nn.Parameter):
            if table_ND.shape[0] != self.count:
                table_ND = resize_grid(table_ND, self.rows, self.columns)
            fitted["vit.embed.position"] = table_ND.repeat(self.slots, 1)
        return fitted


class QvLinear(nn.Linear):
    """The joint projection to q, k, v with biases on q and v alone, kept as one vector `(2*D,)`. A bias on keys adds the same to all logits of a
    query, which softmax doesn't see."""

    def __init__(self, width: int) -> None:
        super().__init__(width, 3 * width, bias=False)
        self.bias = nn.Parameter(torch.zeros(2 * width))

    def forward(self, x: Tensor) -> Tensor:
        q, v = self.bias.chunk(2)
        return F.linear(x, self.weight, torch.cat([q, torch.zeros_like(q), v]))


class OverwritingGelu(nn.GELU):
    """GELU that overwrites what it is given when no gradient is wanted: the hidden layer of an MLP is the largest tensor of a block, and fresh memory
    for it costs time."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) if torch.is_grad_enabled() else torch.ops.aten.gelu_(input)


def qv_block(size: Size, style: Style) -> Block:
    """A block of VideoMAE: the image ViT's without a bias on keys, and thrifty with memory."""
    block = Block(size, style)
    block.attention.qkv = QvLinear(size.width)
    if isinstance(block.mlp.act, nn.GELU):
        block.mlp.act = OverwritingGelu()
    return block


class TubeletVit(nn.Module):
    """VideoMAE's ViT under the image ViT's names. `norm` is its `fc_norm`: it stands behind the pooling, so `run` leaves it to the model."""

    def __init__(self, size: Size, style: Style, clip: Clip, *, tubelet: int, patch: int, positions: str, class_token: bool) -> None:
        super().__init__()
        image = Vit(size, style, clip, patch=patch or None, class_token=class_token, make_block=qv_block)
        self.embed = TubeletEmbed(size, style, clip, tubelet=tubelet, patch=patch, positions=positions)
        self.has_class_token = class_token
        if class_token:
            self.embed.class_token = image.embed.class_token
        self.pre_norm, self.blocks, self.norm = image.pre_norm, image.blocks, image.norm

    def patches(self, clip_BTCHW: Tensor) -> Tokens:
        """The tokens of all tubelets, `(B, S*N, D)`."""
        with stage("backbone"):
            tokens: Tokens = self.embed(clip_BTCHW)
        return tokens

    def enter(self, tokens: Tokens) -> Tokens:
        """What stands before the blocks: the class token, where there is one, and CLIP's norm."""
        with stage("backbone"):
            if self.has_class_token:
                tokens = with_prefix(tokens, self.embed.class_token)
            return tokens.with_x(self.pre_norm(tokens.x_BND))

    def run(self, tokens: Tokens) -> Tokens:
        """All blocks."""
        with stage("backbone"):
            for block in self.blocks:
                tokens = block(tokens)
            return tokens

    def from_image(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of an image ViT made to fit: filter and positions as `TubeletEmbed` has them, the biases on keys left out."""
        fitted = self.embed.from_image(state)
        for name, value in state.items():
            if name.endswith("attention.qkv.bias"):
                q, _, v = value.chunk(3)
                fitted[name] = torch.cat([q, v])
        return fitted


def join_qv(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """q, k and v (or only the biases of q and v) that a checkpoint keeps apart, as `QvLinear` has them."""
    return joined(joined(state, ("query", "key", "value")), ("query", "value"))


_OFFICIAL = (
    (r"blocks\.(\d+)\.attn\.q_bias", r"vit.blocks.\1.attention.query.bias"),
    (r"blocks\.(\d+)\.attn\.v_bias", r"vit.blocks.\1.attention.value.bias"),
    (r"fc_norm\.(weight|bias)", r"vit.norm.\1"),
    *TIMM_VIT.rules,
)
_LAYER = r"videomae\.encoder\.layer\.(\d+)\."
# transformers 4 kept the biases beside the projections, transformers 5 has them inside.
_HUGGING_FACE = (
    (r"videomae\.embeddings\.patch_embeddings\.projection\.(weight|bias)", r"vit.embed.patch.\1"),
    (_LAYER + r"attention\.attention\.(query|key|value)\.(weight|bias)", r"vit.blocks.\1.attention.\2.\3"),
    (_LAYER + r"attention\.attention\.q_bias", r"vit.blocks.\1.attention.query.bias"),
    (_LAYER + r"attention\.attention\.v_bias", r"vit.blocks.\1.attention.value.bias"),
    (_LAYER + r"attention\.output\.dense\.(weight|bias)", r"vit.blocks.\1.attention.output.\2"),
    (_LAYER + r"layernorm_before\.(weight|bias)", r"vit.blocks.\1.norm1.\2"),
    (_LAYER + r"layernorm_after\.(weight|bias)", r"vit.blocks.\1.norm2.\2"),
    (_LAYER + r"intermediate\.dense\.(weight|bias)", r"vit.blocks.\1.mlp.fc1.\2"),
    (_LAYER + r"output\.dense\.(weight|bias)", r"vit.blocks.\1.mlp.fc2.\2"),
    (r"(?:fc_norm|videomae\.layernorm)\.(weight|bias)", r"vit.norm.\1"),
    (r"classifier\.(weight|bias)", r"head.\1"),
)
_DECODER = (r"(decoder|encoder_to_decoder|mask_token|position_embeddings)\b.*", None)
# What VideoMAE publishes: fine-tuned models, and autoencoders, whose encoder is taken (without a head: load with strict=False).
VIDEOMAE_LAYOUTS = (
    Layout(
        name="VideoMAE, official",
        marks=("patch_embed.proj.weight", "blocks.0.attn.q_bias", "blocks.0.attn.qkv.weight"),
        rules=_OFFICIAL,
        adapt=join_qv,
    ),
    Layout(
        name="VideoMAE, official, pre-trained",
        marks=("encoder.patch_embed.proj.weight", "encoder.blocks.0.attn.q_bias"),
        rules=(_DECODER, *((r"encoder\." + pattern, target) for pattern, target in _OFFICIAL)),
        adapt=join_qv,
    ),
    Layout(
        name="VideoMAE, transformers",
        marks=("videomae.embeddings.patch_embeddings.projection.weight", "videomae.encoder.layer.0.attention.attention.query.weight"),
        rules=(_DECODER, *_HUGGING_FACE),
        adapt=join_qv,
    ),
)
