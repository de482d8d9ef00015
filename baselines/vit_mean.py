"""The anchor: an image ViT on each frame, averaged over frames. It sees no time at all, so its accuracy tells what appearance alone is worth.

Source: the frame-averaging baseline of "Is space-time attention all you need" (Bertasius 2021, section 4.1, space attention).
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from vitgs.backbone.embeddings import shrunk
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import split_frames
from vitgs.backbone.vit import Vit
from vitgs.reduction.selection import spread_frames
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Clip, Knob, Size, System


class VitMean(nn.Module):
    """`frames` evenly spread frames, each encoded by itself; their features are averaged and classified."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, readout: str, frames: int, resolution: int, utility: str) -> None:
        super().__init__()
        self.frames = min(frames or clip.frames, clip.frames)
        self.resolution = resolution or clip.height
        if resolution:
            clip = replace(clip, height=resolution, width=round(clip.width * resolution / clip.height))
        self.vit = Vit(size, style, clip, class_token=readout == "class")
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
        tokens = self.vit(split_frames(tokens, self.frames))
        with stage("head"):
            frame_BTD = self.readout(tokens).unflatten(0, (-1, self.frames))
            logits: Tensor = self.head(frame_BTD.mean(dim=1))
            return logits


SYSTEM = System(
    name="vit_mean",
    group="full space-time",
    paper="frame averaging, arXiv 2102.05095 section 4.1",
    construct=VitMean,
    space={
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
        "frames": Knob(values=(0, 1, 2, 4), default=0, low=0, high=4096, help="frames looked at, evenly spread; 0 for all"),
        "resolution": Knob(values=(0, 16, 24), default=0, low=0, high=4096, help="height in pixels that frames are shrunk to; 0 for as they are"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias"),
    },
)
