"""Knobs, defaults, objectives and parameter groups of the contract."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitgs import registry
from vitgs.errors import UsageError
from vitgs.record import Size
from vitgs.spec import Batch, Clip, Knob, System, cross_entropy, objective_cross_entropy

CLIP = Clip(frames=2, height=16, width=16, classes=3)
BUDGET = Knob(values=(1.0, 0.5), default=0.5, when="run", low=0.1, high=1.0)
COUNT = Knob(values=(0, 4), default=0, low=0, high=64)
SWITCH = Knob(values=(False, True), default=False)
CHOICE = Knob(values=("a", "b"), default="a")


@pytest.mark.parametrize(
    ("knob", "value"),
    [(BUDGET, 1.0), (BUDGET, 1), (BUDGET, 0.3), (COUNT, 4), (COUNT, 7), (COUNT, 7.0), (SWITCH, True), (SWITCH, False), (CHOICE, "b")],
)
def test_values_that_a_knob_takes(knob: Knob, value: Any) -> None:
    knob.check("toy", "it", value)


@pytest.mark.parametrize(
    ("knob", "value", "words"),
    [
        (BUDGET, 0.05, "toy's it must be between 0.1 and 1; given: 0.05; set it to one of 1.0, 0.5"),
        (BUDGET, True, "between 0.1 and 1; given: True"),
        (BUDGET, float("nan"), "given: nan"),
        (BUDGET, "0.5", "between"),
        (COUNT, 3.5, "a whole number between 0 and 64"),
        (COUNT, False, "given: False"),
        (COUNT, None, "given: None"),
        (SWITCH, 1, "toy's it must be one of False, True; given: 1"),
        (CHOICE, "c", "toy's it must be one of a, b; given: c; set it to one of a, b"),
    ],
)
def test_values_that_a_knob_refuses(knob: Knob, value: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        knob.check("toy", "it", value)
    assert words in str(caught.value)


class Recorded(nn.Module):
    """Keeps what it was built with."""

    def __init__(self, size: Size, clip: Clip, style: object, **knobs: Any) -> None:
        super().__init__()
        self.knobs, self.built_at = knobs, size
        self.layer = nn.Linear(4, clip.class_count)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, clip_BTCHW: Tensor, budget: float = 1.0) -> Tensor:
        logits: Tensor = self.layer(clip_BTCHW.flatten(1)[:, :4]) * budget
        return logits


TOY = System(
    name="toy",
    group="test",
    paper="none",
    construct=Recorded,
    space={"budget": BUDGET, "pattern": Knob(values=(0, 1), default=0, when="run"), "choice": CHOICE},
    repeat={"pattern": (0, 1)},
)


def test_build_fills_defaults_in() -> None:
    model = TOY.build("test", CLIP, "digits", choice="b")
    assert isinstance(model, Recorded)
    assert model.knobs == {"budget": 0.5, "pattern": 0, "choice": "b"}
    assert model.built_at.name == "test"
    own = Size(name="own", width=8, depth=1, heads=1)
    other = TOY.build(own, CLIP, "digits")
    assert isinstance(other, Recorded)
    assert other.built_at == own
    for wrong, words in (("tset", "did you mean test"), ("XXL", "a size must be one of the known ones")):
        with pytest.raises(UsageError, match=words):
            TOY.build(wrong, CLIP)
    with pytest.raises(UsageError, match="did you mean digits"):
        TOY.build("test", CLIP, "digit")
    with pytest.raises(UsageError, match="a knob in toy must be one of the known ones; given: 'budgte'; did you mean budget"):
        TOY.build("test", CLIP, budgte=1)


def test_run_and_build_knobs() -> None:
    assert TOY.run_knobs.keys() == {"budget"}, "patterns are averaged over, not drawn"
    assert TOY.build_knobs.keys() == {"choice"}


def test_default_objective() -> None:
    model = TOY.build("test", CLIP)
    clip, label = torch.randn(5, *CLIP.shape), torch.tensor([0, 1, 2, 0, 1])
    losses = objective_cross_entropy(model, Batch(clip_BTCHW=clip, label_B=label, run={"budget": 0.5}), 0.0, torch.Generator())
    assert torch.equal(losses.logits_BC, model(clip, budget=0.5))
    log_p = losses.logits_BC.log_softmax(dim=1)
    expected = -(0.95 * log_p[range(5), label] + 0.05 * log_p.mean(dim=1)).mean()
    torch.testing.assert_close(losses.total, expected)
    torch.testing.assert_close(losses.total, cross_entropy(losses.logits_BC, label))
    assert losses.total.requires_grad
    assert not losses.parts["cross_entropy"].requires_grad


def test_default_parameter_groups() -> None:
    model = TOY.build("test", CLIP)
    matrices, vectors = TOY.parameter_groups(model)
    assert [p.dim() for p in matrices["params"]] == [2]
    assert [p.dim() for p in vectors["params"]] == [1]
    assert vectors["weight_decay"] == 0
    assert "weight_decay" not in matrices


def test_clip() -> None:
    assert Clip(frames=8, height=4, width=6, classes={"verb": 97, "noun": 300}).class_count == 397
    assert CLIP.shape == (2, 3, 16, 16)
    with pytest.raises(UsageError, match="a clip's frames must be at least 1; given: 0"):
        Clip(frames=0, height=1, width=1)


def test_every_knob_documents_itself() -> None:
    for name in registry.names()[1:]:
        for knob_name, knob in registry.get(name).space.items():
            assert knob.help, f"{name}.{knob_name}"
            assert knob.default in knob.values or knob.low is not None, f"{name}.{knob_name}'s default"
