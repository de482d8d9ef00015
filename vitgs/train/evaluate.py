"""Accuracy on fixed clips, with intervals that know which clips belong together, and which clips were right."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vitgs.record import Estimate, digest, pack_bits
from vitgs.train.sources import Source

RESAMPLES = 1000


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    """`correct1` and `correct5` hold one packed bit set per repetition (random patterns); `groups` names the list in `group_index`."""

    split: str
    clips: int
    top1: Estimate
    top5: Estimate
    correct1: tuple[str, ...]
    correct5: tuple[str, ...]
    labels_digest: str
    groups: str
    seconds: float
    views: str = "1x1"
    group_index: tuple[int, ...] = field(default=(), repr=False)


def grouped_interval(right_CR: NDArray[np.float64], group_C: NDArray[np.int64], seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap of the mean over clips, resampling whole groups: clips of one digit image or video source are not independent."""
    _, inverse = np.unique(group_C, return_inverse=True)
    groups = int(inverse.max()) + 1
    sums = np.bincount(inverse, weights=right_CR.mean(axis=1), minlength=groups)
    counts = np.bincount(inverse, minlength=groups)
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES)
    means = drawn @ sums / np.maximum(drawn @ counts, 1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def _estimate(right_CR: NDArray[np.float64], group_C: NDArray[np.int64]) -> Estimate:
    low, high = grouped_interval(right_CR, group_C)
    method = f"percentile bootstrap over {len(np.unique(group_C))} groups, {RESAMPLES} resamples"
    return Estimate(value=float(right_CR.mean()), low=low, high=high, method=method)


def evaluate(
    model: nn.Module,
    source: Source,
    *,
    run: Mapping[str, Any],
    repeat: Mapping[str, tuple[Any, ...]] | None = None,
    clips: int | None,
    device: str = "cpu",
) -> EvalResult:
    """Top-1 and top-5 on the first `clips` fixed clips of the split (None: all there are).

    With `repeat`, the mean over the values of those run knobs.
    """
    started = time.perf_counter()
    repetitions = [dict(zip(repeat or {}, values, strict=True)) for values in product(*(repeat or {}).values())]
    first: list[list[torch.Tensor]] = [[] for _ in repetitions]
    fifth: list[list[torch.Tensor]] = [[] for _ in repetitions]
    labels, groups = [], []
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        for part in source.evaluation(clips):
            label_B1 = part.label_B.to(device).unsqueeze(1)
            for i, pattern in enumerate(repetitions):
                logits = model(part.clip_BTCHW.to(device), **run, **pattern)
                best = logits.topk(min(5, logits.shape[1]), dim=1).indices == label_B1
                first[i].append(best[:, 0].cpu())
                fifth[i].append(best.any(dim=1).cpu())
            labels.append(part.label_B)
            groups.append(part.group_B)
    model.train(was_training)
    group_C = torch.cat(groups).numpy()
    right1 = torch.stack([torch.cat(r) for r in first], dim=1).numpy()
    right5 = torch.stack([torch.cat(r) for r in fifth], dim=1).numpy()
    group_index = tuple(int(g) for g in group_C)
    return EvalResult(
        split=source.split,
        clips=len(group_index),
        top1=_estimate(right1.astype(float), group_C),
        top5=_estimate(right5.astype(float), group_C),
        correct1=tuple(pack_bits(list(column)) for column in right1.T),
        correct5=tuple(pack_bits(list(column)) for column in right5.T),
        labels_digest=hashlib.sha256(torch.cat(labels).numpy().tobytes()).hexdigest()[:16],
        groups=digest(list(group_index)),
        seconds=time.perf_counter() - started,
        group_index=group_index,
    )
