"""Utility as marginal contribution: the model on a given set is the model, and planted importance is found where it was planted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from tests.graphsampler.test_explain import build
from vitgs.errors import UsageError
from vitgs.graphsampler.model import GraphSampler
from vitgs.graphsampler.theory import (
    Set,
    attention_received,
    cross_entropy,
    expected_kept,
    leave_frame_out,
    leave_one_out,
    log_probability,
    logits_of,
    look,
    rank_correlation,
    wanted,
)
from vitgs.graphsampler.theory_checks import correlations, frame_correlations, priced, submodularity

CLIPS = torch.randn(2, 4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
SETTINGS: list[dict[str, object]] = [
    {},
    {"attention": "joint", "glance": "patch"},
    {"attention": "joint", "readout": "attention"},
    {"decision": "dense", "readout": "mean"},
    {"select": "frame", "message": "mean"},
    {"select": "token", "window": 1},
    {"select": "random", "layers": 0},
    {"utility": "none", "memory": 0},
]


@pytest.mark.parametrize("knobs", SETTINGS, ids=str)
@pytest.mark.parametrize("budget", [1.0, 0.3])
def test_on_its_own_choice_it_is_the_model(knobs: dict[str, object], budget: float) -> None:
    model = build(**knobs)
    scene = look(model, CLIPS, budget)
    found = logits_of(model, scene, torch.arange(2), scene.index_BS.flip(1))
    with torch.no_grad():
        torch.testing.assert_close(found, model(CLIPS, budget), atol=1e-5, rtol=0)


def test_sets_of_any_sizes_are_each_run_as_if_alone() -> None:
    model = build()
    scene = look(model, CLIPS, 0.3)
    sets: list[Set] = [(5,), (1, 9, 30), (7,), (30, 1), (2, 3, 4)]
    together = log_probability(model, scene, 1)(sets)
    alone = torch.cat([log_probability(model, scene, 1)([one]) for one in sets])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(cross_entropy(model, scene, 1, 4)(sets), -together[:, 4])
    unbiased = log_probability(model, scene.without_bias(), 1)(sets)
    assert float((unbiased - together).abs().max()) > 1e-4


def planted(importance: Sequence[float]) -> object:
    """A loss that falls by a pair's importance when the pair is there."""

    def loss(sets: Sequence[Set]) -> torch.Tensor:
        return torch.tensor([-sum(importance[pair] for pair in pairs) for pairs in sets])

    return loss


def test_leaving_out_finds_planted_importance() -> None:
    importance = [0.1, 5.0, 2.0, -1.0, 0.7, 3.0, 0.0, 4.0]
    kept = (1, 2, 3, 5, 7)
    rise = leave_one_out(planted(importance), kept)  # type: ignore[arg-type]
    torch.testing.assert_close(rise, torch.tensor([5.0, 2.0, -1.0, 3.0, 4.0]))
    assert rank_correlation(torch.tensor([importance[pair] for pair in kept]), rise) == pytest.approx(1)
    frames, rise = leave_frame_out(planted(importance), kept, tokens=2)  # type: ignore[arg-type]
    assert frames == [0, 1, 2, 3]
    torch.testing.assert_close(rise, torch.tensor([5.0, 1.0, 3.0, 4.0]))
    assert leave_frame_out(planted(importance), (2, 3), tokens=2)[0] == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 35], 1.0),
        ([1, 2, 3], [3, 2, 1], -1.0),
        ([1, 2, 3, 4], [2, 1, 4, 3], 0.6),
        ([1, 1, 2], [1, 2, 3], math.sqrt(3) / 2),
    ],
)
def test_rank_correlation(a: list[float], b: list[float], expected: float) -> None:
    assert rank_correlation(torch.tensor(a), torch.tensor(b)) == pytest.approx(expected)


@pytest.mark.parametrize(("a", "b"), [([1, 2], [1, 2]), ([1, 1, 1], [1, 2, 3]), ([], [])])
def test_a_rank_correlation_that_is_not_defined(a: list[float], b: list[float]) -> None:
    assert math.isnan(rank_correlation(torch.tensor(a), torch.tensor(b)))


@pytest.mark.parametrize("attention", ["frame", "joint"])
@pytest.mark.parametrize(("readout", "rest"), [("attention", False), ("class", True)])
def test_attention_received_is_all_that_is_given(readout: str, rest: bool, attention: str) -> None:
    model = build(readout=readout, attention=attention)
    scene = look(model, CLIPS, 0.5)
    received = attention_received(model, scene.own())
    assert received.shape == (2, 32)
    assert bool((received.sum(dim=1) < 1 - 1e-4).all()) is rest  # the class token gets the rest
    if not rest:
        torch.testing.assert_close(received.sum(dim=1), torch.ones(2))


def test_what_the_price_acts_on() -> None:
    utility = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[30.0, -30.0], [-30.0, -30.0]]])
    assert expected_kept(utility).tolist() == pytest.approx([0.5, 0.25])
    assert wanted(utility).tolist() == [0.0, 0.25]


def test_attention_received_a_frame_at_a_time_is_that_of_each_frame_alone() -> None:
    model = build()
    whole = look(model, CLIPS, 1.0).own()
    received = attention_received(model, whole)
    for t in range(3):
        of_frame = replace(whole, x_BND=whole.x_BND.roll(1, dims=0))
        here = whole.position_BN3[:, :, 0] == t
        other = whole.with_x(torch.where(here.unsqueeze(-1), whole.x_BND, of_frame.x_BND))
        changed = attention_received(model, other)
        torch.testing.assert_close(changed[here], received[here])
        assert not torch.equal(changed[~here], received[~here])


def test_a_model_that_the_theory_is_not_about_is_refused() -> None:
    with pytest.raises(UsageError, match="learned utility"):
        look(build(utility="none", select="random"), CLIPS, 0.5)


def test_a_model_that_reads_one_token_gives_that_token_all_the_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer is right while the pair of highest utility is there, and less so by a pair's rank: utility is then the perfect score."""
    model, label_B = build(), torch.tensor([1, 2])

    def answers(model: GraphSampler, scene: object, row: int) -> object:
        rank = look(model, CLIPS, 1.0).utility_BTN[row].flatten().argsort().argsort()
        return lambda sets: torch.tensor([[float(rank[list(pairs)].sum())] * 6 for pairs in sets])

    monkeypatch.setattr("vitgs.graphsampler.theory.log_probability", answers)
    found = correlations(model, CLIPS, label_B, 0.3, torch.Generator().manual_seed(0), bias=True)
    assert found["utility"] == pytest.approx([1, 1])
    assert all(abs(value) < 0.5 for value in found["random"])
    assert set(found) >= {"attention", "attention on all pairs"}
    frames = frame_correlations(model, CLIPS, label_B, 1.0, torch.Generator().manual_seed(0))
    assert all(math.isnan(value) for value in frames["count of kept tokens"])  # each frame keeps as many


def test_prices_and_sets_of_each_clip() -> None:
    import random

    model, label_B = build(), torch.tensor([1, 2])
    found = priced(model, CLIPS, label_B, 0.3)
    with torch.no_grad():
        assert found["top-1"] == (model(CLIPS, 0.3).argmax(dim=1) == label_B).float().tolist()
    for context in (False, True):
        sets = submodularity(model, CLIPS, label_B, 0.3, random.Random(0), context=context)
        assert set(sets) == {"log probability", "smoothed"}
        for by_clip in sets.values():
            assert {len(values) for values in by_clip.values()} == {2}
            assert all(0 <= value <= 1 for value in by_clip["chains that diminish"])
            assert all(value >= 0 for value in by_clip["greedy, loss in nats"] + by_clip["best by utility, loss in nats"])
    assert submodularity(model, CLIPS, label_B, 0.1, random.Random(0), context=True) == {}
