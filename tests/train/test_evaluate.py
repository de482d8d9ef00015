"""Accuracy, its interval by groups, and the bits that any later comparison is computed from."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.train.toy import Quadrants
from vitgs.record import unpack_bits
from vitgs.train.evaluate import evaluate, grouped_interval


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
