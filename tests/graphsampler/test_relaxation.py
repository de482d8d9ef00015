"""Relaxations: what each computes, against a formula or a count; one gradient for both terms of the utility; nothing left of them at test time."""

from __future__ import annotations

import math

import pytest
import torch

from vitgs.errors import UsageError
from vitgs.graphsampler.losses import objective
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.relaxation import COLDEST, RELAXATIONS, Multiplier, Rule, log_inclusion, perturbed, straight_through, temperature_at
from vitgs.reduction.utility import Utility
from vitgs.spec import Batch, Clip

CLIP = Clip(frames=4, height=32, width=32, classes=6)
FREE = Rule(select="both", decision="free", budget=0.25)


def video() -> torch.Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(**knobs: object) -> GraphSampler:
    torch.manual_seed(0)
    together = {"attention": "joint"} if knobs.get("relaxation") == "lagrange" else {}  # it needs that
    model = SYSTEM.build("test", CLIP, style="digits", **(together | knobs))
    assert isinstance(model, GraphSampler)
    return model


def utility_gradients(model: GraphSampler) -> dict[str, float]:
    batch = Batch(clip_BTCHW=video(), label_B=torch.tensor([0, 1]), run={"budget": 0.25})
    torch.autograd.backward(objective(model.train(), batch, 0.3, torch.Generator()).total)
    assert isinstance(model.utility, Utility)
    grads = {name: p.grad for name, p in model.utility.named_parameters()}
    return {name: 0.0 if grad is None else float(grad.abs().sum()) for name, grad in grads.items()}


@pytest.mark.parametrize("decision", ["free", "dense"])
@pytest.mark.parametrize("relaxation", RELAXATIONS)
def test_both_terms_get_their_gradient_from_the_task_alone(relaxation: str, decision: str) -> None:
    # Without the bias, a relaxation is all that teaches the utility; without the price, the task is all that it hears of.
    utility = "learned" if relaxation == "bias" else "none"
    found = utility_gradients(build(relaxation=relaxation, decision=decision, utility=utility, sparsity=0.0))
    assert found["token.weight"] > 0 and found["frame_out.weight"] > 0 and found["down.weight"] > 0


@pytest.mark.parametrize("relaxation", ["straight_through", "perturbed", "lagrange"])
@pytest.mark.parametrize("knobs", [{"select": "frame"}, {"select": "token", "glance": "patch"}, {"readout": "class"}, {"readout": "mean"}], ids=str)
def test_one_axis_alone_teaches_both_terms_too(relaxation: str, knobs: dict[str, object]) -> None:
    found = utility_gradients(build(relaxation=relaxation, utility="none", sparsity=0.0, **knobs))
    assert found["token.weight"] > 0 and found["frame_out.weight"] > 0


def test_without_relaxation_and_bias_nothing_teaches_the_utility() -> None:
    assert not any(utility_gradients(build(utility="none", sparsity=0.0)).values())


@pytest.mark.parametrize("relaxation", ["straight_through", "perturbed", "lagrange"])
def test_at_test_time_the_choice_is_the_hard_one(relaxation: str) -> None:
    relaxed = build(relaxation=relaxation).eval()
    plain = build(attention=relaxed.attention).eval()
    relaxed.load_state_dict(plain.state_dict(), strict=False)
    with torch.no_grad():
        assert torch.equal(plain(video(), budget=0.25), relaxed(video(), budget=0.25))


def test_cold_the_perturbed_mixture_is_the_hard_choice() -> None:
    model = build(relaxation="perturbed", utility="none", budget=0.25)
    with torch.no_grad():
        hard = model.eval()(video())
        relaxed, _ = model.train().logits_and_utility(video(), 0.25, 0.0, 1e-6)
    torch.testing.assert_close(relaxed, hard, atol=1e-5, rtol=1e-5)


def test_cold_the_mask_of_a_met_budget_is_the_hard_choice() -> None:
    model = build(relaxation="lagrange", utility="none", budget=0.25)
    assert model.utility is not None and model.multiplier is not None
    clip = video()[:1]
    seen = model._look(clip)
    assert seen is not None
    with torch.no_grad():
        hard = model.eval()(clip)
        model.multiplier.price_R.fill_(float(model.utility(seen, 4).flatten().topk(17).values[-2:].mean()))
        relaxed, _ = model.train().logits_and_utility(clip, 0.25, 0.0, 1e-6)
    torch.testing.assert_close(relaxed, hard, atol=1e-5, rtol=1e-5)


def test_temperature_falls_to_its_coldest() -> None:
    annealed = [temperature_at("annealed", p) for p in (0.0, 0.4, 0.8, 1.0)]
    assert annealed == pytest.approx([1.0, math.sqrt(COLDEST), COLDEST, COLDEST])
    assert temperature_at("constant", 0.9) == 1.0


@pytest.mark.parametrize(
    "rule", [FREE, Rule(select="both", decision="dense", budget=0.25), Rule(select="frame", decision="free", budget=0.5)], ids=str
)
def test_soft_inclusion_is_above_a_half_where_the_choice_keeps(rule: Rule) -> None:
    torch.manual_seed(0)
    score = torch.randn(3, 8, 16)
    kept = torch.zeros(3, 128).scatter(1, rule.choose(score), 1.0)
    assert torch.equal((log_inclusion(score, rule, 1e-4).exp().flatten(1) > 0.5).float(), kept)


def test_the_straight_through_gate_is_one_and_has_the_gradient_of_the_soft_inclusion() -> None:
    torch.manual_seed(0)
    utility = torch.randn(1, 4, 4, requires_grad=True)
    index, gate = straight_through(utility, FREE, noise=0.0, temperature=0.5)
    assert not gate.any()
    torch.autograd.backward(gate.sum())
    kept = utility.flatten(1).detach().gather(1, index)
    edge = utility.detach().flatten().topk(5).values[-2:].mean()
    assert utility.grad is not None
    expected = torch.zeros(1, 16).scatter(1, index, (1 - torch.sigmoid((kept - edge) / 0.5)) / 0.5)
    torch.testing.assert_close(utility.grad.flatten(1), expected)


def test_the_perturbed_maximiser_and_its_gradient_are_those_of_the_normal_distribution() -> None:
    # Of two pairs the first is kept with probability Phi(d / (sigma sqrt 2)), d the difference of utilities.
    torch.manual_seed(0)
    sigma = 0.7
    utility = torch.tensor([[[0.3, -0.2]]], requires_grad=True)
    _, mix = perturbed(utility, Rule(select="both", decision="free", budget=0.5), sigma, samples=100_000)
    z = 0.5 / (sigma * math.sqrt(2))
    assert float(mix.detach()[0, 0, 0]) == pytest.approx(0.5 * (1 + math.erf(z / math.sqrt(2))), abs=5e-3)
    torch.autograd.backward(mix[0, 0, 0])
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi) / (sigma * math.sqrt(2))
    assert utility.grad is not None
    torch.testing.assert_close(utility.grad.flatten(), torch.tensor([density, -density]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, COLDEST])
def test_the_multiplier_moves_until_the_expected_count_meets_the_budget(temperature: float) -> None:
    torch.manual_seed(0)
    multiplier = Multiplier().train()
    for _ in range(400):
        for budget in (0.5, 0.25, 0.3):
            multiplier(torch.randn(2, 8, 16), budget, temperature)
    fresh = torch.randn(64, 8, 16)
    for budget in (0.5, 0.25, 0.3):
        assert float(multiplier.eval()(fresh, budget, temperature).exp().mean()) == pytest.approx(budget, abs=0.03)
    before = multiplier.price_R.clone()
    multiplier(fresh, 0.5, temperature)
    assert torch.equal(multiplier.price_R, before), "a step was taken outside of training"


def test_a_relaxation_of_a_choice_without_utility_is_refused() -> None:
    with pytest.raises(UsageError, match="a relaxation needs a choice by utility"):
        build(relaxation="perturbed", select="random")
    with pytest.raises(UsageError, match="trains on the tokens of all frames"):
        build(relaxation="lagrange", attention="frame", decision="dense")
