"""What a user waits for: from a file on disk to logits. Decoding, transforms and model are timed together and apart, video by video.

A selector that saves operations in the model may still need every frame decoded; only this time shows it.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from vitgs.errors import UsageError
from vitgs.measure import clock, validity
from vitgs.measure.setting import no_collection, synchronise
from vitgs.record import Estimate

PARTS = ("decode", "transform", "model")
FEWEST_TURNS = 2


class Video(Protocol):
    """What a decoder gives besides pixels: the places of the frames that it handed on, and how many frames the video has."""

    @property
    def index_T(self) -> Iterable[Any]: ...
    @property
    def total(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Read:
    """One video: which of its `total` frames were handed on to the model, and the median milliseconds that it took."""

    name: str
    total: int
    frames: tuple[int, ...]
    latency_ms: float


@dataclass(frozen=True, kw_only=True)
class EndToEnd:
    """Milliseconds a video at batch 1, in all and by part: of each turn through the files the mean, of the turns the median with its interval.

    `flags`: what befell the machine meanwhile, as in `Measurement`.
    """

    latency_ms: Estimate
    part_ms: Mapping[str, Estimate]
    videos: tuple[Read, ...]
    flags: tuple[str, ...]


def end_to_end(
    files: Sequence[Path],
    decode: Callable[[Path], Video],
    transform: Callable[[Any], Tensor],
    model: Callable[[Tensor], object],
    *,
    device: torch.device,
    seconds: float,
) -> EndToEnd:
    """Reads the files in turn for about `seconds`, twice each at least, after one turn that is not counted: the disk's cache is warm.

    `decode(file)` gives frames, `transform` makes of them a clip `(1, T, C, H, W)` on CPU. What `decode` raises goes through.
    """
    if not files:
        raise UsageError("end-to-end latency needs videos", given="none", remedy="name a video file, or a folder of them")

    def once(file: Path) -> tuple[Video, tuple[float, ...]]:
        marks = [time.perf_counter_ns()]
        video = decode(file)
        marks.append(time.perf_counter_ns())
        clip_1TCHW = transform(video)
        marks.append(time.perf_counter_ns())
        model(clip_1TCHW.to(device))
        synchronise(device)
        marks.append(time.perf_counter_ns())
        return video, tuple((after - before) / 1e6 for before, after in pairwise(marks))

    with torch.inference_mode(), no_collection():
        first = [once(file)[0] for file in files]
        before, deadline, turns = validity.look(), time.perf_counter() + seconds, list[list[tuple[float, ...]]]()
        while len(turns) < FEWEST_TURNS or time.perf_counter() < deadline:
            turns.append([once(file)[1] for file in files])
        flags = validity.judge(before, validity.look()).flags
    by_part = [[statistics.fmean(part) for part in zip(*turn, strict=True)] for turn in turns]
    read = [
        Read(name=file.name, total=video.total, frames=tuple(int(i) for i in video.index_T), latency_ms=statistics.median(map(sum, own)))
        for file, video, own in zip(files, first, zip(*turns, strict=True), strict=True)
    ]
    return EndToEnd(
        latency_ms=clock.estimate([sum(parts) for parts in by_part]),
        part_ms={name: clock.estimate(part) for name, part in zip(PARTS, zip(*by_part, strict=True), strict=True)},
        videos=tuple(read),
        flags=flags,
    )
