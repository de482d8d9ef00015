"""Merging between the blocks of the ViT, on top of the choice: kept tokens that have become alike become one. What the knob `merge` picks is here.

`tome`: bipartite soft matching on attention keys, averages by size, size as a bias (ToMe, Bolya 2023, section 3). `vtm`: merging into targets of high
saliency, each token alike (Video Token Merging, Lee 2024, section 3.3), where the method's utility is the saliency: no second score is learned.
Either way r tokens fewer a block, in one frame first: only when a frame has no pair left do frames mix. r = 0 is the plain ViT.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.backbone.attention import attend
from vitgs.backbone.block import Block
from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import Tokens, gather, rows, with_prefix, without_prefix
from vitgs.backbone.vit import Vit
from vitgs.reduction.merging import merge
from vitgs.reduction.selection import gumbel

MERGES = ("none", "tome", "vtm")
# One token in so many is a target of `vtm`.
GAMMA = 6
# Added to the cosine of two tokens of one frame, so that all of these come before those of two frames.
SAME_FRAME = 4.0

# Tokens, the similarity of which decides `(B, N, E)`, and how many are to be merged -> tokens. Further features of a token ride along in `x_BND`.
Merging = Callable[[Tokens, Tensor, int], Tokens]


def within_frames(key_BND: Tensor, frame_BN: Tensor, frames: int) -> Tensor:
    """Keys whose dot products are the cosine plus `SAME_FRAME` for tokens of one frame, `(B, N, D + T)`; a class token has no frame."""
    here_BNT = frame_BN.round().unsqueeze(-1) == torch.arange(frames, device=frame_BN.device)
    return torch.cat([F.normalize(key_BND, dim=-1), here_BNT.to(key_BND.dtype) * SAME_FRAME**0.5], dim=-1)


def tome(tokens: Tokens, metric_BNE: Tensor, r: int) -> Tokens:
    """At most half of the tokens merge at once."""
    return merge(tokens, metric_BNE, r)


def vtm(tokens: Tokens, metric_BNE: Tensor, r: int, *, noisy: bool) -> Tokens:
    """The r tokens that are most similar to some target are averaged into it, features, positions and log utility alike; the order stays.

    Targets: of n tokens the n / `GAMMA` of highest log utility; `noisy`: drawn by it without replacement (in training). Class tokens stay.
    """
    patches = without_prefix(tokens)
    assert patches.bias_BN is not None
    count = patches.count
    targets = max(1, count // GAMMA)
    r = min(r, count - targets)
    if r <= 0:
        return tokens
    with torch.no_grad():
        saliency_BN = patches.bias_BN + gumbel(patches.bias_BN) if noisy else patches.bias_BN
        target_BK = saliency_BN.topk(targets, dim=1).indices
        metric_BNE = metric_BNE[:, tokens.prefix :]
        best_BN, match_BN = (metric_BNE @ rows(metric_BNE, target_BK).transpose(1, 2)).max(dim=2)
        merged_Br = best_BN.scatter(1, target_BK, -torch.inf).topk(r, dim=1).indices
        into_Br = target_BK.gather(1, match_BN.gather(1, merged_Br))
        into_BN = torch.arange(count, device=merged_Br.device).expand(len(merged_Br), -1).scatter(1, merged_Br, into_Br)
        gone_BN = torch.zeros_like(into_BN).scatter(1, merged_Br, 1)
        stay_BK = gone_BN.argsort(dim=1, stable=True)[:, : count - r]
        share_BN1 = 1 / torch.zeros_like(best_BN).scatter_add(1, into_BN, torch.ones_like(best_BN)).clamp_min(1).unsqueeze(-1)

    def mean(value_BNE: Tensor) -> Tensor:
        total_BNE = torch.zeros_like(value_BNE).scatter_add(1, into_BN.unsqueeze(-1).expand_as(value_BNE), value_BNE)
        return rows(total_BNE * share_BN1.to(value_BNE.dtype), stay_BK)

    fewer = Tokens(x_BND=mean(patches.x_BND), position_BN3=mean(patches.position_BN3), bias_BN=mean(patches.bias_BN.unsqueeze(-1)).squeeze(-1))
    return with_prefix(fewer, tokens.x_BND[:, :1]) if tokens.prefix else fewer


def run_merging(vit: Vit, tokens: Tokens, appearance_BND: Tensor, merging: Merging, counts: tuple[int, ...], frames: int) -> tuple[Tokens, Tensor]:
    """The ViT over kept tokens with `counts[i]` merges behind the attention of block i; and the appearance of the patch tokens, merged alike."""
    tokens = vit.enter(tokens)
    width, prefix = tokens.x_BND.shape[2], tokens.prefix
    appearance_BND = F.pad(appearance_BND, (0, 0, prefix, 0))
    with stage("backbone"):
        for block, count in zip(vit.blocks, counts, strict=True):
            assert isinstance(block, Block)
            q, k, v = block.attention.project(block.norm1(tokens.x_BND))
            tokens = tokens.with_x(tokens.x_BND + block.scale1(block.attention.output(attend(q, k, v, tokens.key_bias_BN()))))
            if count:
                with stage("merge"):
                    metric = within_frames(k.detach().mean(dim=1), tokens.position_BN3[..., 0], frames)
                    wide = merging(tokens.with_x(torch.cat([tokens.x_BND, appearance_BND], dim=2)), metric, count)
                    x_BND, appearance_BND = torch.split(wide.x_BND, [width, wide.x_BND.shape[2] - width], dim=2)
                    tokens = wide.with_x(x_BND)
            tokens = block.feed(tokens)
        return tokens.with_x(vit.norm(tokens.x_BND)), appearance_BND[:, prefix:]


def in_time_order(nodes: Tokens, appearance_BSD: Tensor) -> tuple[Tokens, Tensor]:
    """Merged nodes in time order again, each in the frame that is nearest to its mean time."""
    time_BS = nodes.position_BN3[..., 0].round()
    order_BS = time_BS.argsort(dim=1, stable=True)
    nodes = replace(nodes, position_BN3=torch.cat([time_BS.unsqueeze(-1), nodes.position_BN3[..., 1:]], dim=2))
    return gather(nodes, order_BS), rows(appearance_BSD, order_BS)
