"""Merging against the slow loop that the paper describes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitgs.backbone.block import Block
from vitgs.backbone.sizes import size, style
from vitgs.backbone.tokens import Tokens
from vitgs.reduction.merging import merge, mergeable, merging_block


def tokens(count: int, prefix: int, *, sized: bool) -> Tokens:
    return Tokens(
        x_BND=torch.randn(2, count, 6),
        position_BN3=torch.rand(2, count, 3),
        prefix=prefix,
        size_BN=torch.randint(1, 4, (2, count)).float() if sized else None,
        bias_BN=torch.randn(2, count) if sized else None,
    )


def literal(given: Tokens, metric: Tensor, r: int, row: int) -> list[tuple[float, Tensor, Tensor, float]]:
    """(size, feature, position, log utility) of each token after merging one clip, by the five steps of section 3."""
    count = given.count
    sizes = [1.0] * count if given.size_BN is None else given.size_BN[row].tolist()
    bias = [0.0] * count if given.bias_BN is None else given.bias_BN[row].tolist()
    sources, targets = list(range(0, count, 2)), list(range(1, count, 2))
    edges = []
    for s in sources:
        if s < given.prefix:
            continue
        similar = [torch.cosine_similarity(metric[row, s], metric[row, t], dim=0).item() for t in targets]
        edges.append((max(similar), s, targets[similar.index(max(similar))]))
    edges.sort(reverse=True)
    into: dict[int, list[int]] = {}
    gone = set()
    for _, s, t in edges[:r]:
        into.setdefault(t, []).append(s)
        gone.add(s)
    out = []
    for index in range(count):
        if index in gone:
            continue
        group = [index, *into.get(index, [])]
        whole = sum(sizes[g] for g in group)
        feature = sum((sizes[g] * given.x_BND[row, g] for g in group), torch.zeros(6)) / whole
        position = sum((sizes[g] * given.position_BN3[row, g] for g in group), torch.zeros(3)) / whole
        out.append((whole, feature, position, sum(sizes[g] * bias[g] for g in group) / whole))
    return out


@pytest.mark.parametrize("sized", [False, True])
@pytest.mark.parametrize(("count", "prefix", "r"), [(9, 1, 2), (9, 1, 4), (10, 1, 3), (8, 0, 3), (9, 0, 2), (17, 1, 8)])
def test_against_the_loop(count: int, prefix: int, r: int, sized: bool) -> None:
    given, metric = tokens(count, prefix, sized=sized), torch.randn(2, count, 5)
    merged = merge(given, metric, r)
    assert merged.count == count - r
    assert merged.prefix == prefix
    assert merged.size_BN is not None
    for row in range(2):
        expected = literal(given, metric, r, row)
        assert len(expected) == merged.count
        for whole, feature, position, bias in expected:
            # The order of tokens is not part of the algorithm: find the one that belongs.
            match = (merged.x_BND[row] - feature).abs().sum(dim=-1).argmin()
            torch.testing.assert_close(merged.x_BND[row, match], feature)
            torch.testing.assert_close(merged.position_BN3[row, match], position)
            assert merged.size_BN[row, match].item() == pytest.approx(whole)
            if merged.bias_BN is not None:
                assert merged.bias_BN[row, match].item() == pytest.approx(bias, abs=1e-5)
    if prefix:
        torch.testing.assert_close(merged.x_BND[:, 0], given.x_BND[:, 0])


def test_at_most_half_is_merged() -> None:
    assert mergeable(9, 1, 100) == 4
    assert mergeable(2, 1, 5) == 0
    assert mergeable(9, 1, -1) == 0
    assert merge(tokens(9, 1, sized=False), torch.randn(2, 9, 5), 100).count == 5
    given = tokens(9, 1, sized=True)
    assert merge(given, torch.randn(2, 9, 5), 0) is given


def test_block_without_merges_is_the_block() -> None:
    block = Block(size("test"), style("dinov2"))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x = torch.randn(2, 9, 32)
    given = Tokens(x_BND=x, position_BN3=torch.zeros(2, 9, 3), prefix=1)
    torch.testing.assert_close(merging_block(block, given, 0).x_BND, block(given).x_BND)
    assert merging_block(block, given, 3).count == 6


def test_merging_has_finite_gradients() -> None:
    """The match itself is a choice without gradient; values go through."""
    x = torch.randn(2, 9, 6, requires_grad=True)
    metric = torch.zeros(2, 9, 5, requires_grad=True)
    merged = merge(Tokens(x_BND=x, position_BN3=torch.zeros(2, 9, 3), prefix=1), metric, 3)
    (gradient,) = torch.autograd.grad(merged.x_BND.square().sum(), [x])
    assert gradient.isfinite().all()
    assert (gradient.abs().sum(dim=-1) > 0).all()
