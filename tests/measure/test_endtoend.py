"""From a file to logits: what is timed, in which order, and what is told of the frames."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitgs.errors import UsageError
from vitgs.measure.endtoend import PARTS, end_to_end

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Frames:
    index_T: tuple[int, ...]
    total: int


def test_each_file_is_read_in_turn_and_told_once() -> None:
    seen: list[str] = []

    def decode(file: Path) -> Frames:
        seen.append(file.name)
        return Frames(index_T=(1, 3), total=5)

    def model(clip_1TCHW: Tensor) -> Tensor:
        seen.append("model")
        return clip_1TCHW

    found = end_to_end([Path("a"), Path("b")], decode, lambda video: torch.zeros(1, len(video.index_T), 1, 2, 2), model, device=CPU, seconds=0.0)
    assert seen == ["a", "model", "b", "model"] * 3
    assert [(video.name, video.frames, video.total) for video in found.videos] == [("a", (1, 3), 5), ("b", (1, 3), 5)]
    assert tuple(found.part_ms) == PARTS
    assert len(found.latency_ms.samples) == 2  # one a turn: files differ, turns don't
    assert found.latency_ms.samples[0] == pytest.approx(sum(part.samples[0] for part in found.part_ms.values()))


def test_without_files_there_is_nothing_to_time() -> None:
    with pytest.raises(UsageError, match="needs videos"):
        end_to_end([], lambda file: Frames((0,), 1), lambda video: torch.zeros(1), lambda clip: clip, device=CPU, seconds=1.0)
