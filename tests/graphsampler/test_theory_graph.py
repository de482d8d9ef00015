"""Matrices: with all neighbours the graph is attention over its reach; distances, products and controls on literal numbers; costs as counted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch

from tests.graphsampler.test_explain import build
from vitgs.backbone.cheap_attention import favor_attend, linformer_attend, nystrom_attend, orthogonal_directions
from vitgs.graphsampler import theory_rivals as rivals
from vitgs.graphsampler.explain import graph_weights
from vitgs.graphsampler.graph import Graph
from vitgs.graphsampler.theory import encode, look
from vitgs.graphsampler.theory_gaps import Gap, gaps, joined, own_window
from vitgs.graphsampler.theory_graph import (
    distances,
    full_attention,
    graph_mask,
    heaviest_mask,
    mask_of,
    message_passing,
    product,
    random_mask,
    restricted,
    rounds,
    softmax_attention,
)
from vitgs.measure.formula import FormulaCounter

CLIPS = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
POSITION = torch.tensor([[[0.0, 0, 0], [0, 1, 0], [1, 0, 0], [2, 0, 0], [2, 0, 1]]])


@pytest.mark.parametrize("message", ["attention", "mean"])
def test_restricted_to_the_models_edges_it_is_what_the_model_uses(message: str) -> None:
    model = build(message=message)
    scene = look(model, CLIPS, 0.5)
    found = rounds(model, scene)
    assert found is not None
    assert model.graph is not None
    passage = encode(model, scene.own())
    edges = model._edges(passage.nodes, passage.appearance_BSD, 0.5)
    with torch.no_grad():
        _, weight_lBSE = graph_weights(model.graph, passage.nodes.x_BND, edges, passage.nodes.bias_BN)
    expected = torch.zeros(2, 2, 32, 32).scatter_add_(3, edges.node_BSE.expand(2, -1, -1, -1), weight_lBSE)
    torch.testing.assert_close(restricted(found.full_lBhSS, mask_of(edges)).mean(dim=2), expected, atol=1e-5, rtol=0)
    assert (found.plain_lBhSS is None) == (message == "mean")
    torch.testing.assert_close(found.full_lBhSS.sum(dim=-1), torch.ones(2, 2, 4, 32))


def test_with_all_neighbours_nothing_is_missing_but_the_own_frame() -> None:
    found = gaps(build(), CLIPS, 0.5, torch.Generator().manual_seed(0))
    assert found is not None
    whole = [g for g in found if (g.matrix, g.k, g.window, g.logits) == ("graph", None, 0, "own")]
    by_target = {g.against: g for g in whole}
    assert max(by_target["limit"].frobenius + by_target["limit"].spectral) < 1e-6
    assert min(by_target["full"].frobenius) > 1e-3
    rest = torch.tensor(by_target["full"].mass)
    assert bool(((rest > 0) & (rest < 1)).all())


def test_a_model_without_graph_has_no_matrices_and_one_without_queries_no_rivals() -> None:
    assert gaps(build(layers=0), CLIPS, 0.5, torch.Generator()) is None
    found = gaps(build(message="mean"), CLIPS, 0.5, torch.Generator().manual_seed(0))
    assert found is not None
    assert {g.logits for g in found} == {"own"}


def test_batches_are_joined_clip_by_clip() -> None:
    parts = [gaps(build(), clip[None], 0.3, torch.Generator().manual_seed(0)) or [] for clip in CLIPS]
    both = joined(parts)
    assert {len(g.frobenius) for g in both if g.matrix != "full"} == {2}
    assert own_window(build(window=8)) == own_window(build(window=3)) == 0
    assert own_window(build(window=2)) == 2
    assert isinstance(both[0], Gap)


def test_distances_on_literal_matrices() -> None:
    exact = torch.diag(torch.tensor([3.0, 4.0]))
    frobenius, spectral = distances(torch.zeros(2, 2), exact)
    assert (float(frobenius), float(spectral)) == pytest.approx((1, 1))
    frobenius, spectral = distances(torch.diag(torch.tensor([3.0, 1.0])), exact)
    assert (float(frobenius), float(spectral)) == pytest.approx((3 / 5, 3 / 4))
    some = torch.randn(3, 6, 6, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(distances(some, torch.eye(6).expand(3, 6, 6))[1], torch.linalg.matrix_norm(some.double() - torch.eye(6), ord=2))


def test_restricted_attention_is_the_softmax_over_edges() -> None:
    logit = torch.tensor([[1.0, 2.0, 3.0]])
    found = restricted(logit.softmax(dim=-1)[None, None], torch.tensor([[[True, False, True]]]))
    torch.testing.assert_close(found[0, 0, 0, [0, 2]], logit[0, [0, 2]].softmax(dim=0))
    assert float(found[0, 0, 0, 1]) == 0


def test_rounds_multiply_the_last_on_the_left_and_begin_again() -> None:
    first, second = torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    both = torch.stack([first, second])
    torch.testing.assert_close(product(both, 1), first)
    torch.testing.assert_close(product(both, 2), torch.tensor([[0.0, 1.0], [0.5, 0.5]]))
    torch.testing.assert_close(product(both, 3), first @ second @ first)


def test_control_masks_have_as_many_edges_of_the_same_kind() -> None:
    size = torch.tensor([[2, 1, 3, 4, 2]])
    weight = torch.rand(1, 5, 5, generator=torch.Generator().manual_seed(0))
    weight[0, 0] = torch.tensor([0.0, 9.0, 0.1, 0.5, 0.2])  # node 1 is of the same frame
    heavy = heaviest_mask(weight, POSITION, size)
    assert heavy[0, 0].tolist() == [True, False, False, True, False]
    for mask in (heavy, random_mask(POSITION, size, torch.Generator().manual_seed(3))):
        assert torch.equal(mask.sum(dim=2), size)
        assert bool(mask.diagonal(dim1=1, dim2=2).all())
        same = (POSITION[0, :, None, 0] == POSITION[0, None, :, 0]) & ~torch.eye(5, dtype=torch.bool)
        assert not bool((mask & same).any())


def test_more_neighbours_and_wider_windows_only_add_edges() -> None:
    appearance = torch.randn(1, 24, 8, generator=torch.Generator().manual_seed(0))
    position = torch.stack([torch.arange(24) // 3, torch.arange(24) % 3, torch.zeros(24)], dim=-1)[None].float()
    masks = [graph_mask(appearance, position, 8, k=k, window=0) for k in (1, 2, 8, None)]
    assert all(bool((small <= large).all()) for small, large in pairwise(masks))
    assert set(masks[-1].sum(dim=2).flatten().tolist()) == {22}  # all but the two others of its frame
    narrow, wide = (graph_mask(appearance, position, 8, k=None, window=w) for w in (1, 2))
    assert bool((narrow <= wide).all()) and int(narrow.sum()) < int(wide.sum()) < int(masks[-1].sum())


def heads(nodes: int, width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    q, k = (torch.randn(2, 3, nodes, width, generator=generator) for _ in range(2))
    return q, k, torch.randn(2, nodes, generator=generator)


@pytest.mark.parametrize("name", ["linformer, segment means", "nystrom"])
def test_with_as_many_as_there_are_nodes_it_is_softmax_attention(name: str) -> None:
    q, k, bias = heads(12, 8)
    torch.testing.assert_close(rivals.RIVALS[name][0](q, k, bias, 12, torch.Generator()), softmax_attention(q, k, bias), atol=1e-5, rtol=0)


def test_random_features_come_nearer_as_they_grow() -> None:
    q, k, bias = heads(12, 8)
    exact = softmax_attention(q, k, bias)
    errors = [float(distances(rivals.performer(q, k, bias, m, torch.Generator().manual_seed(0)), exact)[0].mean()) for m in (8, 64, 2048)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.35
    found = rivals.linformer_random(q, k, bias, 4, torch.Generator().manual_seed(0))
    assert found.shape == exact.shape


def test_costs_are_those_of_the_operators() -> None:
    nodes, width, m = 20, 8, 5
    q, k, v = (torch.randn(1, 1, nodes, width) for _ in range(3))
    projection, directions = torch.randn(nodes, m), orthogonal_directions(m, width)
    calls: list[tuple[Callable[[], torch.Tensor], Callable[[int, int, int], int]]] = [
        (lambda: linformer_attend(q, k, v, projection, projection), rivals.linformer_macs),
        (lambda: favor_attend(q, k, v, directions), rivals.performer_macs),
        (lambda: nystrom_attend(q, k, v, m, rivals.NYSTROM_ITERATIONS), rivals.nystrom_macs),
    ]
    for call, macs in calls:
        with FormulaCounter() as counter:
            call()
        assert macs(nodes, width, m) == counter.macs
    assert rivals.graph_macs(20, 9, 20, 8, 16, shared_by=4) == 2 * 20 * 9 * 8 + 20 * 20 * 19 / 4
    assert rivals.full_macs(20, 8) == 2 * 20 * 20 * 8


def test_what_a_budget_of_macs_buys() -> None:
    assert rivals.affordable(rivals.linformer_macs, 4 * 20 * 8 * 7, 20, 8) == 7
    assert rivals.affordable(rivals.linformer_macs, 4 * 20 * 8 * 7 - 1, 20, 8) == 6
    assert rivals.affordable(rivals.nystrom_macs, 1, 20, 8) == 1


def test_the_calls_that_are_timed_do_the_work() -> None:
    torch.manual_seed(0)
    graph = Graph(16, 16, 2, message="attention", eps=1e-6)
    counts = []
    for frames in (16, 32, 48):
        call = message_passing(graph, frames, 4, k=3, window=2)
        with FormulaCounter() as counter:
            out = call()
        assert out.shape == (1, 4 * frames, 16)
        counts.append(counter.macs)
    # Linear but for the ends of the clip, which see less.
    assert counts[2] - counts[1] == counts[1] - counts[0]
    assert full_attention(graph, 5, 4)().shape == (1, 20, 16)
