"""The method's training objective: cross-entropy, a sparsity regulariser on the utility, and consistency between two augmentations of a clip."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.graphsampler.relaxation import temperature_at
from vitgs.graphsampler.select import noise_scale
from vitgs.spec import Batch, Losses, cross_entropy


@runtime_checkable
class Selecting(Protocol):
    """What the objective asks of the model."""

    sparsity: float
    consistency: float
    patch: int
    budget: float
    noise: str
    temperature: str

    def logits_and_utility(self, clip_BTCHW: Tensor, budget: float | None, noise: float, temperature: float) -> tuple[Tensor, Tensor | None]: ...


def sparsity_loss(utility_BTN: Tensor) -> Tensor:
    """The expected kept fraction, utility as probability: |S| in the budgeted information bottleneck max I(Y; X_S) - lambda |S|.

    Every pair pays for its utility, so that only what helps the answer keeps one. Without a price (or with one on the distance to the budget, which
    a clip of much clutter meets anyway) empty patches cost nothing and fill the budget.
    """
    return torch.sigmoid(utility_BTN).mean()


def shifted(clip_BTCHW: Tensor, patch: int, rows: int, columns: int) -> Tensor:
    """The clip rolled by whole patches, a translation whose positions map back exactly."""
    return torch.roll(clip_BTCHW, (rows * patch, columns * patch), dims=(3, 4))


def consistency_loss(
    logits_BC: Tensor, other_BC: Tensor, utility_BTN: Tensor, other_BTN: Tensor, shift: tuple[int, int], grid: tuple[int, int]
) -> Tensor:
    """Symmetric KL divergence of the predictions plus the squared difference of utilities, the second view's mapped back through its translation."""
    p, q = logits_BC.log_softmax(-1), other_BC.log_softmax(-1)
    divergence = 0.5 * (F.kl_div(p, q, log_target=True, reduction="batchmean") + F.kl_div(q, p, log_target=True, reduction="batchmean"))
    mapped = torch.roll(torch.unflatten(other_BTN, 2, grid), (-shift[0], -shift[1]), dims=(2, 3)).flatten(2)
    return divergence + F.mse_loss(torch.sigmoid(utility_BTN), torch.sigmoid(mapped))


def objective(model: nn.Module, batch: Batch, progress: float, generator: torch.Generator) -> Losses:
    """Cross-entropy + sparsity + consistency, each regulariser only where its weight is above 0 and there is a utility to regularise."""
    assert isinstance(model, Selecting)
    run = dict(batch.run)
    budget = float(run.get("budget", model.budget))
    scales = {"noise": noise_scale(model.noise, progress), "temperature": temperature_at(model.temperature, progress)}
    logits, utility = model.logits_and_utility(batch.clip_BTCHW, budget, **scales)
    loss = cross_entropy(logits, batch.label_B)
    parts = {"cross_entropy": loss.detach()}
    if utility is not None and model.sparsity > 0:
        sparse = sparsity_loss(utility)
        loss = loss + model.sparsity * sparse
        parts["sparsity"] = sparse.detach()
    if utility is not None and model.consistency > 0:
        height, width = batch.clip_BTCHW.shape[3] // model.patch, batch.clip_BTCHW.shape[4] // model.patch
        shift = (int(torch.randint(height, (), generator=generator)), int(torch.randint(width, (), generator=generator)))
        second = replace(batch, clip_BTCHW=shifted(batch.clip_BTCHW, model.patch, *shift))
        other_logits, other_utility = model.logits_and_utility(second.clip_BTCHW, budget, **scales)
        assert other_utility is not None
        agree = consistency_loss(logits, other_logits, utility, other_utility, shift, (height, width))
        loss = loss + model.consistency * agree
        parts["consistency"] = agree.detach()
    return Losses(total=loss, parts=parts, logits_BC=logits)
