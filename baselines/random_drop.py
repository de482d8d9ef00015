"""Random drop: keep a random part of all (frame, token) pairs. Most learned selectors don't beat it, so it stands on every plot.

Source: the random baseline of "Principles of visual tokens for efficient video understanding" (LITE, Hao 2025, arXiv 2411.13626), which reports
that finding. Patches are dropped before the patch embedding, so that a dropped one costs nothing at all.
Training draws a pattern for each clip; evaluation uses one of five fixed patterns, the same for every clip, and averages over the five.
`paper_rule`: one fixed budget, a quarter, as a model that is trained for one budget; that figure is ours, in the middle of the grid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vitgs.backbone.embeddings import TimeEmbed
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, gather
from vitgs.backbone.vit import Vit
from vitgs.errors import UsageError
from vitgs.reduction.selection import kept_count
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Clip, Knob, Size, System

PATTERNS = (0, 1, 2, 3, 4)


class RandomDrop(nn.Module):
    """Joint attention over a random `budget` of the clip's patches."""

    order_PN: Tensor

    def __init__(self, size: Size, clip: Clip, style: Style, *, budget: float, pattern: int, readout: str, utility: str) -> None:
        super().__init__()
        self.budget, self.pattern, self.frames = budget, pattern, clip.frames
        self.vit = Vit(size, style, clip, class_token=readout == "class")
        self.time = TimeEmbed(clip.frames, size.width, style.time_init_std)
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if utility == "learned" else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(size.width, clip.class_count)
        total = clip.frames * self.vit.embed.count
        # One order of all pairs per pattern, made here so that forward draws nothing: a smaller budget keeps a part of what a larger one keeps.
        order = [torch.randperm(total, generator=torch.Generator().manual_seed(seed)) for seed in PATTERNS]
        self.register_buffer("order_PN", torch.stack(order), persistent=False)

    def choose(self, batch: int, budget: float, pattern: int) -> Tensor:
        """The kept pairs of each clip, `(B, K)`, sorted by time."""
        if pattern not in PATTERNS:
            raise UsageError("a pattern must be one of the fixed ones", given=pattern, remedy=f"set pattern to one of {PATTERNS}")
        count = kept_count(budget, self.order_PN.shape[1])
        if self.training:
            chosen_BK = torch.rand(batch, self.order_PN.shape[1], device=self.order_PN.device).topk(count, dim=1, sorted=False).indices
        else:
            chosen_BK = self.order_PN[pattern, :count].expand(batch, -1)
        return chosen_BK.sort(dim=1).values

    def forward(self, clip_BTCHW: Tensor, budget: float | None = None, pattern: int | None = None) -> Tensor:
        with stage("select"):
            kept_BK = self.choose(clip_BTCHW.shape[0], self.budget if budget is None else budget, self.pattern if pattern is None else pattern)
        tokens = self.vit(self.time(self.kept_tokens(clip_BTCHW, kept_BK)))
        with stage("head"):
            logits: Tensor = self.head(self.readout(tokens))
            return logits

    def kept_tokens(self, clip_BTCHW: Tensor, kept_BK: Tensor) -> Tokens:
        """The kept patches as tokens. The utility looks at neighbours, so with it all patches are embedded first."""
        if self.utility is None:
            with stage("backbone"):
                return self.vit.embed.some(clip_BTCHW, kept_BK)
        tokens = with_utility(self.vit.patches(clip_BTCHW), self.utility, self.frames)
        with stage("select"):
            return gather(tokens, kept_BK)


SYSTEM = System(
    name="random_drop",
    group="token reduction",
    paper="random baseline of LITE, arXiv 2411.13626",
    construct=RandomDrop,
    space={
        "budget": Knob(values=(1.0, 0.5, 0.25, 0.125), default=0.25, when="run", low=0.001, high=1.0, help="kept fraction of (frame, token) pairs"),
        "pattern": Knob(values=PATTERNS, default=0, when="run", help="which of the fixed random patterns evaluation keeps"),
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias"),
    },
    paper_rule={"budget": 0.25},
    repeat={"pattern": PATTERNS},
)
