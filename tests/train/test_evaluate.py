"""Accuracy, its interval by groups, and the bits that any later comparison is computed from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.train.toy import Quadrants, ToyClips
from vitgs.record import Views, unpack_bits
from vitgs.train.evaluate import _ranking, evaluate, grouped_interval


class Oracle(nn.Module):
    """Right for all quadrants but those in `blind`; `pattern` 1 is blind for one more."""

    def forward(self, clip_BTCHW: Tensor, pattern: int = 0) -> Tensor:
        pooled = nn.functional.avg_pool2d(clip_BTCHW[:, 0], 2).flatten(1)
        return pooled - torch.tensor([100.0 if q <= pattern else 0.0 for q in range(4)])


def test_bits_and_accuracy_agree_and_repetitions_are_averaged() -> None:
    result = evaluate(Oracle(), Quadrants("test"), run={}, repeat={"pattern": (0, 1)}, clips=100)
    bits = [unpack_bits(packed, 100) for packed in result.correct1]
    assert len(bits) == 2 and sum(bits[0]) > sum(bits[1])
    assert result.top1.value == pytest.approx(np.mean(bits))
    assert result.top1.value is not None and result.top1.low is not None and result.top1.high is not None
    assert result.top1.low < result.top1.value < result.top1.high
    assert result.top5.value == 1.0 and result.split == "test" and len(result.group_index) == 100


def test_groups_widen_the_interval() -> None:
    right = np.repeat([1.0, 0.0, 1.0, 1.0, 0.0] * 4, 10)[:, None]
    alone = grouped_interval(right, np.arange(200))
    together = grouped_interval(right, np.arange(200) // 10)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_training_mode_is_given_back() -> None:
    model = Oracle().train()
    evaluate(model, Quadrants("val"), run={}, clips=10)
    assert model.training


class Dimmed(Quadrants):
    """Quadrants as one of several views shows them; the views of a clip differ in how bright it is, and one may show nothing."""

    def __init__(self, split: str, factor: float = 1.0, seen_with: tuple[float, ...] = ()) -> None:
        super().__init__(split)
        self.factor, self.seen_with = factor, seen_with

    def seen(self, views: Views) -> tuple[Dimmed, ...]:
        assert views.count == len(self.seen_with)
        return tuple(Dimmed(self.split, factor) for factor in self.seen_with)

    def evaluation(self, count: int | None = None, seed: int = 0) -> Iterator[ToyClips]:
        for part in super().evaluation(count, seed):
            yield ToyClips(clip_BTCHW=part.clip_BTCHW * self.factor, label_B=part.label_B, group_B=part.group_B)


class Brightest(nn.Module):
    """Four logits, a quadrant's brightness each."""

    def forward(self, clip_BTCHW: Tensor) -> Tensor:
        return nn.functional.avg_pool2d(clip_BTCHW[:, 0], 2).flatten(1)


def test_views_are_averaged() -> None:
    views = Views(clips=1, crops=3)
    one = evaluate(Brightest(), Dimmed("test"), run={}, clips=90)
    same = evaluate(Brightest(), Dimmed("test", seen_with=(1.0, 1.0, 1.0)), run={}, clips=90, views=views)
    assert (one.views, same.views) == ("1x1", "1x3")
    assert (same.clips, same.correct1, same.groups) == (90, one.correct1, one.groups)
    assert one.top1.value is not None and one.top1.value > 0.9
    # Two views that see it upside down are outvoted by one that is surer, and outvote it when they are.
    for factors, right in (((9.0, -1.0, -1.0), True), ((1.0, -9.0, -9.0), False)):
        top1 = evaluate(Brightest(), Dimmed("test", seen_with=factors), run={}, clips=90, views=views).top1.value
        assert top1 is not None and (top1 > 0.9) == right


def test_probabilities_are_averaged_and_not_logits() -> None:
    surest_of_0, twice_1 = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[0.0, 5.0, 0.0]])
    assert int(torch.stack([surest_of_0, twice_1, twice_1]).mean(dim=0).argmax()) == 0
    mean_BC = _ranking([surest_of_0, twice_1, twice_1])
    assert int(mean_BC.argmax()) == 1
    torch.testing.assert_close(mean_BC.sum(), torch.tensor(1.0))
    assert _ranking([surest_of_0]) is surest_of_0
