"""AdaFrame: what it looks at and pays for, when it stops, its rewards by hand, and which way its policy is pushed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitgs import registry
from vitgs.errors import UsageError
from vitgs.measure.cost import count
from vitgs.spec import Batch, Clip
from vitgs.testing import Contract

MODULE: Any = registry.module_of("adaframe")
SYSTEM = registry.get("adaframe")


class Scripted(nn.Module):
    """Utilities read from a list instead of predicted: one row for each step, one number for each clip that is still looked at."""

    def __init__(self, values: list[list[float]]) -> None:
        super().__init__()
        self.values, self.calls = values, 0

    def forward(self, hidden_BD: Tensor) -> Tensor:
        self.calls += 1
        return torch.tensor(self.values[self.calls - 1])[:, None]


def looked(model: Any) -> list[int]:
    """How many frames each call of the big backbone will have got."""
    seen: list[int] = []
    model.vit.embed.register_forward_hook(lambda module, args, out: seen.append(args[0].shape[0] * args[0].shape[1]))
    return seen


@pytest.mark.parametrize(("frames", "expected"), [(1, [3]), (3, [3, 3, 3]), (100, [3] * 8)])
@torch.no_grad()
def test_only_frames_that_are_looked_at_are_computed(frames: int, expected: list[int]) -> None:
    contract = Contract(system=SYSTEM)
    model = contract.build(memory=1)
    seen, clip = looked(model), contract.input()
    first = model(clip, frames=frames, margin=1000.0)
    assert seen == expected
    if frames == 1:
        clip[:, [0, 1, 2, 3, 5, 6, 7]] = torch.nan
        assert torch.equal(model(clip, frames=1), first), "the middle frame alone, for the memory of one frame and to look at"


@torch.no_grad()
def test_finished_clips_leave_and_keep_their_last_prediction() -> None:
    contract = Contract(system=SYSTEM)
    model: Any = contract.build()
    clip, seen = contract.input(), looked(model)
    each = [model(clip, frames=frames, margin=1000.0) for frames in (1, 2, 3, 4)]
    seen.clear()
    # The first clip falls below its best twice (of 1.0, then of 2.0), the second three times, the third never.
    model.gain = Scripted([[1.0, 1.0, 1.0], [0.5, 0.5, 1.0], [2.0, 0.5, 2.0], [1.5, 2.0]])
    logits = model(clip, frames=4, margin=0.1, patience=1)
    assert seen == [3, 3, 3, 2], "the second clip is done behind its third frame"
    torch.testing.assert_close(logits[1], each[2][1], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits[[0, 2]], each[3][[0, 2]], rtol=0, atol=1e-6)


@torch.no_grad()
def test_all_clips_may_finish_early() -> None:
    contract = Contract(system=SYSTEM)
    model: Any = contract.build()
    clip, seen = contract.input(), looked(model)
    model.gain = Scripted([[1.0] * 3, [0.0] * 3])
    model(clip, frames=8, margin=0.5, patience=0)
    assert seen == [3, 3]


def test_margins() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1], [0.2, 0.5, 0.3]]).log()
    torch.testing.assert_close(MODULE.margins(logits, torch.tensor([0, 2])), torch.tensor([0.5, -0.2]))


def test_returns() -> None:
    """Margins 0, 0.2, 0.1, 0.5 are rewarded with 0.2, 0, 0.3; a step's return begins with the next step's."""
    wanted = MODULE.returns(torch.tensor([[0.0], [0.2], [0.1], [0.5]]))
    torch.testing.assert_close(wanted, torch.tensor([[0.2 + 0.9 * 0.9 * 0.3], [0.9 * 0.3], [0.3]]))
    assert MODULE.returns(torch.tensor([[0.3, 0.1]])).shape == (0, 2)


@pytest.mark.parametrize("better", [True, False])
def test_policy_is_pushed_to_places_that_brought_more_than_expected(better: bool) -> None:
    contract = Contract(system=SYSTEM)
    model: Any = contract.build().train()
    with torch.no_grad():
        model.gain.weight.zero_()
        model.gain.bias.fill_(-5.0 if better else 5.0)
    clip = contract.input(1)
    batch = Batch(clip_BTCHW=clip, label_B=torch.tensor([1]), run={"frames": 2})
    losses = SYSTEM.objective(model, batch, 0.0, torch.Generator().manual_seed(3))
    torch.autograd.backward(losses.total)
    drawn_further = torch.randn(2, 1, generator=torch.Generator().manual_seed(3))[0].item() > 0
    # A step against the gradient moves the mean towards the drawn place when that was better, away from it when worse.
    assert (model.place.bias.grad.item() < 0) == (drawn_further == better)


def test_losses() -> None:
    contract = Contract(system=SYSTEM)
    model = contract.build().train()
    for frames in (1, 3):
        batch = Batch(clip_BTCHW=contract.input(), label_B=torch.tensor([0, 1, 2]), run={"frames": frames})
        losses = SYSTEM.objective(model, batch, 0.0, torch.Generator().manual_seed(0))
        assert set(losses.parts) == {"cross_entropy", "utility", "policy", "reward"}
        total = losses.parts["cross_entropy"] + losses.parts["utility"] - losses.parts["reward"]
        torch.testing.assert_close(losses.total.detach(), total)
        assert losses.parts["reward"] >= 0
        assert (frames > 1) == (losses.parts["utility"].item() != 0)


def test_utility_learns_the_returns() -> None:
    """The error falls when only the utility network trains, on one rollout again and again."""
    contract = Contract(system=SYSTEM)
    model: Any = contract.build().train()
    optimiser = torch.optim.Adam(model.gain.parameters(), lr=0.02)
    errors = []
    for _ in range(40):
        batch = Batch(clip_BTCHW=contract.input(), label_B=torch.tensor([0, 1, 2]), run={"frames": 3})
        losses = SYSTEM.objective(model, batch, 0.0, torch.Generator().manual_seed(0))
        optimiser.zero_grad()
        torch.autograd.backward(losses.total)
        optimiser.step()
        errors.append(losses.parts["utility"].item())
    assert errors[-1] < 0.2 * errors[0]


def test_cost_grows_by_a_frame() -> None:
    """DeiT-S features: each further frame costs a ViT's 4.6 GMACs and little more; the memory of 16 frames is under 1 % of a frame."""
    clip = Clip(frames=16, height=224, width=224, classes=400)
    with torch.device("meta"):
        model: Any = SYSTEM.build("S", clip, "deit").eval()
        macs = [count(model, torch.empty(1, *clip.shape), {"frames": frames, "margin": 1000.0, "patience": 16}) for frames in (1, 2, 3)]
    found = [each.macs for each in macs if each.macs is not None]
    assert found[2] - found[1] == pytest.approx(4.6e9, rel=0.01)
    assert macs[0].macs_by_part["memory"] < 0.01 * 4.6e9
    assert macs[0].device == "meta"


@torch.no_grad()
def test_cost_of_early_stopping_is_counted_on_a_clip() -> None:
    contract = Contract(system=SYSTEM)
    model: Any = contract.build()
    counted = count(model, contract.input(1), {"frames": 8})
    assert counted.device == "cpu"
    assert counted.macs is not None


@pytest.mark.parametrize("frames", [0, -1])
def test_wrong_frames(frames: int) -> None:
    contract = Contract(system=SYSTEM)
    with pytest.raises(UsageError):
        contract.build()(contract.input(1), frames=frames)
