"""From stored uint8 frames to normalised clips: crop, flip, scale. Resizing happens once, when a video is decoded.

Shapes: T frames, H height, W width, C channels, B clips.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from vitgs.errors import unknown

Bytes = NDArray[np.uint8]

CROPS = 3
CENTRE = 1  # of the three

# Mean and standard deviation of RGB that published weights were trained with.
NORMALS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def margin(px: int) -> int:
    """Side of the stored frames for a crop of `px`: 8/7 of it, as 256 is to 224."""
    return math.ceil(px * 8 / 7)


def centre_crop(frame_THWC: Bytes, height: int, width: int) -> Bytes:
    """The middle, for testing."""
    return one_of_three(frame_THWC, height, width, CENTRE)


def one_of_three(frame_THWC: Bytes, height: int, width: int, place: int) -> Bytes:
    """Number 0, 1 or 2 of left, centre and right (of top, centre and bottom where the free margin is longer that way); the other axis centred."""
    free_2 = frame_THWC.shape[1] - height, frame_THWC.shape[2] - width
    along = 0 if free_2[0] > free_2[1] else 1
    top, left = (free * (place if axis == along else CENTRE) // 2 for axis, free in enumerate(free_2))
    return frame_THWC[:, top : top + height, left : left + width]


def random_crop(frame_THWC: Bytes, height: int, width: int, rng: np.random.Generator) -> Bytes:
    """One random place for all frames of the clip."""
    top, left = (int(rng.integers(0, extent - size + 1)) for extent, size in zip(frame_THWC.shape[1:3], (height, width), strict=True))
    return frame_THWC[:, top : top + height, left : left + width]


def flipped(frame_THWC: Bytes, rng: np.random.Generator) -> Bytes:
    """Mirrors left and right in half of the clips."""
    return frame_THWC[:, :, ::-1] if rng.random() < 0.5 else frame_THWC


def normalised(clips: Sequence[Bytes], normal: str) -> torch.Tensor:
    """Stacks (T, H, W, C) bytes to a float32 tensor (B, T, C, H, W)."""
    if normal not in NORMALS:
        raise unknown("normalisation", normal, NORMALS)
    mean_C, std_C = (torch.tensor(values).view(3, 1, 1) for values in NORMALS[normal])
    clip_BTCHW = torch.from_numpy(np.stack(clips)).permute(0, 1, 4, 2, 3).contiguous().to(torch.float32)
    return clip_BTCHW.mul_(1 / (255 * std_C)).sub_(mean_C / std_C)
