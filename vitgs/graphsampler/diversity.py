"""A choice that pays for what is alike only once: greedy facility location, so that B tokens don't all describe one region."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vitgs.errors import UsageError
from vitgs.graphsampler.select import kept_shape


def check_diversity(diversity: float, select: str, relaxation: str) -> None:
    """Refuses diversity where tokens aren't chosen by utility alone and hard."""
    if diversity and (select not in ("both", "token") or relaxation != "bias"):
        given = f"diversity={diversity}, select={select}, relaxation={relaxation}"
        raise UsageError("diversity needs a hard choice of tokens by utility", given=given, remedy="set select=both and relaxation=bias")


def coverage(weight_BP: Tensor, similarity_BPP: Tensor, index_BS: Tensor) -> Tensor:
    """The facility-location function f(S) = sum_i w_i max_{j in S} sim_ij, `(B,)`: how well S stands for all, each as much as it weighs."""
    columns_BPS = similarity_BPP.gather(2, index_BS.unsqueeze(1).expand(-1, similarity_BPP.shape[1], -1))
    return (weight_BP * columns_BPS.amax(dim=2)).sum(dim=1)


def similarities(feature_BPD: Tensor) -> Tensor:
    """Cosines of centred features, 0 where negative, `(B, P, P)`; each feature is wholly like itself."""
    unit_BPD = F.normalize(feature_BPD - feature_BPD.mean(dim=1, keepdim=True), dim=-1)
    similarity_BPP = (unit_BPD @ unit_BPD.transpose(1, 2)).clamp_min(0)
    return similarity_BPP.diagonal_scatter(torch.ones_like(similarity_BPP[..., 0]), dim1=1, dim2=2)


def greedy(weight_BP: Tensor, similarity_BPP: Tensor, count: int, diversity: float) -> Tensor:
    """The greedy maximiser of F(S) = (1 - d) sum_{j in S} w_j + d (B / P) f(S), indices `(B, count)` in order; w at least 0, d from 0 to 1.

    F is monotone and submodular, so greedy reaches at least 1 - 1/e of the best set of that size (Nemhauser 1978). d = 0: the best by weight.
    B / P: a kept pair stands for P / B of all. Cost O(B P^2).
    """
    covered_BP = torch.zeros_like(weight_BP)
    taken_BP = torch.zeros_like(weight_BP, dtype=torch.bool)
    each = diversity * count / weight_BP.shape[1]
    for _ in range(count):
        gain_BP = (weight_BP.unsqueeze(1) @ (similarity_BPP - covered_BP.unsqueeze(2)).clamp_min(0)).squeeze(1)
        value_BP = ((1 - diversity) * weight_BP + each * gain_BP).masked_fill(taken_BP, -1.0)
        best_B1 = value_BP.argmax(dim=1, keepdim=True)
        taken_BP = taken_BP.scatter(1, best_B1, True)
        new_BP = similarity_BPP.gather(2, best_B1.unsqueeze(1).expand(-1, similarity_BPP.shape[1], -1)).squeeze(2)
        covered_BP = torch.maximum(covered_BP, new_BP)
    # In order of the index: the taken ones first, stably.
    return (~taken_BP).to(torch.uint8).argsort(dim=1, stable=True)[:, :count]


@torch.no_grad()
def choose_diverse(score_BTN: Tensor, feature_BPD: Tensor, *, select: str, decision: str, budget: float, diversity: float) -> Tensor:
    """The choice `(B, S)` into T*N in time order, by utility as a probability and the features of all P = T*N tokens.

    Free: greedy over all pairs. M x K: the best frames as in `choose`, then greedy in each.
    """
    batch, frames, tokens = score_BTN.shape
    kept_frames, kept_tokens = kept_shape(select, decision, budget, frames, tokens)
    weight_BTN = torch.sigmoid(score_BTN)
    if select == "both" and decision == "free":
        return greedy(weight_BTN.flatten(1), similarities(feature_BPD), kept_tokens, diversity)
    frame_BM = score_BTN.logsumexp(dim=2).topk(kept_frames, dim=1).indices.sort(dim=1).values
    row_B1 = torch.arange(batch, device=frame_BM.device).unsqueeze(1)
    within_XD = torch.unflatten(feature_BPD, 1, (frames, tokens))[row_B1, frame_BM].flatten(0, 1)
    token_XK = greedy(weight_BTN[row_B1, frame_BM].flatten(0, 1), similarities(within_XD), kept_tokens, diversity)
    return (frame_BM.unsqueeze(-1) * tokens + token_XK.view(batch, kept_frames, -1)).flatten(1)
