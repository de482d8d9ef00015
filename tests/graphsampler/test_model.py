"""The method as a whole: the plain model in the limit, one gradient for both decisions, budgets that cost less, losses that do what they say."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vitgs import registry
from vitgs.errors import UsageError
from vitgs.graphsampler.losses import consistency_loss, objective, shifted, sparsity_loss
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.spec import Batch, Clip

CLIP = Clip(frames=4, height=32, width=32, classes=6)
PLAIN = {"utility": "none", "layers": 0, "memory": 0, "budget": 1.0}


def video(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(**knobs: object) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **knobs)
    assert isinstance(model, GraphSampler)
    return model.eval()


@pytest.mark.parametrize("readout", ["class", "mean", "attention"])
def test_everything_off_is_the_joint_model(readout: str) -> None:
    joint = registry.get("joint").build("test", CLIP, style="digits", readout=readout).eval()
    plain = build(**PLAIN, attention="joint", select="none", readout=readout)
    plain.load_state_dict(joint.state_dict())
    assert torch.equal(plain(video()), joint(video()))


@pytest.mark.parametrize("readout", ["class", "mean"])
def test_a_frame_at_a_time_it_is_the_frame_average(readout: str) -> None:
    mean = registry.get("vit_mean").build("test", CLIP, style="digits", readout=readout).eval()
    plain = build(**PLAIN, decision="dense", select="none", readout=readout)
    plain.load_state_dict(mean.state_dict())
    torch.testing.assert_close(plain(video()), mean(video()), atol=1e-6, rtol=1e-5)


def test_frame_and_token_terms_share_one_gradient() -> None:
    model = build(budget=0.25).train()
    losses = objective(model, Batch(clip_BTCHW=video(), label_B=torch.tensor([0, 1])), 0.0, torch.Generator())
    torch.autograd.backward(losses.total)
    assert model.utility is not None
    for name in ("token.weight", "frame_out.weight", "down.weight"):
        grad = model.utility.get_parameter(name).grad
        assert grad is not None and float(grad.abs().sum()) > 0, name


def test_fewer_tokens_cost_fewer_macs() -> None:
    model = build().requires_grad_(False)
    counts = []
    for budget in (1.0, 0.5, 0.25, 0.125):
        with FlopCounterMode(display=False) as counter:
            model(video(1), budget=budget)
        counts.append(counter.get_total_flops())
    assert counts == sorted(counts, reverse=True) and counts[-1] < 0.4 * counts[0]


def test_the_sparsity_loss_is_the_expected_kept_fraction() -> None:
    utility = torch.tensor([[[100.0, -100.0, 100.0, 0.0]]])
    assert float(sparsity_loss(utility)) == pytest.approx(2.5 / 4)


def test_consistency_maps_positions_back_through_the_translation() -> None:
    utility = torch.randn(2, 3, 16)
    rolled = torch.roll(torch.unflatten(utility, 2, (4, 4)), (1, 2), dims=(2, 3)).flatten(2)
    logits = torch.randn(2, 5)
    assert float(consistency_loss(logits, logits, utility, rolled, (1, 2), (4, 4))) < 1e-9
    assert float(consistency_loss(logits, logits, utility, rolled, (0, 2), (4, 4))) > 1e-3
    clip = video()
    assert torch.equal(shifted(clip, 8, 1, 2)[..., 8:, 16:], clip[..., :-8, :-16])


def test_regularisers_enter_the_loss() -> None:
    batch = Batch(clip_BTCHW=video(), label_B=torch.tensor([0, 1]), run={"budget": 0.25})
    parts = objective(build(sparsity=0.1, consistency=0.1).train(), batch, 0.0, torch.Generator().manual_seed(0)).parts
    assert set(parts) == {"cross_entropy", "sparsity", "consistency"}


def test_a_frozen_backbone_gets_no_gradient() -> None:
    model = build(frozen=True).train()
    torch.autograd.backward(objective(model, Batch(clip_BTCHW=video(), label_B=torch.tensor([0, 1])), 0.0, torch.Generator()).total)
    assert all(p.grad is None for p in model.vit.parameters())
    assert all(p.grad is not None for name, p in model.named_parameters() if not name.startswith("vit."))


@pytest.mark.parametrize("budget", [0.0, -0.5, 1.5, float("nan")])
def test_a_budget_outside_its_range_is_refused(budget: float) -> None:
    with pytest.raises(UsageError, match="budget"):
        build(budget=budget)
    with pytest.raises(UsageError, match="budget"):
        build()(video(), budget=budget)
