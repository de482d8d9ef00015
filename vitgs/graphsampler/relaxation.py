"""How the gradient of a hard choice reaches the utility in training, beside its use as a bias: three relaxations. At test time none of them is there.

All relax the choice of `select.choose` by one utility u(t, i), whose frame and token terms therefore share one gradient, and all go over into the
hard choice as the temperature tau falls. A gate g enters as log g in the bias of a token as a key: it multiplies the token's
weight in attention, messages and pooling (DynamicViT, Rao 2021, eq. 11), so g = 0 is the token left out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitgs.backbone.tokens import Tokens, rows
from vitgs.errors import UsageError
from vitgs.graphsampler.select import choose, kept_shape
from vitgs.reduction.selection import gumbel
from vitgs.reduction.utility import log_utility

RELAXATIONS = ("bias", "straight_through", "perturbed", "lagrange")
TEMPERATURES = ("annealed", "constant")
COLDEST = 0.05
# Noisy choices that the perturbed maximiser averages over.
SAMPLES = 32
# The multiplier has a value for each halving of the budget, and one between by interpolation.
RUNGS = 8
# Stable for tau of `COLDEST` and more, where the expected count falls by at most 1 / (4 tau) for one more unit of the multiplier.
STEP = 0.2


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What decides at test time: the knobs `select` and `decision`, and the kept fraction."""

    select: str
    decision: str
    budget: float

    def choose(self, score_BTN: Tensor) -> Tensor:
        """The hard choice `(B, S)` by given scores."""
        return choose(score_BTN, select=self.select, decision=self.decision, budget=self.budget, noise=0.0, fixed=True)


def check_relaxation(relaxation: str, select: str, attention: str) -> None:
    """Refuses a relaxation of a choice that no utility makes, and the one that trains on the tokens of all frames at once, with
    attention a frame at a time."""
    if relaxation != "bias" and select not in ("both", "frame", "token"):
        remedy = "set relaxation=bias, or select=both"
        raise UsageError("a relaxation needs a choice by utility", given=f"relaxation={relaxation}, select={select}", remedy=remedy)
    if relaxation == "lagrange" and attention == "frame":
        remedy = "set attention=joint, or another relaxation"
        raise UsageError("relaxation=lagrange trains on the tokens of all frames at once", given="attention=frame", remedy=remedy)


def temperature_at(kind: str, progress: float) -> float:
    """tau at that share of the training: 1, or annealed by a constant factor a step to `COLDEST`, where it stays for the last fifth."""
    return {"constant": 1.0, "annealed": max(COLDEST, math.exp(math.log(COLDEST) * progress / 0.8))}[kind]


def relax(
    relaxation: str,
    embed: Callable[[Tensor | None], Tokens],
    utility_BTN: Tensor,
    rule: Rule,
    multiplier: Multiplier | None,
    *,
    noise: float,
    temperature: float,
) -> tuple[Tokens, Tensor | None]:
    """The tokens that go into the ViT, gates in their bias, and which of them go on behind it (None: all).

    `embed` gives the patch tokens at indices, or all. `noise`: scale of the Gumbel noise of `straight_through`; the others have none.
    """
    if relaxation == "straight_through":
        index_BS, gate_BS = straight_through(utility_BTN, rule, noise=noise, temperature=temperature)
        return replace(embed(index_BS), bias_BN=gate_BS), None
    if relaxation == "perturbed":
        index_BS, mix_BSP = perturbed(utility_BTN, rule, temperature)
        every = embed(None)
        x_BSD = mix_BSP.to(every.x_BND.dtype) @ every.x_BND
        return Tokens(x_BND=x_BSD, position_BN3=rows(every.position_BN3, index_BS)), None
    assert multiplier is not None
    mask_BTN = multiplier(utility_BTN, rule.budget, temperature)
    return replace(embed(None), bias_BN=mask_BTN.flatten(1)), rule.choose(utility_BTN.detach())


def log_inclusion(score_BTN: Tensor, rule: Rule, temperature: float) -> Tensor:
    """The log of each pair's soft inclusion, `(B, T, N)`: sigmoid((s - theta) / tau), theta half-way between the last that is kept and the next.

    The dense choice has a factor for the frame, by the log-sum-exp of its scores, and one for the token within it. Above one half: kept.
    """
    frames, tokens = score_BTN.shape[1:]
    kept_frames, kept_tokens = kept_shape(rule.select, rule.decision, rule.budget, frames, tokens)
    if rule.select == "both" and rule.decision == "free":
        return _log_gate(score_BTN.flatten(1), kept_tokens, temperature).view_as(score_BTN)
    frame_BT1 = _log_gate(score_BTN.logsumexp(dim=2), kept_frames, temperature).unsqueeze(-1)
    return frame_BT1 + _log_gate(score_BTN, kept_tokens, temperature)


def _log_gate(score_BX: Tensor, count: int, temperature: float) -> Tensor:
    if count == score_BX.shape[-1]:
        return torch.zeros_like(score_BX)
    edge = score_BX.detach().topk(count + 1, dim=-1).values[..., -2:].mean(dim=-1, keepdim=True)
    return F.logsigmoid((score_BX - edge) / temperature)


def straight_through(utility_BTN: Tensor, rule: Rule, *, noise: float, temperature: float) -> tuple[Tensor, Tensor]:
    """Gumbel top-k (Kool 2019) with a straight-through gate: the choice `(B, S)`, and log gates of value 0, `(B, S)`.

    s = u + noise Gumbel; S = the best of s; log g_i = log p_i - stop(log p_i), p from `log_inclusion`. So what is kept runs as at test time, and
    only what is kept has a gradient, d log p_i / du_i = (1 - p_i) / tau.
    """
    score_BTN = utility_BTN + noise * gumbel(utility_BTN) if noise else utility_BTN
    index_BS = rule.choose(score_BTN.detach())
    gate_BS = rows(log_inclusion(score_BTN, rule, temperature).flatten(1), index_BS)
    return index_BS, gate_BS - gate_BS.detach()


class PerturbedMaximiser(torch.autograd.Function):
    """The mean of n noisy choices as a matrix, and the gradient of its expectation."""

    @staticmethod
    def forward(ctx: Any, utility_BP: Tensor, index_BnS: Tensor, noise_BnP: Tensor, sigma: float) -> Tensor:
        ctx.save_for_backward(index_BnS, noise_BnP)
        ctx.sigma = sigma
        index_BSn = index_BnS.transpose(1, 2)
        share = utility_BP.new_full((), 1 / index_BSn.shape[2]).expand(index_BSn.shape)
        return utility_BP.new_zeros(*index_BSn.shape[:2], utility_BP.shape[1]).scatter_add(2, index_BSn, share)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_BSP,) = grads
        index_BnS, noise_BnP = ctx.saved_tensors
        value_Bn = grad_BSP.gather(2, index_BnS.transpose(1, 2)).sum(dim=1)
        # Against the mean of the other samples: the same expectation, since noise has mean 0, at a far lower variance.
        count = value_Bn.shape[1]
        value_Bn = (value_Bn - value_Bn.mean(dim=1, keepdim=True)) * (count / (count - 1))
        return (value_Bn.unsqueeze(1) @ noise_BnP.to(value_Bn.dtype)).squeeze(1) / (count * ctx.sigma), None, None, None


def perturbed(utility_BTN: Tensor, rule: Rule, temperature: float, samples: int = SAMPLES) -> tuple[Tensor, Tensor]:
    """Perturbed top-k (Berthet 2020, prop. 3.1; Cordonnier 2021, eqs. 3-5): the choice without noise `(B, S)`, and Y `(B, S, T*N)`.

    Y = E[onehot(choice(u + sigma Z))], Z ~ N(0, I), sigma the temperature; row k is where the k-th kept pair, in time order, comes from, and Y x are
    mixtures of patch tokens. dE[Y]/du = E[onehot(choice(u + sigma Z)) Z^T] / sigma, both means over `samples` draws.
    """
    batch, frames, tokens = utility_BTN.shape
    noise_BnTN = torch.randn(batch, samples, frames, tokens, device=utility_BTN.device, dtype=utility_BTN.dtype)
    noisy_BnTN = utility_BTN.detach().unsqueeze(1) + temperature * noise_BnTN
    index_BnS = torch.unflatten(rule.choose(noisy_BnTN.flatten(0, 1)), 0, (batch, samples))
    mix_BSP: Tensor = PerturbedMaximiser.apply(utility_BTN.flatten(1), index_BnS, noise_BnTN.flatten(2), temperature)
    return rule.choose(utility_BTN.detach()), mix_BSP


class Multiplier(nn.Module):
    """The Lagrange multiplier of the budget: max_m sum_i m_i u_i + tau H(m) subject to mean(m) <= B, H the entropy.

    For a multiplier lambda the maximum is at m_i = sigmoid((u_i - lambda) / tau); the dual's gradient is mean(m) - B, so each training step moves
    lambda by `STEP` of that, until the expected count meets B. One lambda for each halving of the budget, all in a buffer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.price_R: Tensor
        self.register_buffer("price_R", torch.zeros(RUNGS))

    def forward(self, utility_BTN: Tensor, budget: float, temperature: float) -> Tensor:
        """The log mask `(B, T, N)` under the present multiplier, which in training then takes its step."""
        place = min(RUNGS - 1.0, -math.log2(budget))
        lower = min(RUNGS - 2, math.floor(place))
        price = torch.lerp(self.price_R[lower], self.price_R[lower + 1], place - lower)
        logit_BTN = (utility_BTN - price) / temperature
        if self.training:
            with torch.no_grad():
                step = STEP * (torch.sigmoid(logit_BTN).mean() - budget)
                self.price_R[lower] += step * (1 - (place - lower))
                self.price_R[lower + 1] += step * (place - lower)
        return log_utility(logit_BTN)
