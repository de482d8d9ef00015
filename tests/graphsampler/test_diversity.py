"""Diverse choice: the greedy maximiser against enumeration, at least 1 - 1/e of the best, and the choice by utility where diversity is 0."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch

from vitgs.errors import UsageError
from vitgs.graphsampler.diversity import choose_diverse, coverage, greedy, similarities
from vitgs.graphsampler.model import SYSTEM
from vitgs.graphsampler.select import choose, kept_shape
from vitgs.spec import Clip


def total(weight: torch.Tensor, similarity: torch.Tensor, kept: torch.Tensor, diversity: float) -> torch.Tensor:
    share = kept.shape[1] / weight.shape[1]
    return (1 - diversity) * weight.gather(1, kept).sum(1) + diversity * share * coverage(weight, similarity, kept)


@pytest.mark.parametrize("diversity", [0.0, 0.3, 1.0])
def test_greedy_reaches_its_bound_on_sets_small_enough_to_enumerate(diversity: float) -> None:
    torch.manual_seed(0)
    weight, similarity = torch.rand(20, 8), similarities(torch.randn(20, 8, 4))
    found = greedy(weight, similarity, 3, diversity)
    assert (found[:, 1:] > found[:, :-1]).all()
    sets = [torch.tensor(s).expand(20, -1) for s in combinations(range(8), 3)]
    best = torch.stack([total(weight, similarity, s, diversity) for s in sets]).amax(0)
    reached = total(weight, similarity, found, diversity)
    assert (reached >= (1 - 1 / math.e) * best - 1e-6).all()
    assert (reached <= best + 1e-6).all()


def test_greedy_is_a_literal_greedy_search() -> None:
    torch.manual_seed(0)
    weight, similarity = torch.rand(1, 9), similarities(torch.randn(1, 9, 3))
    taken: list[int] = []
    for _ in range(4):
        gains = {}
        for j in set(range(9)) - set(taken):
            covered = similarity[0][:, taken].amax(1) if taken else torch.zeros(9)
            gain = float((weight[0] * (similarity[0][:, j] - covered).clamp_min(0)).sum())
            gains[j] = 0.5 * float(weight[0, j]) + 0.5 * 4 / 9 * gain
        taken.append(max(gains, key=lambda j: gains[j]))
    assert greedy(weight, similarity, 4, 0.5)[0].tolist() == sorted(taken)


def test_two_alike_are_not_both_kept() -> None:
    features = torch.tensor([[[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    score = torch.tensor([[[2.0, 1.9, 1.0, -1.0]]])
    kept = {d: choose_diverse(score, features, select="both", decision="free", budget=0.5, diversity=d)[0].tolist() for d in (0.0, 1.0)}
    assert kept == {0.0: [0, 1], 1.0: [0, 2]}


@pytest.mark.parametrize("select", ["both", "token"])
@pytest.mark.parametrize("decision", ["free", "dense"])
@pytest.mark.parametrize("budget", [0.01, 0.125, 0.5])
def test_the_budget_is_kept_in_time_order_and_no_diversity_is_the_choice_by_utility(select: str, decision: str, budget: float) -> None:
    torch.manual_seed(0)
    score, features = torch.randn(2, 8, 16), torch.randn(2, 128, 5)
    frames, tokens = kept_shape(select, decision, budget, 8, 16)
    for diversity in (0.0, 0.5):
        index = choose_diverse(score, features, select=select, decision=decision, budget=budget, diversity=diversity)
        assert index.shape == (2, frames * tokens) and (index[:, 1:] > index[:, :-1]).all()
        if not diversity:
            assert torch.equal(index, choose(score, select=select, decision=decision, budget=budget, noise=0.0, fixed=True))


def test_a_model_with_diversity_runs_and_trains() -> None:
    clip = Clip(frames=4, height=32, width=32, classes=6)
    model = SYSTEM.build("test", clip, style="digits", diversity=0.5)
    logits = model.train()(torch.randn(2, 4, 3, 32, 32), budget=0.25)
    torch.autograd.backward(logits.sum())
    with torch.no_grad():
        assert torch.isfinite(model.eval()(torch.randn(2, 4, 3, 32, 32), budget=0.25)).all()
    with pytest.raises(UsageError, match="diversity needs a hard choice"):
        SYSTEM.build("test", clip, style="digits", diversity=0.5, select="frame")
