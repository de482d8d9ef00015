"""Decoding by PyAV: chosen frames of one video, scaled and cut to one size. What can't be decoded raises, for the caller to judge."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

EXTENSIONS = frozenset({".mp4", ".avi", ".webm", ".mkv", ".mov"})
Choice = Callable[[int], NDArray[np.int64]]


class Undecodable(Exception):
    """A video without a frame that the decoder accepts, with its reason."""


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """Chosen frames as uint8 (T, H, W, 3), their places in the video, and the video's frame count."""

    frame_THWC: NDArray[np.uint8]
    index_T: NDArray[np.int64]
    total: int


def decoder() -> dict[str, str]:
    """Name and versions of what decodes, for records: other versions may give other pixels."""
    return {"name": "pyav", "version": av.__version__, "libavcodec": ".".join(map(str, av.library_versions["libavcodec"]))}


def decode(path: Path, choose: Choice, height: int, width: int) -> Decoded:
    """The frames at `choose(frame count)`, scaled so that they cover `height` x `width`, the middle kept. Raises `Undecodable`."""
    try:
        total = _packets(path)
        if total == 0:
            raise Undecodable("no video frames")
        decoded, seen = _read(path, choose(total), height, width)
        if seen and seen != total:  # the container promised another number than the decoder delivers
            total = seen
            decoded, seen = _read(path, choose(total), height, width)
    except (av.error.FFmpegError, OSError, ValueError, IndexError) as error:
        raise Undecodable(" ".join(f"{type(error).__name__}: {getattr(error, 'strerror', None) or error}".split())) from error
    index_T = choose(total)
    if any(int(i) not in decoded for i in index_T):
        raise Undecodable(f"only {len(decoded)} of {len(set(index_T.tolist()))} chosen frames decoded")
    return Decoded(frame_THWC=np.stack([decoded[int(i)] for i in index_T]), index_T=index_T, total=total)


def _packets(path: Path) -> int:
    with _open(path) as container:
        return sum(1 for packet in container.demux(_stream(container)) if packet.size)


def _read(path: Path, index_T: NDArray[np.int64], height: int, width: int) -> tuple[dict[int, NDArray[np.uint8]], int]:
    wanted = set(index_T.tolist())
    kept: dict[int, NDArray[np.uint8]] = {}
    seen = 0
    with _open(path) as container:
        stream = _stream(container)
        stream.thread_type = "SLICE"  # frame threads cost more than they give on short clips, and files are decoded side by side anyway
        for frame in container.decode(stream):
            if seen in wanted:
                kept[seen] = _fitted(frame, height, width)
            seen += 1
    return kept, seen


def _open(path: Path) -> contextlib.AbstractContextManager[av.container.InputContainer]:
    return contextlib.closing(av.open(str(path), mode="r", metadata_errors="ignore"))


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise Undecodable("no video stream")
    return container.streams.video[0]


def _fitted(frame: av.VideoFrame, height: int, width: int) -> NDArray[np.uint8]:
    scale = max(height / frame.height, width / frame.width)
    tall, wide = max(height, math.floor(frame.height * scale + 0.5)), max(width, math.floor(frame.width * scale + 0.5))
    pixels = np.asarray(frame.to_ndarray(format="rgb24", width=wide, height=tall, interpolation="BICUBIC"), dtype=np.uint8)
    top, left = (tall - height) // 2, (wide - width) // 2
    return pixels[top : top + height, left : left + width]
