"""Which frames of a video become a clip: the middles of equal segments for testing, one random frame in each segment (TSN) for training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vitgs.errors import UsageError


def uniform(total: int, frames: int) -> NDArray[np.int64]:
    """The middle frame of each of `frames` equal segments of a video of `total` frames; frames repeat when there are fewer."""
    _check(total, frames)
    return np.floor((np.arange(frames) + 0.5) * total / frames).astype(np.int64)


def segments(total: int, frames: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """A random frame of each of `frames` equal segments; in order, and with repeats only when there are fewer frames than segments."""
    _check(total, frames)
    edge = np.floor(np.arange(frames + 1) * total / frames).astype(np.int64)
    return np.minimum(rng.integers(edge[:-1], np.maximum(edge[1:], edge[:-1] + 1)), total - 1)


def _check(total: int, frames: int) -> None:
    if total < 1 or frames < 1:
        raise UsageError("a clip and its video have at least one frame", given=f"{frames} of {total}", remedy="set frames to 1 or more")
