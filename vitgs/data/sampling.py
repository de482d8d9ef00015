"""Which frames of a video become a clip: fixed places in equal segments for testing, one random frame in each segment for training.

Segments are those of TSN (Wang 2016, section 3.1). Drawing anew, for each training clip, how much of the video it covers is in the spirit of the
frame-rate jitter of SlowFast's code (`DATA.TRAIN_JITTER_FPS`), but in a few large steps and without sampling rates; no paper's exact rule.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from vitgs.errors import UsageError


def uniform(total: int, frames: int, view: int = 0, views: int = 1) -> NDArray[np.int64]:
    """The middle frame of each of `frames` equal segments of a video of `total` frames; frames repeat when there are fewer.

    Of several views in time, number `view` takes the frame at `(view + 1/2) / views` of each segment: all of them span the video, and none shares a
    frame with another while a segment has as many frames as there are views.
    """
    _check(total, frames)
    return np.floor((np.arange(frames) + (view + 0.5) / views) * total / frames).astype(np.int64)


def segments(total: int, frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random frame of each of `frames` equal segments; in order, and with repeats only when there are fewer frames than segments."""
    _check(total, frames)
    edge = np.floor(np.arange(frames + 1) * total / frames).astype(np.int64)
    return np.minimum(rng.integers(edge[:-1], np.maximum(edge[1:], edge[:-1] + 1)), total - 1)


def scaled(total: int, frames: int, scale: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """`segments` of a window at a random place that covers `scale` of the video; with 1 exactly `segments`, from the same random numbers."""
    _check(total, frames)
    check_scales((scale,))
    length = max(1, round(scale * total))
    first = int(rng.integers(0, total - length + 1)) if length < total else 0
    return first + segments(length, frames, rng)


def check_scales(scales: Sequence[float]) -> None:
    """Refuses what is no share of a video."""
    if not scales or not all(0 < scale <= 1 for scale in scales):
        given = ", ".join(f"{scale:g}" for scale in scales) or "none"
        raise UsageError("temporal scales are shares of a video, above 0 and at most 1", given=given, remedy="give, say, 1,0.75,0.5")


def _check(total: int, frames: int) -> None:
    if total < 1 or frames < 1:
        raise UsageError("a clip and its video have at least one frame", given=f"{frames} of {total}", remedy="set frames to 1 or more")
