"""The contract is no rubber stamp: for each check there is a fault that it finds, and a sound system passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitgs import testing
from vitgs.backbone.vit import Vit
from vitgs.spec import Clip, Knob, System
from vitgs.testing import CHECKS, Contract


class Sound(nn.Module):
    """A small system without a fault."""

    def __init__(self, size: Any, clip: Clip, style: Any, *, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.vit = Vit(size, style, clip)
        self.head = nn.Linear(size.width, clip.class_count)

    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        logits: Tensor = self.head(self.vit(self.vit.patches(clip_BTCHW)).x_BND[:, 0])
        return logits * (self.gain if gain is None else gain)


class ShortLogits(Sound):
    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        return super().forward(clip_BTCHW, gain)[:, :5]


class NotFinite(Sound):
    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        return super().forward(clip_BTCHW, gain) / (0.0 if gain == 2.0 else 1.0)


class OneHead(Sound):
    def __init__(self, size: Any, clip: Clip, style: Any, *, gain: float) -> None:
        super().__init__(size, clip, style, gain=gain)
        self.head = nn.Linear(size.width, clip.classes if isinstance(clip.classes, int) else 7)


class AlwaysRandom(Sound):
    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        return super().forward(clip_BTCHW, gain) + torch.rand(()) * 1e-6


class LooksAtTheBatch(Sound):
    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        return super().forward(clip_BTCHW - clip_BTCHW.mean(), gain)


class UnusedWeight(Sound):
    def __init__(self, size: Any, clip: Clip, style: Any, *, gain: float) -> None:
        super().__init__(size, clip, style, gain=gain)
        self.unused = nn.Linear(2, 2)


class HiddenState(Sound):
    offset: Tensor

    def __init__(self, size: Any, clip: Clip, style: Any, *, gain: float) -> None:
        super().__init__(size, clip, style, gain=gain)
        self.register_buffer("offset", torch.randn(1), persistent=False)

    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        return super().forward(clip_BTCHW, gain) + self.offset


class NoPickle(Sound):
    def __init__(self, size: Any, clip: Clip, style: Any, *, gain: float) -> None:
        super().__init__(size, clip, style, gain=gain)
        self.function = lambda value: value


class Counts(Sound):
    calls: Tensor

    def __init__(self, size: Any, clip: Clip, style: Any, *, gain: float) -> None:
        super().__init__(size, clip, style, gain=gain)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        self.calls += 1
        return super().forward(clip_BTCHW, gain)


class IgnoresItsDefault(Sound):
    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        return super().forward(clip_BTCHW, 1.0 if gain is None else gain)


class BreaksTheGraph(Sound):
    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        torch._dynamo.graph_break()
        return super().forward(clip_BTCHW, gain)


class OtherNames(Sound):
    def __init__(self, size: Any, clip: Clip, style: Any, *, gain: float) -> None:
        super().__init__(size, clip, style, gain=gain)
        self.vit.layers = self.vit.blocks
        del self.vit.blocks

    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        layers: Any = self.vit.layers
        logits: Tensor = self.head(self.vit.run(self.vit.enter(self.vit.patches(clip_BTCHW)), layers).x_BND[:, 0])
        return logits * (gain or 1.0)


class Unmarked(Sound):
    """Computes in no stage at all: the share is 0 however the machine stalls."""

    def forward(self, clip_BTCHW: Tensor, gain: float | None = None) -> Tensor:
        means_B1 = clip_BTCHW.mean((1, 2, 3, 4))[:, None]
        logits: Tensor = self.head(means_B1.expand(-1, self.head.in_features))
        return logits * (self.gain if gain is None else gain)


def system(construct: Callable[..., nn.Module]) -> System:
    gain = Knob(values=(1.0, 2.0), default=1.0, when="run", low=0.0, high=9.0, help="factor")
    return System(name="toy", group="test", paper="none", construct=construct, space={"gain": gain})


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_sound(check: Callable[[Contract], None]) -> None:
    check(Contract(system=system(Sound)))


@pytest.mark.parametrize(
    ("fault", "check", "words"),
    [
        (ShortLogits, testing.check_logits, r"logits of shape \(2, 5\)"),
        (NotFinite, testing.check_logits, "'gain': 2.0.*aren't finite"),
        (OneHead, testing.check_several_heads, "heads of 3 and 5"),
        (AlwaysRandom, testing.check_repeatable, "two calls"),
        (LooksAtTheBatch, testing.check_batch_independent, "row 0 alone"),
        (UnusedWeight, testing.check_gradients, r"no gradient for \['unused.bias', 'unused.weight'\]"),
        (HiddenState, testing.check_state_dict, "computes something else"),
        (Counts, testing.check_run_knobs, r"changed \['calls'\]"),
        (IgnoresItsDefault, testing.check_run_knobs, "they differ"),
        (OtherNames, testing.check_start, "nothing takes"),
        (Unmarked, testing.check_stages, "stages cover"),
    ],
)
def test_fault(fault: Callable[..., nn.Module], check: Callable[[Contract], None], words: str) -> None:
    with pytest.raises(AssertionError, match=words):
        check(Contract(system=system(fault)))


def test_faults_that_other_tools_report() -> None:
    with pytest.raises(AttributeError, match="local object"):
        testing.check_pickle(Contract(system=system(NoPickle)))
    with pytest.raises(torch._dynamo.exc.Unsupported):
        testing.check_compile(Contract(system=system(BreaksTheGraph)))
    testing.check_compile(Contract(system=replace(system(BreaksTheGraph), content=True)))


def test_faults_in_what_a_system_says() -> None:
    toy = system(Sound)
    no_help = replace(toy, space={"gain": replace(toy.space["gain"], help="")})
    half = replace(toy, space={"gain": replace(toy.space["gain"], high=None)})
    with pytest.raises(AssertionError, match="needs a line of help"):
        testing.check_wrong_knobs(Contract(system=no_help))
    with pytest.raises(AssertionError, match="both low and high"):
        testing.check_wrong_knobs(Contract(system=half))
    with pytest.raises(AssertionError, match="paper_rule's budget must be a run knob"):
        testing.check_paper_rule(Contract(system=replace(toy, paper_rule={"budget": 0.5})))
    with pytest.raises(AssertionError, match="every trained parameter once"):
        testing.check_gradients(Contract(system=replace(toy, parameter_groups=lambda model: [{"params": list(model.parameters())[1:]}])))
