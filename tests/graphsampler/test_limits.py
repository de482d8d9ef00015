"""What is at the edge, or beyond it: it runs and gives finite logits, or is refused in one line that says what to do."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from vitgs.errors import UsageError
from vitgs.graphsampler.explain import explain
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.stream import Streamer, stream
from vitgs.spec import Clip

SETTINGS: list[dict[str, Any]] = [
    {},
    {"readout": "attention"},
    {"attention": "joint"},
    {"attention": "joint", "readout": "attention"},
    {"decision": "dense"},
    {"place": "between"},
    {"select": "frame", "glance": "patch"},
    {"select": "token"},
    {"select": "random", "utility": "none"},
    {"select": "uniform"},
    {"merge": "tome", "attention": "joint"},
    {"diversity": 0.5},
]


def clip(frames: int = 4, height: int = 32, width: int = 32) -> Clip:
    return Clip(frames=frames, height=height, width=width, classes=6)


def build(of: Clip, **knobs: Any) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("test", of, style="digits", **knobs)
    assert isinstance(model, GraphSampler)
    return model.eval()


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
@pytest.mark.parametrize(
    ("of", "extra", "run"),
    [
        pytest.param(clip(), {"k": 4096}, {}, id="k above the number of nodes"),
        pytest.param(clip(frames=1), {}, {}, id="one frame"),
        pytest.param(clip(height=8, width=8), {}, {}, id="one token a frame"),
        pytest.param(clip(frames=1, height=8, width=8), {}, {}, id="one token"),
        pytest.param(clip(), {"budget": 0.001}, {}, id="less than a token kept"),
        pytest.param(clip(), {}, {"budget": 0.001}, id="less than a token kept at run"),
        pytest.param(clip(frames=5), {}, {"budget": 0.3}, id="an odd number of frames"),
        pytest.param(clip(frames=3, height=24, width=40), {}, {"budget": 0.3}, id="an odd grid, not square"),
    ],
)
def test_it_runs_at_the_edge_and_trains_there(of: Clip, extra: dict[str, Any], run: dict[str, Any], knobs: dict[str, Any]) -> None:
    model = build(of, **knobs, **extra)
    seen = torch.randn(2, *of.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(seen, **run)
    assert logits.shape == (2, 6) and logits.isfinite().all()
    torch.autograd.backward(model.train()(seen, **run).sum())
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert grads and all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize(("height", "width"), [(225, 225), (32, 33), (4, 4)])
def test_a_size_that_is_not_a_multiple_of_the_patch_is_refused(height: int, width: int) -> None:
    with pytest.raises(UsageError, match="multiples of the patch"):
        build(clip(height=height, width=width))


def test_no_frames_are_refused() -> None:
    with pytest.raises(UsageError, match="frames must be at least 1"):
        clip(frames=0)


WRONG: dict[str, tuple[object, str]] = {
    "clips of different lengths": ([torch.zeros(4, 3, 32, 32), torch.zeros(5, 3, 32, 32)], "given: a list of 2;"),
    "longer": (torch.zeros(2, 5, 3, 32, 32), "given: 2x5x3x32x32 of torch.float32;"),
    "shorter": (torch.zeros(2, 3, 3, 32, 32), "given: 2x3x3x32x32"),
    "no batch": (torch.zeros(4, 3, 32, 32), "given: 4x3x32x32"),
    "channels first": (torch.zeros(2, 3, 4, 32, 32), "given: 2x3x4x32x32"),
    "another size": (torch.zeros(2, 4, 3, 64, 64), "given: 2x4x3x64x64"),
    "no clip": (torch.zeros(0, 4, 3, 32, 32), "given: 0x4x3x32x32"),
    "bytes": (torch.zeros(2, 4, 3, 32, 32, dtype=torch.uint8), "of torch.uint8"),
    "nothing": (None, "given: NoneType;"),
}


@pytest.mark.parametrize("knobs", [{}, {"select": "random", "utility": "none"}], ids=str)
@pytest.mark.parametrize("wrong", WRONG)
def test_a_batch_of_another_shape_is_refused_in_one_line(wrong: str, knobs: dict[str, Any]) -> None:
    given, says = WRONG[wrong]
    with pytest.raises(UsageError, match="one tensor of floats, Bx4x3x32x32 for this model") as caught:
        build(clip(), **knobs)(given)
    assert says in str(caught.value) and "\n" not in str(caught.value) and "streamed" in str(caught.value)


def test_streaming_and_explaining_refuse_it_too() -> None:
    model = build(clip())
    with pytest.raises(UsageError, match="given: 1x2x3x64x64"):
        Streamer(model, 2).step(None, torch.zeros(1, 2, 3, 64, 64))
    with pytest.raises(UsageError, match="given: 1x5x3x32x32"):
        explain(model, torch.zeros(5, 3, 32, 32))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        pytest.param([torch.zeros(2, 3, 32, 32)] * 2, "given: a list of 2;", id="a list"),
        pytest.param(None, "given: NoneType;", id="nothing"),
        pytest.param(torch.zeros(4), "given: (1x)?4 of torch.float32;", id="one dimension"),
    ],
)
def test_what_is_no_clip_at_all_is_refused_there_in_the_same_line(wrong: Any, says: str) -> None:
    model = build(clip())
    for use in (partial(Streamer(model, 2).step, None), partial(stream, model, chunk_frames=2), partial(explain, model)):
        with pytest.raises(UsageError, match=f"one tensor of floats.*{says}") as caught:
            use(wrong)
        assert "\n" not in str(caught.value)


def test_a_compiled_model_says_the_same() -> None:
    model = build(clip())
    compiled = torch.compile(model, backend="eager")
    good: Tensor = torch.zeros(2, 4, 3, 32, 32)
    try:
        with torch.no_grad():
            torch.testing.assert_close(compiled(good), model(good))
            with pytest.raises(UsageError, match="given: 2x5x3x32x32"):
                compiled(torch.zeros(2, 5, 3, 32, 32))
    finally:
        torch._dynamo.reset()  # the way by which an error leaves a graph would be taken by the next test too
