"""Several views of a video are ranked by the mean of their probabilities."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.train.toy import Quadrants, ToyClips
from vitgs.record import Views
from vitgs.train.evaluate import evaluate
from vitgs.train.views import MeanOfViews, evaluate_in_views


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


class Turned(Brightest):
    """The same, or its opposite at run."""

    def forward(self, clip_BTCHW: Tensor, sign: float = 1.0) -> Tensor:
        return sign * super().forward(clip_BTCHW)


class Given(nn.Module):
    """Logits as they come in."""

    def forward(self, clip_BC: Tensor) -> Tensor:
        return clip_BC


def test_views_are_averaged() -> None:
    views = Views(clips=1, crops=3)
    one = evaluate(Brightest(), Dimmed("test"), run={}, clips=90)
    same = evaluate_in_views(Brightest(), Dimmed("test", seen_with=(1.0, 1.0, 1.0)), views, run={}, clips=90)
    assert (one.views, same.views) == ("1x1", "1x3")
    assert (same.clips, same.correct1, same.groups) == (90, one.correct1, one.groups)
    assert one.top1.value is not None and one.top1.value > 0.9
    # Two views that see it upside down are outvoted by one that is surer, and outvote it when they are.
    for factors, right in (((9.0, -1.0, -1.0), True), ((1.0, -9.0, -9.0), False)):
        top1 = evaluate_in_views(Brightest(), Dimmed("test", seen_with=factors), views, run={}, clips=90).top1.value
        assert top1 is not None and (top1 > 0.9) == right


def test_one_view_is_evaluation_as_it_is() -> None:
    plain, one = (
        evaluate(Brightest(), Dimmed("test"), run={}, clips=50),
        evaluate_in_views(Brightest(), Dimmed("test", seen_with=(1.0,)), Views(), run={}, clips=50),
    )
    assert (one.views, one.correct1, one.top1) == ("1x1", plain.correct1, plain.top1)


def test_probabilities_are_averaged_and_not_logits() -> None:
    surest_of_0, twice_1 = torch.tensor([[100.0, 0.0, 0.0]]), torch.tensor([[0.0, 5.0, 0.0]])
    assert int(torch.stack([surest_of_0, twice_1, twice_1]).mean(dim=0).argmax()) == 0
    mean_BC = MeanOfViews(Given(), 3)(torch.cat([surest_of_0, twice_1, twice_1])).exp()
    torch.testing.assert_close(mean_BC, torch.cat([surest_of_0, twice_1, twice_1]).softmax(dim=1).mean(dim=0, keepdim=True))
    assert int(mean_BC.argmax()) == 1
    torch.testing.assert_close(mean_BC.sum(), torch.tensor(1.0))


def test_classes_too_unlikely_for_a_float_are_ranked_too() -> None:
    logits_BC = torch.tensor([[200.0, 0, 1, 2, 3, 4, 5, 6]])
    for views in (1, 3):
        assert MeanOfViews(Given(), views)(logits_BC.repeat(views, 1)).topk(5).indices.tolist() == [[0, 7, 6, 5, 4]]


def test_a_run_knob_reaches_the_model_in_every_view() -> None:
    views, source = Views(clips=1, crops=3), Dimmed("test", seen_with=(1.0, 2.0, 3.0))
    best, worst = (evaluate_in_views(Turned(), source, views, run={"sign": sign}, clips=90).top1.value for sign in (1.0, -1.0))
    assert best is not None and worst is not None and best > 0.9 and worst < 0.1
    both = evaluate_in_views(Turned(), source, views, run={}, repeat={"sign": (1.0, -1.0)}, clips=90).top1.value
    assert both == pytest.approx((best + worst) / 2)


def test_the_model_is_given_back_in_its_mode() -> None:
    model = Brightest().train()
    evaluate_in_views(model, Dimmed("test", seen_with=(1.0, 2.0)), Views(clips=2), run={}, clips=10)
    assert model.training
