"""A video in several views: their batches side by side, and a model that averages over them; `evaluate` stays what it is for one view."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vitgs.record import Clip, Views
from vitgs.train.evaluate import EvalResult, evaluate
from vitgs.train.sources import Clips, Source


class Viewed(Source, Protocol):
    """A source that can show its videos in several views."""

    def seen(self, views: Views) -> Sequence[Source]: ...


@dataclass(frozen=True)
class Seen:
    """A batch of B videos in V views, one view behind the other: clips `(V*B, T, C, H, W)`, labels and groups `(B,)`."""

    clip_BTCHW: Tensor
    label_B: Tensor
    group_B: Tensor


class SideBySide:
    """Several views of one source, which show the same videos in the same order, as a source of its own.

    A batch is V times as large as that of one view: .9 GB for 2x3 views of 32 videos, 8 frames of 224 px.
    """

    def __init__(self, views: Sequence[Source]) -> None:
        self._views = views
        self.clip: Clip = views[0].clip
        self.digest, self.split = views[0].digest, views[0].split

    def batch(self, size: int, seed: int) -> Clips:
        return _together([view.batch(size, seed) for view in self._views])

    def evaluation(self, count: int | None = None, seed: int = 0) -> Iterator[Clips]:
        for parts in zip(*(view.evaluation(count, seed) for view in self._views), strict=True):
            yield _together(parts)


def _together(parts: Sequence[Clips]) -> Seen:
    return Seen(clip_BTCHW=torch.cat([part.clip_BTCHW for part in parts]), label_B=parts[0].label_B, group_B=parts[0].group_B)


class MeanOfViews(nn.Module):
    """`model` on each of `count` views in turn, and the log of the mean of their softmax: `(V*B, T, C, H, W)` -> `(B, classes)`.

    The log ranks the classes as the mean does, and those too whose probabilities are too small to be told from 0. The tests of SlowFast and VideoMAE
    average the softmax too. A mean of logits would let the view with the largest ones outvote the others.
    """

    def __init__(self, model: nn.Module, count: int) -> None:
        super().__init__()
        self.model, self.count = model, count

    def forward(self, clip_XTCHW: Tensor, **run: Any) -> Tensor:
        of_views = [self.model(view_BTCHW, **run).float().log_softmax(dim=1) for view_BTCHW in clip_XTCHW.chunk(self.count)]
        return torch.stack(of_views).logsumexp(dim=0) - math.log(self.count)


def evaluate_in_views(
    model: nn.Module,
    source: Viewed,
    views: Views,
    *,
    run: Mapping[str, Any],
    repeat: Mapping[str, tuple[Any, ...]] | None = None,
    clips: int | None,
    device: str = "cpu",
) -> EvalResult:
    """As `evaluate`, each video in several views. Raises `UsageError` for views that the source can't give."""
    if views.count == 1:
        return evaluate(model, source, run=run, repeat=repeat, clips=clips, device=device)
    several = SideBySide(source.seen(views))
    result = evaluate(MeanOfViews(model, views.count), several, run=run, repeat=repeat, clips=clips, device=device)
    return replace(result, views=str(views))
