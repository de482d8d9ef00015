"""Uniform frames: look at a few evenly spread frames in full and at no other. It needs no learning, and is hard to beat on smooth motion.

Source: uniform sampling, the comparison row of AdaFrame (Wu 2019, arXiv 1811.12432).
The kept frames go through joint space-time attention with the time positions that they have in the clip.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitgs.backbone.embeddings import TimeEmbed
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens
from vitgs.backbone.vit import Vit
from vitgs.reduction.selection import check_budget, spread_frames
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Clip, Knob, Size, System


def at_frames(tokens: Tokens, frame_M: Tensor) -> Tokens:
    """Tokens of M frames in order, with the frames' places in the clip as their time position."""
    t_BN, place_BN2 = tokens.position_BN3[..., 0].long(), tokens.position_BN3[..., 1:]
    time_BN1 = frame_M[t_BN].unsqueeze(-1).to(place_BN2.dtype)
    return Tokens(x_BND=tokens.x_BND, position_BN3=torch.cat([time_BN1, place_BN2], dim=-1), prefix=tokens.prefix, bias_BN=tokens.bias_BN)


class UniformFrames(nn.Module):
    """Joint attention over `round(budget * T)` evenly spread frames, at least one."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, budget: float, readout: str, utility: str) -> None:
        super().__init__()
        self.budget = budget
        self.vit = Vit(size, style, clip, class_token=readout == "class")
        self.time = TimeEmbed(clip.frames, size.width, style.time_init_std)
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if utility == "learned" else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(size.width, clip.class_count)

    def forward(self, clip_BTCHW: Tensor, budget: float | None = None) -> Tensor:
        frames = clip_BTCHW.shape[1]
        kept = max(1, round(check_budget(self.budget if budget is None else budget) * frames))
        with stage("select"):
            frame_M = spread_frames(frames, kept, clip_BTCHW.device)
            clip_BTCHW = clip_BTCHW[:, frame_M]
        tokens = self.vit.patches(clip_BTCHW)
        if self.utility is not None:
            tokens = with_utility(tokens, self.utility, kept)
        tokens = self.vit(self.time(at_frames(tokens, frame_M)))
        with stage("head"):
            logits: Tensor = self.head(self.readout(tokens))
            return logits


SYSTEM = System(
    name="uniform_frames",
    group="frame selection",
    paper="uniform sampling, as in AdaFrame, arXiv 1811.12432",
    construct=UniformFrames,
    space={
        "budget": Knob(values=(1.0, 0.5, 0.25, 0.125), default=0.25, when="run", low=0.001, high=1.0, help="kept fraction of frames"),
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias"),
    },
    paper_rule={"budget": 0.25},
    note="the count of frames is rounded, so a small budget on a short clip costs a whole frame",
)
