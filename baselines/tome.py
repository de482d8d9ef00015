"""ToMe: joint space-time attention in which each block merges the r most similar pairs of tokens, across space and time.

Source: "Token merging: your ViT but faster" (Bolya 2023, section 3; section 5 for video). Similarity is the cosine of the attention keys,
averaged over heads; merged tokens are averaged by size, and size enters attention as log size (eq. 1). The class token never merges.
`decreasing` merges 2r tokens in the first block and none in the last, which is faster for the same r.
`paper_rule`: r = 0, because the paper's headline is merging off the shelf in a model that was trained without it.
"""

from __future__ import annotations

from torch import Tensor, nn

from vitgs.backbone.block import Block
from vitgs.backbone.embeddings import TimeEmbed
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens
from vitgs.backbone.vit import Vit
from vitgs.reduction.merging import SCHEDULES, merge_counts, merging_block
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Clip, Knob, Size, System


class ToMe(nn.Module):
    """Joint attention with `r` tokens fewer behind each block's attention."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, r: int, schedule: str, readout: str, utility: str) -> None:
        super().__init__()
        self.r, self.schedule, self.frames = r, schedule, clip.frames
        self.vit = Vit(size, style, clip, class_token=readout == "class")
        self.time = TimeEmbed(clip.frames, size.width, style.time_init_std)
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if utility == "learned" else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(size.width, clip.class_count)

    def forward(self, clip_BTCHW: Tensor, r: int | None = None, schedule: str | None = None) -> Tensor:
        counts = merge_counts(self.r if r is None else r, len(self.vit.blocks), self.schedule if schedule is None else schedule)
        tokens = self.vit.patches(clip_BTCHW)
        if self.utility is not None:
            tokens = with_utility(tokens, self.utility, self.frames)
        tokens = self.encode(self.vit.enter(self.time.all_frames(tokens)), counts)
        with stage("head"):
            logits: Tensor = self.head(self.readout(tokens))
            return logits

    def encode(self, tokens: Tokens, counts: tuple[int, ...]) -> Tokens:
        """All blocks, the i-th with `counts[i]` merges, and the last norm."""
        with stage("backbone"):
            for block, count in zip(self.vit.blocks, counts, strict=True):
                assert isinstance(block, Block)
                tokens = merging_block(block, tokens, count)
            return tokens.with_x(self.vit.norm(tokens.x_BND))


SYSTEM = System(
    name="tome",
    group="token reduction",
    paper="ToMe, arXiv 2210.09461",
    construct=ToMe,
    space={
        "r": Knob(values=(0, 4, 8, 16, 28), default=8, when="run", low=0, high=100_000, help="tokens merged in each block"),
        "schedule": Knob(values=SCHEDULES, default="constant", when="run", help="how r is spread over the blocks"),
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias"),
    },
    paper_rule={"r": 0},
)
