"""Decoded and scaled frames of a list of videos as one memory-mapped array on disk, so that training isn't bound by decoding.

A cache folder is written beside its place and moved there whole: a broken-off run leaves nothing half done, and two jobs that prepare the same
videos agree.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitgs import folders
from vitgs.data import sampling
from vitgs.data.listing import Video
from vitgs.data.video import Decoded, Undecodable, decode, decoder
from vitgs.errors import BrokenOff
from vitgs.record import digest

_LAYOUT = 1


@dataclass(frozen=True, kw_only=True)
class Frames:
    """Stored frames (N, F, H, W, 3) of the videos at `kept_N` of the list, what was left out and why, and a hash of the chosen frames' indices."""

    frame_NFHWC: NDArray[np.uint8]
    kept_N: tuple[int, ...]
    left_out: tuple[tuple[str, str], ...]
    indices_digest: str


def frames_of(root: Path, videos: Sequence[Video], count: int, height: int, width: int) -> Frames:
    """`count` frames, spread evenly, of each video that decodes; from the cache, which is filled first where need be."""
    names = [(video.path, video.size_bytes, video.mtime_ns) for video in videos]
    key = digest({"layout": _LAYOUT, "root": str(root.resolve()), "videos": names, "frames": count, "size": [height, width], "decoder": decoder()})
    place = folders.cache() / "videos" / key
    if not (place / "index.json").is_file():
        _fill(place, root, videos, count, height, width)
    index: dict[str, Any] = json.loads((place / "index.json").read_text(encoding="utf-8"))
    return Frames(
        frame_NFHWC=np.load(place / "frames.npy", mmap_mode="r")[: len(index["kept"])],
        kept_N=tuple(index["kept"]),
        left_out=tuple((path, reason) for path, reason in index["left_out"]),
        indices_digest=index["indices_digest"],
    )


def _fill(place: Path, root: Path, videos: Sequence[Video], count: int, height: int, width: int) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    needed = len(videos) * count * height * width * 3
    free = shutil.disk_usage(place.parent).free
    if needed > free:
        raise BrokenOff(
            "decoded frames must fit on the disk of the cache",
            given=f"{needed / 2**30:.1f} GiB for {len(videos)} videos, {free / 2**30:.1f} GiB free in {place.parent}",
            remedy="set VITGS_CACHE to a folder with room, or use fewer frames or a smaller size",
        )
    draft = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    try:
        _write(draft, root, videos, count, height, width)
        if not place.exists():
            draft.replace(place)
    except OSError:
        # Another job may have put its own, equal, folder there first; anything else is real.
        if not (place / "index.json").is_file():
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _write(draft: Path, root: Path, videos: Sequence[Video], count: int, height: int, width: int) -> None:
    kept: list[int] = []
    left_out: list[tuple[str, str]] = []
    indices: list[list[int]] = []
    frames = np.lib.format.open_memmap(draft / "frames.npy", mode="w+", dtype=np.uint8, shape=(len(videos), count, height, width, 3))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i, outcome in enumerate(pool.map(partial(_one, root=root, count=count, height=height, width=width), videos)):
            if isinstance(outcome, str):
                left_out.append((videos[i].path, outcome))
                continue
            frames[len(kept)] = outcome.frame_THWC  # videos that fail leave unused rows at the end
            kept.append(i)
            indices.append(outcome.index_T.tolist())
    frames.flush()
    index = {"kept": kept, "left_out": left_out, "indices_digest": digest(indices)}
    (draft / "index.json").write_text(json.dumps(index), encoding="utf-8")


def _one(video: Video, *, root: Path, count: int, height: int, width: int) -> Decoded | str:
    try:
        return decode(root / video.path, partial(sampling.uniform, frames=count), height, width)
    except Undecodable as error:
        return str(error)
