"""Graph layers between blocks: where they stand, that they are the same layers, and that no frame is heard but through them and attention."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitgs.graphsampler.between import blocks_before
from vitgs.graphsampler.graph import GraphLayer
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.spec import Clip

CLIP = Clip(frames=4, height=32, width=32, classes=6)


def video() -> torch.Tensor:
    return torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def build(**knobs: object) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **({"layers": 2} | knobs))
    assert isinstance(model, GraphSampler)
    return model.eval()


def test_layers_stand_evenly_between_the_blocks() -> None:
    assert blocks_before(2, 12) == (4, 8)
    assert blocks_before(1, 4) == (2,)
    assert blocks_before(4, 2) == (0, 0, 1, 1)


@pytest.mark.parametrize("readout", ["class", "mean", "attention"])
@pytest.mark.parametrize("knobs", [{}, {"attention": "frame", "decision": "dense"}, {"attention": "frame"}], ids=str)
def test_silent_layers_between_the_blocks_are_no_layers(readout: str, knobs: dict[str, object]) -> None:
    between, without = build(place="between", readout=readout, **knobs), build(layers=0, readout=readout, **knobs)
    without.load_state_dict(between.state_dict(), strict=False)
    assert between.graph is not None
    with torch.no_grad():
        changed = between(video(), budget=0.5)
        for layer in between.graph.layers:
            assert isinstance(layer, GraphLayer) and isinstance(layer.feed[2], nn.Linear)
            for last in (layer.output, layer.feed[2]):
                nn.init.zeros_(last.weight)
                nn.init.zeros_(last.bias)
        torch.testing.assert_close(between(video(), budget=0.5), without(video(), budget=0.5), atol=1e-6, rtol=1e-5)
        assert not torch.allclose(changed, without(video(), budget=0.5), atol=1e-4)


@pytest.mark.parametrize("knobs", [{}, {"readout": "class", "attention": "frame", "decision": "dense", "memory": 0}, {"attention": "frame"}], ids=str)
def test_every_layer_learns(knobs: dict[str, object]) -> None:
    behind, model = build(**knobs), build(place="between", **knobs)
    assert model.state_dict().keys() == behind.state_dict().keys() and model.graph is not None
    torch.autograd.backward(model.train()(video(), budget=0.5).sum())
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.graph.parameters())
