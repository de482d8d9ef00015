"""The explanation is the model's own: the same logits, the same choice, the weights that its parts use, the writes that its memory makes."""

from __future__ import annotations

import pytest
import torch

from vitgs.backbone.tokens import Tokens
from vitgs.errors import UsageError
from vitgs.graphsampler.edges import build_edges, neighbours
from vitgs.graphsampler.explain import KINDS, Explanation, edge_kinds, explain, layer_weights, memory_trace
from vitgs.graphsampler.graph import GraphLayer
from vitgs.graphsampler.memory import MemoryBank, pool_by_frame
from vitgs.graphsampler.model import SYSTEM, GraphSampler
from vitgs.graphsampler.select import choose
from vitgs.spec import Clip

CLIP = Clip(frames=4, height=32, width=32, classes=6)


def build(**knobs: object) -> GraphSampler:
    """A model whose zero-initialised parts are exercised too."""
    torch.manual_seed(0)
    model = SYSTEM.build("test", CLIP, style="digits", **({"layers": 2} | knobs))
    assert isinstance(model, GraphSampler)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def video() -> torch.Tensor:
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


SETTINGS: list[dict[str, object]] = [
    {},
    {"glance": "patch", "readout": "class"},
    {"decision": "dense", "attention": "frame", "readout": "class"},
    {"attention": "frame", "readout": "class"},
    {"attention": "frame", "select": "random", "utility": "none"},
    {"decision": "dense", "attention": "frame", "readout": "mean"},
    {"select": "frame", "message": "mean"},
    {"select": "token", "window": 0},
    {"select": "random", "utility": "none"},
    {"select": "uniform", "utility": "none", "k": 16},
    {"layers": 0, "memory": 4},
    {"bank": 4, "cell": "rnn"},
    {"bank": 4, "memory": 0, "utility": "none"},
    {"layers": 1, "memory": 0},
    {"layers": 0, "memory": 0, "select": "none", "utility": "none"},
]


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
@pytest.mark.parametrize("budget", [None, 1.0, 0.3, 0.02])
def test_logits_and_choice_are_the_models_own(knobs: dict[str, object], budget: float | None) -> None:
    model, clip = build(**knobs), video()
    found = explain(model, clip, budget)
    with torch.no_grad():
        logits, utility = model.logits_and_utility(clip[None], budget)
    torch.testing.assert_close(found.logits_C, logits[0], atol=1e-6, rtol=0)
    assert found.budget == (model.budget if budget is None else budget)
    scored = torch.zeros(1, *CLIP.shape[:1], model.tokens) if utility is None else utility
    index = choose(scored, select=model.select, decision=model.decision, budget=found.budget, noise=0.0, fixed=True)
    assert torch.equal(found.index_S, index[0])
    assert (found.utility_TN is None) == (utility is None)
    if utility is not None:
        assert found.utility_TN is not None
        torch.testing.assert_close(found.utility_TN, utility[0].sigmoid(), atol=1e-6, rtol=0)
    assert (found.graph is None, found.memory is None) == (model.graph is None, model.memory is None)
    assert found.memory is None or found.memory.gated == (knobs.get("cell") != "rnn")
    assert int(found.kept_T.sum()) == len(found.position_S3) == len(set(found.best_nodes(99)))


def test_a_model_in_training_is_explained_as_at_test_and_left_in_training() -> None:
    model = build(select="random", utility="none").train()
    first, second = explain(model, video()), explain(model, video())
    assert model.training
    assert torch.equal(first.index_S, second.index_S)
    assert not any(p.grad_fn for p in (first.logits_C, second.logits_C))


@pytest.mark.parametrize("message", ["attention", "mean"])
def test_a_round_sums_its_messages_by_these_weights(message: str) -> None:
    model = build(message=message)
    torch.manual_seed(2)
    x, position = (
        torch.randn(2, 12, 32),
        torch.stack([torch.arange(12) // 3, torch.arange(12) % 3, torch.arange(12) % 2], dim=-1).float().expand(2, -1, -1),
    )
    edges = build_edges(x, position, k=3, temporal=2, chunk=3, window=1)
    assert model.graph is not None
    layer = model.graph.layers[0]
    assert isinstance(layer, GraphLayer)
    logit = model.graph.logits(edges, torch.randn(2, 12))[0]
    with torch.no_grad():
        weight = layer_weights(layer, x, edges, logit)
        value = neighbours(layer.qkv(layer.norm1(x)), edges.node_BSE)[..., -layer.graph_width :]
        message_ = (torch.unflatten(value, -1, (layer.heads, -1)) * weight.unsqueeze(-1)).sum(dim=2).flatten(2)
        relative = torch.einsum("bseh,bser->bshr", weight, edges.relative_BSER).flatten(2)
        summed = x + layer.output(message_ + layer.relative_value(relative))
        torch.testing.assert_close(layer(x, edges, logit), summed + layer.feed(layer.norm2(summed)), atol=1e-5, rtol=1e-5)
    assert float(weight[~edges.valid_BSE].sum()) == 0
    torch.testing.assert_close(weight.sum(dim=2), torch.ones_like(weight[:, :, 0]))


@pytest.mark.parametrize(("frames", "k"), [(1, 2), (2, 3), (4, 1), (4, 2), (4, 9), (6, 3)])
def test_kinds_of_edges(frames: int, k: int) -> None:
    torch.manual_seed(0)
    position = torch.stack([torch.arange(frames).repeat_interleave(2), torch.zeros(2 * frames), torch.arange(2 * frames) % 2], dim=-1).float()[None]
    appearance = torch.randn(1, 2 * frames, 8)
    edges = build_edges(appearance, position, k=k, temporal=2, chunk=2, window=8)
    kind = edge_kinds(edges, k, 2)[0]
    assert torch.equal(kind == KINDS.index("none"), ~edges.valid_BSE[0])
    unit = torch.nn.functional.normalize(appearance - appearance.mean(dim=1, keepdim=True), dim=-1)[0]
    for node in range(2 * frames):
        other = [j for j in range(2 * frames) if position[0, j, 0] != position[0, node, 0]]
        like = sorted(other, key=lambda j: -float(unit[node] @ unit[j]))[:k]
        near = sorted(other, key=lambda j: float(((position[0, j] - position[0, node]) * torch.tensor([4.0, 1.0, 1.0])).square().sum()))
        found = {KINDS[int(kind[node, e])]: set[int]() for e in range(kind.shape[1])}
        for e in range(kind.shape[1]):
            found[KINDS[int(kind[node, e])]].add(int(edges.node_BSE[0, node, e]))
        assert found["self"] == {node}
        assert found.get("similar", set()) | found.get("both", set()) == set(like)
        assert len(found.get("temporal", set()) | found.get("both", set())) == min(2, len(near))
        assert not found.get("temporal", set()) & set(like)


def test_a_shut_gate_writes_nothing_and_an_open_one_all() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 2, eps=1e-6).requires_grad_(False)
    nodes = Tokens(x_BND=torch.randn(1, 5, 8), position_BN3=torch.tensor([[[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [3, 0, 0], [3, 1, 1]]]))
    for bias, opened in ((50.0, 0.0), (-50.0, 1.0)):
        bank.hidden.bias[6:12] = bias
        found = memory_trace(bank, nodes, 4)
        torch.testing.assert_close(found.gate_TM, torch.tensor([1.0, 1, 0, 1])[:, None].expand(-1, 2) * opened)
        assert bool((found.change_TM > 1e-3).any()) == (opened > 0)
        assert found.change_TM[2].tolist() == [0, 0]


def test_shares_sum_to_the_message_of_their_frame() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(8, 6, 3, eps=1e-6).requires_grad_(False)
    bias = torch.randn(1, 5)
    nodes = Tokens(x_BND=torch.randn(1, 5, 8), position_BN3=torch.tensor([[[0.0, 0, 0], [0, 0, 1], [1, 0, 0], [3, 0, 0], [3, 1, 1]]]), bias_BN=bias)
    share = memory_trace(bank, nodes, 4).share_SM
    h = bank.norm(nodes.x_BND)
    frame = nodes.position_BN3[..., 0].long()
    message, _ = pool_by_frame(bank.value(h), bank.write(h) + bias[..., None], frame, 4)
    for t in range(4):
        torch.testing.assert_close(message[0, t], share[frame[0] == t].T @ bank.value(h)[0, frame[0] == t], atol=1e-6, rtol=1e-5)


def test_the_best_nodes_are_the_best_of_their_frames_first() -> None:
    utility = torch.tensor([[0.9, 0.8], [0.7, 0.1], [0.2, 0.3]])
    position = torch.tensor([[0, 0, 0], [0, 0, 1], [1, 0, 0], [2, 0, 1]])
    found = Explanation(grid=(3, 1, 2), budget=0.7, logits_C=torch.zeros(2), position_S3=position, utility_TN=utility, graph=None, memory=None)
    assert found.best_nodes(3) == [0, 2, 3]
    assert found.best_nodes(9) == [0, 2, 3, 1]
    torch.testing.assert_close(found.score_T, torch.tensor([1.7, 0.8, 0.5]))
    assert found.index_S.tolist() == [0, 1, 2, 5]


def test_a_budget_outside_its_range_is_refused() -> None:
    with pytest.raises(UsageError, match="budget"):
        explain(build(), video(), 1.5)
