"""The method in other precisions than float32: halves, double, and autocast with its gradients; the model, its stream and its explanation."""

from __future__ import annotations

import pytest
import torch

from vitgs.graphsampler.explain import explain
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.stream import stream
from vitgs.spec import Clip

CLIP = Clip(frames=4, height=32, width=32, classes=6)
SETTINGS: list[dict[str, object]] = [
    {},
    {"readout": "class", "message": "mean"},
    {"decision": "dense", "attention": "frame", "glance": "patch", "window": 2},
    {"bank": 4, "cell": "rnn"},
    {"attention": "frame"},
    {"attention": "frame", "readout": "class", "select": "random"},
]


def build(**knobs: object) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **knobs)
    assert isinstance(model, GraphSampler) and model.memory is not None
    torch.nn.init.normal_(model.memory.read.weight, std=0.1)
    if model.bank is not None:
        torch.nn.init.normal_(model.bank.output.weight, std=0.1)
    return model


def video() -> torch.Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_model_runs_in_the_precision_of_its_weights(dtype: torch.dtype, knobs: dict[str, object]) -> None:
    model, clip = build(**knobs).to(dtype).eval(), video().to(dtype)
    with torch.no_grad():
        logits = [model(clip), stream(model, clip, 2)]
    assert all(one.dtype == dtype and torch.isfinite(one).all() for one in logits)
    assert explain(model, clip[0]).logits_C.dtype == dtype


def test_float64_agrees_with_float32() -> None:
    model = build().eval()
    with torch.no_grad():
        single = model(video())
        torch.testing.assert_close(model.double()(video().double()).float(), single, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
def test_autocast_gives_logits_and_gradients(knobs: dict[str, object]) -> None:
    model = build(**knobs).train()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(video())
    torch.autograd.backward(logits.float().sum())
    missing = [name for name, p in model.named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert all(name.startswith("utility.") or name == "vit.embed.class_token" for name in missing), missing
    assert model.memory is not None and float(model.memory.hidden.weight.grad.abs().max()) > 0  # type: ignore[union-attr]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(stream(model.eval(), video(), 2)).all()
