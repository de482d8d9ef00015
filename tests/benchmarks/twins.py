"""What the method is timed beside, of the same modules and weights: its ViT on tokens given free, and `vit_mean` in chunks of frames."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitgs.backbone.stages import stage
from vitgs.backbone.tokens import without_prefix
from vitgs.baselines.vit_mean import VitMean
from vitgs.errors import UsageError
from vitgs.graphsampler.model import GraphSampler


@dataclass(frozen=True)
class Kept:
    """What the method keeps of a clip: `index_BS` into T*N in time order, and the log utility of each token as `bias_BS`, None without one."""

    index_BS: Tensor
    bias_BS: Tensor | None


def kept_by(model: GraphSampler, clip_BTCHW: Tensor, budget: float) -> Kept:
    """The choice of the model itself at that budget, without noise."""
    tokens, _ = model._keep(clip_BTCHW, budget, 0.0)
    embed = model.vit.embed
    t_BS, y_BS, x_BS = tokens.position_BN3.long().unbind(-1)
    return Kept(index_BS=(t_BS * embed.rows + y_BS) * embed.columns + x_BS, bias_BS=tokens.bias_BN)


def given_tokens(model: GraphSampler, clip_BTCHW: Tensor, kept: Kept, budget: float, *, biased: bool) -> Tensor:
    """Logits `(B, classes)` of the model's own ViT, readout and head on tokens that nobody had to choose; no graph, no memory.

    `biased`: attention and readout take the tokens' log utility, and the encoded part is the model's own to the last bit. Otherwise it is a plain
    ViT, which is faster: fused attention is slower with a bias. Stages are marked as the model marks its own, so that they can be subtracted.
    """
    whole = kept.index_BS.shape[1] == model.frames * model.tokens
    with stage("select"):
        tokens = model.vit.patches(clip_BTCHW) if whole else model.vit.embed.some(clip_BTCHW, kept.index_BS)
        tokens = replace(tokens, bias_BN=kept.bias_BS if biased else None)
        tokens = tokens if model.time is None else model.time(tokens)
    encoded = model._encode(tokens, budget)
    nodes = model._together(without_prefix(encoded), clip_BTCHW.shape[0])
    with stage("head"):
        logits: Tensor = model.head(model._read(encoded, nodes, nodes))
        return logits


def mean_in_chunks(model: VitMean, clip_BTCHW: Tensor, frames_at_once: int) -> Tensor:
    """Logits `(B, classes)` of `vit_mean`, its ViT fed so many frames of the batch at once: equal logits, another size of what is worked on."""
    images = clip_BTCHW.flatten(0, 1).unsqueeze(1)
    if model.frames != clip_BTCHW.shape[1] or model.utility is not None or model.resolution != clip_BTCHW.shape[3]:
        rule = "vit_mean is fed in chunks only with all frames, at full resolution and without utility"
        given = f"{model.frames} frames, {model.resolution} px"
        raise UsageError(rule, given=given, remedy="build it with its defaults for this clip")
    features = [model.readout(model.vit(model.vit.patches(part))) for part in torch.split(images, frames_at_once)]
    with stage("head"):
        frame_BTD = torch.unflatten(torch.cat(features), 0, (-1, model.frames))
        logits: Tensor = model.head(frame_BTD.mean(dim=1))
        return logits


def chunkings(frames: int, batch: int) -> list[int]:
    """How many frames at once are tried: one, a few, a clip, the whole batch."""
    return sorted({n for n in (1, 2, 4, 8, frames, frames * batch) if n <= frames * batch})


def extra_ms(ours_ms: float, ours: Mapping[str, float], given_ms: float, given: Mapping[str, float]) -> dict[str, float]:
    """What each stage of ours takes above the same stage of the ViT on given tokens, from both times and their stages' shares."""
    return {name: ours_ms * ours.get(name, 0.0) - given_ms * given.get(name, 0.0) for name in dict.fromkeys([*ours, *given])}
