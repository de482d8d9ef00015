"""AIM: a frozen image ViT that uses each block's attention twice, over time and over space, with small adapters that make up for it.

Source: "AIM: adapting image models for efficient video action recognition" (Yang 2023, arXiv 2302.03024, section 3.2-3.4, equations 4-7). In each
block the same frozen attention runs over the frames of each place, with an adapter behind it and no skip; then over the places of each frame, with an
adapter that has a skip; a third adapter stands beside the MLP and is scaled. Every adapter's up-projection starts at zero, so the model starts as
the image model on each frame. Trained are the adapters, the time table (zero at the start), the last norm and the head.

From the released code, where the text leaves it open: the time table is added to class tokens too, the time attention includes their place, the scale
is 0.5 (1 on Something-Something, where an adapter with a skip stands before the time attention as well: `adapters=2`). Published: style clip, size B,
8 frames of 224 px, defaults: 97 M parameters, 202 GMACs. Left out: stochastic depth of adapters and the dropout before the head, since all systems
here train by one recipe. With LayerScale (DINOv2) an adapter sees the scaled attention, which is what the image model adds.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitgs.backbone.adapters import bottleneck
from vitgs.backbone.attention import attend
from vitgs.backbone.block import Block
from vitgs.backbone.embeddings import TimeEmbed
from vitgs.backbone.layouts import OPENAI_RULES, Rules, under
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, split_frames, with_prefix
from vitgs.backbone.vit import Vit
from vitgs.backbone.weights import TIMM_VIT, Layout
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Clip, Knob, Size, System


class Adapters(nn.Module):
    """The adapters of one block: `before` the time attention (or none) and behind it, behind the space attention, beside the MLP."""

    def __init__(self, width: int, hidden: int, *, before: bool) -> None:
        super().__init__()
        self.before = bottleneck(width, hidden) if before else None
        self.time = bottleneck(width, hidden)
        self.space = bottleneck(width, hidden)
        self.joint = bottleneck(width, hidden)


class Aim(nn.Module):
    """A frozen ViT on frames; `adapters` counts those at the time attention, `width` is the bottleneck's (0: a quarter of the model's)."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, width: int, adapters: int, scale: float, readout: str, utility: str) -> None:
        super().__init__()
        self.frames, self.scale = clip.frames, scale
        self.vit = Vit(size, style, clip, class_token=readout == "class").requires_grad_(False)
        self.vit.norm.requires_grad_(True)
        self.time = TimeEmbed(clip.frames, size.width, 0.0)
        self.adapters = nn.ModuleList(Adapters(size.width, width or size.width // 4, before=adapters == 2) for _ in range(size.depth))
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if utility == "learned" else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(size.width, clip.class_count)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        tokens = self.vit.patches(clip_BTCHW)
        if self.utility is not None:
            tokens = with_utility(tokens, self.utility, self.frames)
        with stage("backbone"):
            tokens = self.enter(split_frames(tokens, self.frames))
            for block, adapters in zip(self.vit.blocks, self.adapters, strict=True):
                assert isinstance(block, Block)
                assert isinstance(adapters, Adapters)
                tokens = self.joint(block, adapters, self.over_space(block, adapters, self.over_time(block, adapters, tokens)))
            tokens = tokens.with_x(self.vit.norm(tokens.x_BND))
        with stage("head"):
            frame_BTD = torch.unflatten(self.readout(tokens), 0, (-1, self.frames))
            logits: Tensor = self.head(frame_BTD.mean(dim=1))
            return logits

    def enter(self, tokens: Tokens) -> Tokens:
        """The class token, and the frame's vector for all tokens, in front of CLIP's norm; here and below frames are rows of the batch."""
        if self.vit.has_class_token:
            tokens = with_prefix(tokens, self.vit.embed.class_token)
        x_BTND = torch.unflatten(tokens.x_BND, 0, (-1, self.frames)) + self.time.table[:, None]
        return tokens.with_x(self.vit.pre_norm(x_BTND.flatten(0, 1)))

    def over_time(self, block: Block, adapters: Adapters, tokens: Tokens) -> Tokens:
        """The frozen attention over the frames of each place, class tokens being one place; its adapter has no skip (equation 5)."""

        def turned(value: Tensor, rows: int) -> Tensor:
            """`(B*rows, columns, ...)` -> `(B*columns, rows, ...)`."""
            return torch.unflatten(value, 0, (-1, rows)).transpose(1, 2).flatten(0, 1)

        x = turned(block.norm1(tokens.x_BND), self.frames)
        if adapters.before is not None:
            x = x + adapters.before(x)
        bias_BN = tokens.key_bias_BN()
        branch = block.attention.output(attend(*block.attention.project(x), None if bias_BN is None else turned(bias_BN, self.frames)))
        return tokens.with_x(tokens.x_BND + turned(adapters.time(block.scale1(branch)), tokens.count))

    def over_space(self, block: Block, adapters: Adapters, tokens: Tokens) -> Tokens:
        """The same attention inside each frame; its adapter has a skip (equation 4)."""
        branch = block.scale1(block.attention(tokens.with_x(block.norm1(tokens.x_BND))))
        return tokens.with_x(tokens.x_BND + branch + adapters.space(branch))

    def joint(self, block: Block, adapters: Adapters, tokens: Tokens) -> Tokens:
        """The MLP with a scaled adapter beside it (equation 6)."""
        x_BND = block.norm2(tokens.x_BND)
        return tokens.with_x(tokens.x_BND + block.scale2(block.mlp(x_BND)) + self.scale * adapters.joint(x_BND))


_BLOCK = r"(?:transformer\.resblocks|blocks)\.(\d+)\."
_ADAPTERS: Rules = (
    (r"temporal_embedding", "time.table"),
    (_BLOCK + r"T_Adapter_in\.D_(fc[12])\.(weight|bias)", r"adapters.\1.before.\2.\3"),
    (_BLOCK + r"T_Adapter\.D_(fc[12])\.(weight|bias)", r"adapters.\1.time.\2.\3"),
    (_BLOCK + r"S_Adapter\.D_(fc[12])\.(weight|bias)", r"adapters.\1.space.\2.\3"),
    (_BLOCK + r"MLP_Adapter\.D_(fc[12])\.(weight|bias)", r"adapters.\1.joint.\2.\3"),
    (r"ln_post\.(weight|bias)", r"vit.norm.\1"),
)
# A training checkpoint holds the tower as `backbone.`, beside its head; the tower's own state dict has neither.
OFFICIAL = tuple(
    Layout(
        name=f"AIM, official ({name})",
        marks=(f"{prefix}temporal_embedding", f"{prefix}{blocks}.0.T_Adapter.D_fc1.weight"),
        rules=(*under(prefix, (*_ADAPTERS, *tower)), (r"cls_head\.fc_cls\.(weight|bias)", r"head.\1")),
        adapt=TIMM_VIT.adapt,
    )
    for prefix in ("backbone.", "")
    for name, blocks, tower in (("CLIP", "transformer.resblocks", OPENAI_RULES), ("ImageNet", "blocks", TIMM_VIT.rules))
)
SYSTEM = System(
    name="aim",
    group="image-to-video adaptation",
    paper="AIM, arXiv 2302.03024",
    construct=Aim,
    space={
        "width": Knob(values=(0, 8, 16), default=0, low=0, high=4096, help="width of an adapter's bottleneck; 0 for a quarter of the model's"),
        "adapters": Knob(values=(1, 2), default=1, help="adapters at the time attention: behind it, or in front of it too"),
        "scale": Knob(values=(0.5, 1.0), default=0.5, low=0.0, high=10.0, help="factor on the adapter beside the MLP"),
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias"),
    },
    layouts=OFFICIAL,
    reference="the released vit_clip.py and vit_imagenet.py, their outputs frozen",
    parity=5e-7,
)
