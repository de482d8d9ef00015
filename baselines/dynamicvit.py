"""DynamicViT: small predictors at a quarter, a half and three quarters of the depth score the patch tokens, and the lowest are dropped.

Source: "DynamicViT: efficient vision transformers with dynamic token sparsification" (Rao 2021, section 3) over joint space-time tokens.
Training keeps all tokens and draws keep decisions with straight-through Gumbel-softmax; dropped tokens are masked in attention, and a loss
holds the kept fractions at rho, rho^2, rho^3 (weight 2). At test time the best tokens are gathered and the rest is gone. The two distillation
terms need a trained teacher and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.block import Block
from vitgs.backbone.embeddings import TimeEmbed
from vitgs.backbone.readout import READOUTS, build_readout
from vitgs.backbone.sizes import Style
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, gather, with_prefix, without_prefix
from vitgs.backbone.vit import Vit
from vitgs.backbone.weights import TIMM_VIT, Layout
from vitgs.errors import UsageError
from vitgs.reduction.utility import Utility, with_utility
from vitgs.spec import Batch, Clip, Knob, Losses, Size, System, cross_entropy

RATIO_WEIGHT = 2.0


class Predictor(nn.Module):
    """Log probabilities (keep, drop) of each patch token, from half of its features and the mean of the other half over all kept tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        out = (nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU(), nn.Linear(width // 4, 2), nn.LogSoftmax(dim=-1))
        self.out_conv = nn.Sequential(*out)

    def forward(self, x_BND: Tensor, keep_BN: Tensor | None) -> Tensor:
        local, rest = self.in_conv(x_BND).chunk(2, dim=-1)
        if keep_BN is None:
            whole = rest.mean(dim=1, keepdim=True)
        else:
            whole = torch.einsum("bn,bnd->bd", keep_BN, rest).unsqueeze(1) / keep_BN.sum(dim=1)[:, None, None].clamp_min(1e-6)
        scores_BN2: Tensor = self.out_conv(torch.cat([local, whole.expand_as(local)], dim=-1))
        return scores_BN2


def masked_block(block: Block, tokens: Tokens, keep_BN: Tensor, eps: float = 1e-6) -> Tokens:
    """The block with each key weighted by its keep decision; a token always sees itself. Explicit, since the decision needs its gradient."""
    q, k, v = block.attention.project(block.norm1(tokens.x_BND))
    logits_BhNM = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
    bias = tokens.key_bias_BN()
    if bias is not None:
        logits_BhNM = logits_BhNM + bias[:, None, None]
    count = keep_BN.shape[1]
    seen_B1NM = (keep_BN[:, None] + (1 - keep_BN[:, None]) * torch.eye(count, dtype=keep_BN.dtype, device=keep_BN.device)).unsqueeze(1)
    weight = (logits_BhNM - logits_BhNM.amax(dim=-1, keepdim=True).detach()).exp() * seen_B1NM
    weight = (weight + eps / count) / (weight.sum(dim=-1, keepdim=True) + eps)
    branch = block.attention.output((weight @ v).transpose(1, 2).flatten(2))
    return block.feed(tokens.with_x(tokens.x_BND + block.scale1(branch)))


class DynamicViT(nn.Module):
    """Joint attention with `keep` of the patch tokens left at each of the stages."""

    def __init__(self, size: Size, clip: Clip, style: Style, *, keep: float, readout: str, utility: str) -> None:
        super().__init__()
        self.keep, self.frames = keep, clip.frames
        self.vit = Vit(size, style, clip, class_token=readout == "class")
        self.time = TimeEmbed(clip.frames, size.width, style.time_init_std)
        self.at = sorted({size.depth * quarter // 4 for quarter in (1, 2, 3)})
        self.score_predictor = nn.ModuleList(Predictor(size.width) for _ in self.at)
        self.utility = Utility(size.width, self.vit.embed.rows, self.vit.embed.columns) if utility == "learned" else None
        self.readout = build_readout(readout, size.width, size.heads)
        self.head = nn.Linear(size.width, clip.class_count)

    def forward(self, clip_BTCHW: Tensor, keep: float | None = None) -> Tensor:
        return self.with_decisions(clip_BTCHW, self.keep if keep is None else keep)[0]

    def with_decisions(self, clip_BTCHW: Tensor, keep: float) -> tuple[Tensor, list[Tensor]]:
        """Logits, and in training the keep decisions `(B, T*N)` of each stage."""
        if not 0 < keep <= 1:
            raise UsageError("keep must be above 0 and at most 1", given=keep, remedy="set keep to a fraction such as 0.7")
        tokens = self.vit.patches(clip_BTCHW)
        if self.utility is not None:
            tokens = with_utility(tokens, self.utility, self.frames)
        tokens = self.vit.enter(self.time.all_frames(tokens))
        decisions: list[Tensor] = []
        if keep == 1:
            tokens = self.vit.run(tokens)
        elif self.training:
            tokens, decisions = self.masked(tokens)
        else:
            tokens = self.dropped(tokens, keep)
        with stage("head"):
            return self.head(self.readout(tokens)), decisions

    def masked(self, tokens: Tokens) -> tuple[Tokens, list[Tensor]]:
        """All blocks with all tokens, the dropped ones masked; and what each stage decided."""
        decisions: list[Tensor] = []
        keep_BN: Tensor | None = None
        for index, block in enumerate(self.vit.blocks):
            assert isinstance(block, Block)
            if index in self.at:
                scores_BN2 = self.score_predictor[len(decisions)](tokens.x_BND[:, tokens.prefix :], decisions[-1] if decisions else None)
                drawn_BN = F.gumbel_softmax(scores_BN2, hard=True)[..., 0]
                decisions.append(drawn_BN if not decisions else drawn_BN * decisions[-1])
                keep_BN = F.pad(decisions[-1], (tokens.prefix, 0), value=1.0)
            tokens = block(tokens) if keep_BN is None else masked_block(block, tokens, keep_BN)
        tokens = tokens.with_x(self.vit.norm(tokens.x_BND))
        # The readout must not see what was dropped.
        return (tokens if keep_BN is None else replace(tokens, mask_BN=keep_BN > 0.5)), decisions

    def dropped(self, tokens: Tokens, keep: float) -> Tokens:
        """All blocks, with fewer tokens behind each stage: `keep ** stage` of the first count, at least one."""
        total = tokens.count - tokens.prefix
        with stage("backbone"):
            for index, block in enumerate(self.vit.blocks):
                if index in self.at:
                    stage_index = self.at.index(index)
                    with stage("select"):
                        tokens = keep_best(tokens, self.score_predictor[stage_index], max(1, int(total * keep ** (stage_index + 1))))
                tokens = block(tokens)
            return tokens.with_x(self.vit.norm(tokens.x_BND))


def keep_best(tokens: Tokens, predictor: nn.Module, count: int) -> Tokens:
    """The class token and the `count` patch tokens that the predictor would rather keep, in their old order."""
    patches = without_prefix(tokens)
    best_BK = predictor(patches.x_BND, None)[..., 0].topk(count, dim=1, sorted=False).indices.sort(dim=1).values
    kept = gather(patches, best_BK)
    return with_prefix(kept, tokens.x_BND[:, :1]) if tokens.prefix else kept


def ratio_loss(decisions: Sequence[Tensor], keep: float) -> Tensor:
    """Squared distance of each stage's kept fraction to its target, averaged over clips and stages."""
    return torch.stack([(kept.mean(dim=1) - keep ** (i + 1)).square().mean() for i, kept in enumerate(decisions)]).mean()


def objective(model: nn.Module, batch: Batch, progress: float, generator: torch.Generator) -> Losses:
    """Cross-entropy and the ratio loss."""
    del progress, generator
    assert isinstance(model, DynamicViT)
    keep = batch.run.get("keep", model.keep)
    logits, decisions = model.with_decisions(batch.clip_BTCHW, keep)
    loss = cross_entropy(logits, batch.label_B)
    ratio = ratio_loss(decisions, keep) if decisions else torch.zeros_like(loss)
    return Losses(total=loss + RATIO_WEIGHT * ratio, parts={"cross_entropy": loss.detach(), "ratio": ratio.detach()}, logits_BC=logits)


OFFICIAL = Layout(
    name="DynamicViT, official",
    marks=("score_predictor.0.in_conv.1.weight", "blocks.0.attn.qkv.weight"),
    rules=TIMM_VIT.rules,
    adapt=TIMM_VIT.adapt,
)
SYSTEM = System(
    name="dynamicvit",
    group="token reduction",
    paper="DynamicViT, arXiv 2106.02034",
    construct=DynamicViT,
    space={
        "keep": Knob(values=(1.0, 0.9, 0.7, 0.5), default=0.7, when="run", low=0.1, high=1.0, help="kept fraction of tokens at each of three stages"),
        "readout": Knob(values=READOUTS, default="class", help="how tokens become one vector"),
        "utility": Knob(values=("none", "learned"), default="none", help="the method's utility as attention bias"),
    },
    objective=objective,
    paper_rule={"keep": 0.7},
    layouts=(OFFICIAL,),
    note="trained without the paper's two distillation terms, which need a teacher",
)
