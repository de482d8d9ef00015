"""Edges against a slow literal search, and what message passing must and must not depend on."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F

from vitgs.graphsampler import edges as edges_module
from vitgs.graphsampler import messages
from vitgs.graphsampler.edges import SEARCH_WIDTH, blocks, build_edges, nearness, neighbours, search_basis
from vitgs.graphsampler.graph import Graph, GraphLayer
from vitgs.graphsampler.messages import pass_messages
from vitgs.graphsampler.relative import MOST_STEPS, Grid, looked_up, relative_features


def nodes(frames: int, tokens: int, width: int = 16, batch: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    time = torch.arange(frames).repeat_interleave(tokens).float()
    place = torch.randint(0, 4, (batch, frames * tokens, 2)).float()
    return torch.randn(batch, frames * tokens, width), torch.cat([time.expand(batch, -1).unsqueeze(-1), place], dim=2)


def literal_neighbours(appearance_SD: torch.Tensor, position_S3: torch.Tensor, node: int, k: int, chunk: int, window: int) -> set[int]:
    unit = F.normalize(appearance_SD - appearance_SD.mean(0), dim=-1)
    own = node // chunk
    allowed = [j for j in range(len(unit)) if (window == 0 or abs(j // chunk - own) <= window) and position_S3[j, 0] != position_S3[node, 0]]
    ranked = sorted(allowed, key=lambda j: -float(unit[node] @ unit[j]))
    return set(ranked[:k])


def test_edges_equal_a_literal_search_with_and_without_windows() -> None:
    appearance, position = nodes(frames=7, tokens=3)
    for window in (0, 1, 2, 50):
        edges = build_edges(appearance, position, k=4, temporal=0, chunk=3, window=window)
        for node in range(21):
            found = {int(j) for j, ok in zip(edges.node_BSE[1, node, 1:], edges.valid_BSE[1, node, 1:], strict=True) if ok}
            assert found == literal_neighbours(appearance[1], position[1], node, 4, 3, window), (window, node)


def test_chunks_that_do_not_fill_up_lose_no_node() -> None:
    appearance, position = nodes(frames=5, tokens=2)
    edges = build_edges(appearance, position, k=3, temporal=1, chunk=4, window=1)
    assert edges.node_BSE.shape[:2] == (2, 10)
    assert int(edges.node_BSE.max()) < 10 and int(edges.node_BSE.min()) >= 0


def test_blocks_hold_every_node_once_and_see_all_that_its_chunk_may_see() -> None:
    for count, chunk, window, most, group in ((21, 3, 2, 1000, 2), (21, 3, 2, 4, 1), (10, 4, 1, 3, 1), (10, 4, 0, 7, 1), (128 * 5, 5, 8, 1000, 8)):
        found = list(blocks(count, chunk, window, most, group))
        assert [node for block in found for node in range(block.first, block.last)] == list(range(count))
        for block in found:
            assert block.last - block.first <= most
            for node in range(block.first, block.last):
                wanted = range(count) if not window else range((node // chunk - window) * chunk, (node // chunk + window + 1) * chunk)
                assert block.low <= max(wanted.start, 0) and block.high >= min(wanted.stop, count)
            assert not window or block.high - block.low <= (2 * window + group) * chunk


@pytest.mark.parametrize("window", [0, 1, 2])
@pytest.mark.parametrize("message", ["attention", "mean"])
def test_small_blocks_change_no_edge_and_no_message(window: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    appearance, position = nodes(frames=7, tokens=3)
    graph = Graph(16, 16, 2, message=message, eps=1e-6).double()
    bias = torch.randn(2, 21).double()
    results = []
    for cached in (2**20, 150):
        monkeypatch.setattr(edges_module, "CACHED", cached)
        x = appearance.double().requires_grad_()
        edges = build_edges(x, position.double(), k=4, temporal=2, chunk=3, window=window)
        out = graph(x, edges, bias)
        (gradient,) = torch.autograd.grad(out.square().sum(), x)
        results.append((edges.node_BSE, edges.valid_BSE, edges.similarity_BSE, edges.relative_BSER, out, gradient))
    for whole, blocked in zip(*results, strict=True):
        assert whole.dtype == blocked.dtype and torch.allclose(whole.double(), blocked.double(), atol=1e-12)


@pytest.mark.parametrize("message", ["attention", "mean"])
def test_without_gradients_rounds_go_clip_by_clip_and_give_the_same(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    appearance, position = nodes(frames=7, tokens=3)
    graph = Graph(16, 16, 2, message=message, eps=1e-6).double()
    edges = build_edges(appearance, position, k=4, temporal=2, chunk=3, window=0)
    x, bias = torch.randn(2, 21, 16).double(), torch.randn(2, 21).double()
    edges = replace(edges, similarity_BSE=edges.similarity_BSE.double(), relative_BSER=edges.relative_BSER.double())
    at_once = graph(x, edges, bias)
    monkeypatch.setattr(edges_module, "CACHED", 160)
    counts: list[int] = []
    graph.layers[0].get_submodule("feed").register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[:2].numel()))
    with torch.no_grad():
        torch.testing.assert_close(graph(x, edges, bias), at_once)
    assert counts == [21, 21]


def test_a_node_is_its_own_first_neighbour_and_never_meets_its_own_frame() -> None:
    appearance, position = nodes(frames=4, tokens=4)
    edges = build_edges(appearance, position, k=5, temporal=2, chunk=4, window=2)
    assert (edges.node_BSE[..., 0] == torch.arange(16)).all()
    other = neighbours(position, edges.node_BSE)[..., 1:, 0]
    assert (other != position[..., :1])[edges.valid_BSE[..., 1:]].all()


def test_one_kept_frame_leaves_only_the_node_itself() -> None:
    appearance, position = nodes(frames=1, tokens=5)
    edges = build_edges(appearance, position, k=3, temporal=1, chunk=5, window=1)
    assert not edges.valid_BSE[..., 1:].any()
    graph = Graph(16, 16, 1, message="attention", eps=1e-6)
    assert torch.isfinite(graph(appearance, edges, None)).all()


def test_no_neighbour_counts_twice() -> None:
    appearance, position = nodes(frames=3, tokens=2)
    edges = build_edges(appearance, position, k=4, temporal=4, chunk=2, window=2)
    for row, ok in zip(edges.node_BSE.flatten(0, 1), edges.valid_BSE.flatten(0, 1), strict=True):
        kept = row[ok].tolist()
        assert len(kept) == len(set(kept))


def test_relative_features_carry_velocity_in_units_of_order_one() -> None:
    here = torch.tensor([[[0.0, 0.0, 0.0]]])
    there = torch.tensor([[[[2.0, 0.5, 0.0]]]])
    dt, dy, dx, vy, vx, squared = relative_features(here, there)[0, 0, 0].sinh().tolist()
    assert (round(dt, 5), round(dy, 5), round(dx, 5), round(vy, 5), round(vx, 5), round(squared, 5)) == (2.0, 1.0, 0.0, 3.0, 0.0, 0.25)


@torch.no_grad()
def test_relative_features_from_a_table_are_the_same_to_the_last_bit() -> None:
    _, position = nodes(frames=6, tokens=11, batch=2)
    position, grid = position.round(), Grid(6, *(int(size) + 1 for size in position.round().amax(dim=(0, 1))[1:]))
    node = torch.randint(0, position.shape[1], (*position.shape[:2], 5))
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        found = looked_up(position.to(dtype), node, grid)
        assert found is not None
        assert torch.equal(found, relative_features(position.to(dtype), neighbours(position.to(dtype), node)))
    assert looked_up(position, node, Grid(MOST_STEPS, 1, 1)) is None
    with torch.enable_grad():
        assert looked_up(position, node, grid) is None


def test_relative_features_are_squashed_by_asinh_whatever_their_size_and_sign() -> None:
    x = torch.cat([sign * torch.logspace(-30, 8, 400) for sign in (-1, 1)] + [torch.zeros(1)])
    here, there = torch.zeros(1, 1, 3), torch.stack([x, torch.zeros_like(x), torch.zeros_like(x)], dim=1)[None, None]
    torch.testing.assert_close(relative_features(here, there)[0, 0, :, 0].double(), x.double().asinh(), rtol=3e-7, atol=0)


@pytest.mark.parametrize("window", [0, 1])
@pytest.mark.parametrize("message", ["attention", "mean"])
def test_all_forms_of_a_round_give_the_same(message: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By pairs where it is learned or little, else by bags or blocks, also where places have no neighbour."""
    appearance, position = nodes(frames=7, tokens=3)
    edges = build_edges(appearance, position, k=4, temporal=2, chunk=3, window=window)
    assert not edges.valid_BSE.all()
    graph = Graph(16, 12, 1, message=message, eps=1e-6)
    logit_BSEh = graph.logits(edges, torch.randn(2, 21))[0]
    layer = graph.layers[0]
    assert isinstance(layer, GraphLayer)
    query, said = layer.say(appearance)
    learned = pass_messages(said, edges, logit_BSEh, query)
    for cached, readable, few in product((2**20, 100), (True, False), (0, messages.FEW_PAIRS)):
        monkeypatch.setattr(edges_module, "CACHED", cached)
        monkeypatch.setattr(messages, "FEW_PAIRS", few)
        monkeypatch.setattr(messages, "may_read", lambda _, readable=readable: readable)
        with torch.no_grad():
            for got, expected in zip(pass_messages(said, edges, logit_BSEh, query), learned, strict=True):
                torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("message", ["attention", "mean"])
def test_few_nodes_learn_the_same_by_pairs_as_many_by_blocks(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    appearance, position = nodes(frames=7, tokens=3)
    edges = build_edges(appearance, position, k=4, temporal=2, chunk=3, window=1)
    edges = replace(edges, similarity_BSE=edges.similarity_BSE.double(), relative_BSER=edges.relative_BSER.double())
    graph = Graph(16, 12, 2, message=message, eps=1e-6).double()
    bias = torch.randn(2, 21).double().requires_grad_()
    gradients, by_blocks = [], messages._by_blocks
    for few in (True, False):
        monkeypatch.setattr(messages, "pairs_take_less", lambda *_, few=few: few)
        monkeypatch.setattr(messages, "_by_blocks", None if few else by_blocks)
        out = graph(appearance.double(), edges, bias)
        gradients.append(torch.autograd.grad(out.square().sum(), [bias, *graph.parameters()]))
    for pairs, blocked in zip(*gradients, strict=True):
        torch.testing.assert_close(pairs, blocked, atol=1e-10, rtol=1e-8)


def test_messages_come_from_neighbours_alone() -> None:
    appearance, position = nodes(frames=6, tokens=2)
    edges = build_edges(appearance, position, k=2, temporal=1, chunk=2, window=1)
    for message in ("attention", "mean"):
        graph = Graph(16, 16, 1, message=message, eps=1e-6)
        x = appearance.clone().requires_grad_()
        graph(x, edges, None)[0, 0].sum().backward()
        assert x.grad is not None
        heard = set(x.grad[0].abs().sum(-1).nonzero().flatten().tolist())
        assert heard <= {int(j) for j, ok in zip(edges.node_BSE[0, 0], edges.valid_BSE[0, 0], strict=True) if ok}


@pytest.mark.parametrize("tokens", [1, 3])
@pytest.mark.parametrize("window", [0, 6, 100])
def test_with_all_as_neighbours_messages_are_attention_over_all_nodes(window: int, tokens: int) -> None:
    """k of the node count or more, a window of all frames: fused attention over itself and all nodes of other frames, edge logits as its mask."""
    appearance, position = nodes(frames=6, tokens=tokens)
    batch, count, heads, width = 2, 6 * tokens, 4, 16
    edges = build_edges(appearance, position, k=count + 7, temporal=2, chunk=tokens, window=window)
    query, key, value = torch.randn(3, batch, count, width).unbind(0)
    logit_BSSh = torch.randn(batch, count, count, heads)
    at_BSE = edges.node_BSE
    logit_BSEh = logit_BSSh.gather(2, at_BSE.unsqueeze(-1).expand(-1, -1, -1, heads)).masked_fill(~edges.valid_BSE.unsqueeze(-1), -torch.inf)
    message, source = pass_messages(torch.cat([key, value], dim=2), edges, logit_BSEh, query)
    frame_S = position[0, :, 0]
    open_SS = (frame_S[:, None] != frame_S) | torch.eye(count, dtype=torch.bool)
    assert edges.valid_BSE.sum(dim=2).eq(open_SS.sum(dim=1)).all()
    q, k, v = (torch.unflatten(part, 2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    mask_BhSS = logit_BSSh.permute(0, 3, 1, 2).masked_fill(~open_SS, -torch.inf)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BhSS).transpose(1, 2).flatten(2)
    torch.testing.assert_close(message, expected, atol=1e-5, rtol=1e-5)
    weight_BhSS = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + mask_BhSS).softmax(dim=3)
    relative_BSSR = relative_features(position, position.unsqueeze(1).expand(-1, count, -1, -1))
    averaged = torch.einsum("bhsj,bsjr->bshr", weight_BhSS, relative_BSSR).flatten(2)
    torch.testing.assert_close(source, averaged, atol=1e-4, rtol=1e-4)
    if tokens == 1:
        assert open_SS.all()


def test_a_neighbour_of_no_utility_is_not_heard() -> None:
    appearance, position = nodes(frames=2, tokens=1)
    edges = build_edges(appearance, position, k=1, temporal=0, chunk=1, window=1)
    graph = Graph(16, 16, 1, message="attention", eps=1e-6)
    bias = torch.tensor([[0.0, -1e4], [0.0, -1e4]])
    changed = appearance.clone()
    changed[:, 1] += torch.randn(16)
    assert torch.allclose(graph(appearance, edges, bias)[:, 0], graph(changed, edges, bias)[:, 0], atol=1e-6)


def test_a_later_clip_has_the_same_edges() -> None:
    appearance, position = nodes(frames=7, tokens=9, batch=3)
    position[..., 1:] /= 2
    for window in (0, 2):
        for last in (9, 5):  # whether the last chunk fills up, and where the nodes' mean lies
            count = 54 + last
            first = build_edges(appearance[:, :count], position[:, :count], k=3, temporal=2, chunk=9, window=window)
            for shift in (1.0, 7.0, 1001.0):
                later = position[:, :count] + torch.tensor([shift, 0.0, 0.0])
                edges = build_edges(appearance[:, :count], later, k=3, temporal=2, chunk=9, window=window)
                assert torch.equal(edges.node_BSE, first.node_BSE) and torch.equal(edges.valid_BSE, first.valid_BSE), (window, last, shift)


def test_equally_near_nodes_have_equal_nearness() -> None:
    _, position = nodes(frames=6, tokens=11, batch=2)
    exact = (position.unsqueeze(2) - position.unsqueeze(1)).double().mul(torch.tensor([4.0, 1.0, 1.0])).square().sum(dim=-1)
    queries = position + torch.tensor([90.0, 0.0, 0.0])
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        near = nearness(queries.to(dtype), slice(None)).double()
        assert torch.equal(near - near.diagonal(dim1=1, dim2=2).unsqueeze(2), -exact)
    with torch.autocast("cpu", torch.bfloat16):
        near = nearness(queries, slice(None)).double()
    assert torch.equal(near - near.diagonal(dim1=1, dim2=2).unsqueeze(2), -exact)


def test_a_clip_that_fills_a_block_goes_alone_and_finds_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    appearance, position = nodes(frames=12, tokens=5, batch=3)
    for window in (0, 2):
        results = []
        for cached in (2**20, 600):
            monkeypatch.setattr(edges_module, "CACHED", cached)
            results.append(build_edges(appearance, position, k=4, temporal=2, chunk=5, window=window))
        whole, alone = results
        assert torch.equal(whole.node_BSE, alone.node_BSE) and torch.equal(whole.valid_BSE, alone.valid_BSE)
        torch.testing.assert_close(whole.similarity_BSE, alone.similarity_BSE)


def test_wide_appearance_is_compared_in_few_directions_that_keep_lengths_and_near_neighbours() -> None:
    basis = search_basis(384)
    assert basis.shape == (384, SEARCH_WIDTH) and torch.equal(basis, search_basis(384))
    torch.testing.assert_close(basis.T @ basis, torch.eye(SEARCH_WIDTH), atol=1e-5, rtol=0)
    # Groups of nodes that look alike, one of each in a frame.
    torch.manual_seed(0)
    appearance = (torch.randn(1, 1, 30, 384) + 0.3 * torch.randn(1, 8, 30, 384)).flatten(1, 2)
    position = torch.cat([torch.arange(8.0).repeat_interleave(30)[None, :, None], torch.zeros(1, 240, 2)], dim=2)
    found = [build_edges(value, position, k=6, temporal=0, chunk=30, window=0).node_BSE for value in (appearance, appearance @ basis)]
    same_group = [(node[..., 1:] % 30 == torch.arange(240)[:, None] % 30).float().mean().item() for node in found]
    assert same_group[0] == 1.0 and same_group[1] > 0.99


def test_edges_are_counted_without_data() -> None:
    # Costs are counted on the meta device, which has no autocast to switch off.
    position = torch.zeros(1, 6, 3, device="meta")
    edges = build_edges(torch.zeros(1, 6, 4, device="meta"), position, k=2, temporal=1, chunk=2, window=1)
    assert edges.node_BSE.shape == (1, 6, 4)
