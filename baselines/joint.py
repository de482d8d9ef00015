"""Joint space-time attention: every token attends to every token of the clip. The full model that cheap systems try to match.

Source: "Is space-time attention all you need" (Bertasius 2021, eq. 5, joint space-time attention). With `utility="learned"` it is the row
"all tokens + utility", which tells how much of a selector's gain is the utility bias and how much the selection.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from vitgs.backbone.embeddings import TimeEmbed, shrunk
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.vit import Vit
from vitgs.reduction.selection import spread_frames
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Clip, Knob, Size, System


class Joint(nn.Module):
    """Patch tokens of `frames` evenly spread frames with learned space and time positions through one ViT."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, readout: str, frames: int, resolution: int, utility: str) -> None:
        super().__init__()
        self.frames = min(frames or clip.frames, clip.frames)
        self.resolution = resolution or clip.height
        if resolution:
            clip = replace(clip, height=resolution, width=round(clip.width * resolution / clip.height))
        self.vit = Vit(size, style, clip, class_token=readout == "class")
        self.time = TimeEmbed(self.frames, size.width, style.time_init_std)
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if utility == "learned" else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(size.width, clip.class_count)

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        total = clip_BTCHW.shape[1]
        if self.frames < total:
            clip_BTCHW = clip_BTCHW[:, spread_frames(total, self.frames, clip_BTCHW.device)]
        tokens = self.vit.patches(shrunk(clip_BTCHW, self.resolution))
        if self.utility is not None:
            tokens = with_utility(tokens, self.utility, self.frames)
        tokens = self.vit(self.time.all_frames(tokens))
        with stage("head"):
            logits: Tensor = self.head(self.readout(tokens))
            return logits


SYSTEM = System(
    name="joint",
    group="full space-time",
    paper="TimeSformer joint space-time, arXiv 2102.05095 eq. 5",
    construct=Joint,
    space={
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
        "frames": Knob(values=(0, 2, 4), default=0, low=0, high=4096, help="frames looked at, evenly spread; 0 for all"),
        "resolution": Knob(values=(0, 16, 24), default=0, low=0, high=4096, help="height in pixels that frames are shrunk to; 0 for as they are"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias"),
    },
)
