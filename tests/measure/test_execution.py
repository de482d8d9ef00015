"""Compiled models are compiled outside the timing and must answer as they do uncompiled; what a machine can't do is refused in one line."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitgs.errors import UnfitMachine, UsageError
from vitgs.measure import clock, execution, validity
from vitgs.measure.execution import Execution, Runner
from vitgs.measure.harness import measure
from vitgs.measure.soundness import NotMeasurable
from vitgs.record import Clip

CPU = torch.device("cpu")
CLIP = Clip(frames=2, height=4, width=4, classes=5)
EAGERLY = Execution(backend="aot_eager")  # the whole way through torch.compile but for the last step, which takes long


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(96, 5)

    def forward(self, clip: Tensor, scale: float = 1.0) -> Tensor:
        logits: Tensor = self.head(clip.flatten(1)) * scale
        return logits


class Broken(Small):
    """Leaves the graph in the middle."""

    def forward(self, clip: Tensor, scale: float = 1.0) -> Tensor:
        x = super().forward(clip, scale)
        torch._dynamo.graph_break()
        return x + 1


def _batches(size: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn((size, *CLIP.shape), generator=torch.Generator().manual_seed(n)).to(dtype) for n in range(3)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("kind", "breaks"), [(Small, 0), (Broken, 1)])
def test_a_compiled_model_answers_as_itself(kind: type[Small], breaks: int, dtype: torch.dtype) -> None:
    model = kind().to(dtype).eval()
    runner = Runner(model, {"scale": 2.0}, EAGERLY, CPU)
    with torch.inference_mode():
        for size in (1, 3):
            forward = runner.ready(_batches(size, dtype))
            assert runner.ready(_batches(size, dtype)) is forward, "made ready once for each batch"
            for clips in _batches(size, dtype):
                torch.testing.assert_close(forward(clips), model(clips, scale=2.0))
    facts = runner.facts
    assert facts["graph_breaks"] == {1: breaks, 3: breaks}
    assert facts["graphs"] == {1: breaks + 1, 3: breaks + 1}
    assert all(seconds > 0 for seconds in facts["compile_s"].values())
    assert max(facts["largest_difference"].values()) <= execution.TOLERANCE[dtype]


def test_two_models_of_one_class_are_compiled_apart() -> None:
    runners = [Runner(Small().eval(), {}, EAGERLY, CPU) for _ in range(2)]
    with torch.inference_mode():
        for runner in runners:
            runner.ready(_batches(2))
    assert [runner.facts["graphs"] for runner in runners] == [{2: 1}, {2: 1}]


def test_a_wrong_answer_is_no_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(module: Any, inputs: Any) -> Callable[..., Any]:
        return lambda *given: tuple(out * 1.1 for out in module(*given))

    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda _: wrong)
    with torch.inference_mode(), pytest.raises(NotMeasurable, match="logits of the model itself"):
        Runner(Small().eval(), {}, EAGERLY, CPU).ready(_batches(2))
    with pytest.raises(NotMeasurable, match="nan"):
        execution.agree(torch.full((1, 5), torch.nan), torch.ones(1, 5))
    with pytest.raises(NotMeasurable, match="shape"):
        execution.agree(torch.ones(1, 4), torch.ones(1, 5))


def test_a_model_that_is_not_compiled_is_not_called_compiled() -> None:
    class Plain(Small):
        @torch.compiler.disable  # type: ignore[untyped-decorator]
        def forward(self, clip: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(clip, scale)

    with torch.inference_mode(), pytest.raises(NotMeasurable, match="no graph"):
        Runner(Plain().eval(), {}, EAGERLY, CPU).ready(_batches(2))


def test_a_measurement_says_how_it_ran() -> None:
    found = measure(Small(), clip=CLIP, run={}, anchor=Small(), batch=2, seconds=0.2, target=0.5, execution=EAGERLY)
    assert (found.settings["compile"], found.settings["cuda_graphs"]) == ("aot_eager", False)
    assert found.settings["execution"]["subject"]["graph_breaks"] == {1: 0, 2: 0}
    assert set(found.settings["execution"]["anchor"]["compile_s"]) == {1, 2}


def test_everything_is_compiled_before_anything_is_watched_or_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []

    def noted(event: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            events.append(event)
            return function(*given, **named)

        return call

    monkeypatch.setattr(Runner, "_backend", noted("compiled", Runner._backend))
    monkeypatch.setattr(validity, "look", noted("watched", validity.look))
    monkeypatch.setattr(clock, "time_interleaved", noted("timed", clock.time_interleaved))
    measure(Small(), clip=CLIP, run={}, anchor=Small(), batch=2, seconds=0.2, target=0.5, execution=EAGERLY)
    assert events.count("compiled") == 4, "two models, two batches"
    assert events.index("watched") >= 4 and events.index("timed") >= 5


def test_what_this_machine_can_not_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="need a CUDA device"):
        measure(Small(), clip=CLIP, run={}, execution=Execution(cuda_graphs=True))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    for device, says in ((CPU, r"no C\+\+ compiler"), (torch.device("cuda"), "no triton|no C compiler")):
        with pytest.raises(UnfitMachine, match=says):
            execution.check(Execution(backend="inductor"), device)
    execution.check(execution.EAGER, CPU)


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
def test_inductor_itself() -> None:
    model = Small().eval()
    runner = Runner(model, {}, Execution(backend="inductor"), CPU)
    with torch.inference_mode():
        forward, clips = runner.ready(_batches(2)), _batches(2)[2]
        torch.testing.assert_close(forward(clips), model(clips))
    assert runner.facts["graph_breaks"] == {2: 0}
