"""The method is one graph for `torch.compile`: no break, by default or with a bank, in training and at test time; the same numbers as eager."""

from __future__ import annotations

import pytest
import torch

from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.spec import Clip

SETTINGS: list[dict[str, object]] = [
    {},
    {"attention": "frame", "readout": "class"},
    {"attention": "frame", "place": "between"},
    {"bank": 4, "cell": "rnn"},
]


@pytest.fixture(params=SETTINGS, ids=str)
def model(request: pytest.FixtureRequest) -> GraphSampler:
    torch.manual_seed(0)
    model = SYSTEM.build("test", Clip(frames=4, height=32, width=32, classes=6), style="digits", **request.param)
    assert isinstance(model, GraphSampler)
    if model.bank is not None:
        torch.nn.init.normal_(model.bank.output.weight)
    return model


def test_no_graph_break_at_test_time(model: GraphSampler) -> None:
    clip = torch.randn(2, 4, 3, 32, 32)
    whole = torch.compile(model.eval(), backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(whole(clip, budget=0.25), model(clip, budget=0.25))


def test_no_graph_break_in_training(model: GraphSampler) -> None:
    whole = torch.compile(model.train().logits_and_utility, backend="eager", fullgraph=True)
    logits, utility = whole(torch.randn(2, 4, 3, 32, 32), 0.25, 1.0)
    assert utility is not None
    torch.autograd.backward(logits.sum() + utility.sum())
    assert model.memory is not None and model.memory.value.weight.grad is not None
