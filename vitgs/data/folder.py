"""Real videos in a plain `<split>/<class>/<video>` folder, as a source like the embedded one. Nothing is decoded before the first batch."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitgs import folders
from vitgs.data import WHOLE, sampling, transforms
from vitgs.data.frame_cache import Frames, frames_of
from vitgs.data.listing import Listing, Video, listing
from vitgs.data.source import SPLITS, Clips, Split, known_split
from vitgs.data.video import Decoded, decode, decoder
from vitgs.errors import NothingToWorkOn, UsageError, unknown
from vitgs.record import Clip, Views, digest

_STORED_PER_FRAME = 2  # stored frames for each frame of a clip: what training's jitter draws from
_EVALUATION_BATCH = 32


def evaluation_frames(path: Path, clip: Clip) -> Decoded:
    """The frames of one video that testing takes, uncropped: of the stored ones, spread evenly, the middle of each of T segments. Raises
    `Undecodable`."""
    stored = _STORED_PER_FRAME * clip.frames
    chosen = sampling.uniform(stored, clip.frames)
    return decode(path, lambda total: sampling.uniform(total, stored)[chosen], transforms.margin(clip.height), transforms.margin(clip.width))


@dataclass(frozen=True, kw_only=True)
class View:
    """Which of how many clips in time, and which crop (0, 1, 2 along the longer free margin), testing looks at."""

    clip: int = 0
    clips: int = 1
    crop: int = transforms.CENTRE


class VideoFolder:
    """One split of a folder of videos; `normal` names the mean and deviation of the weights in use, `flip` mirrors half of the training clips.

    `scales`: how much of the video a training clip covers, one of them drawn for each clip; the window's place is random.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        *,
        frames: int,
        height: int,
        width: int,
        normal: str = "imagenet",
        flip: bool = True,
        scales: tuple[float, ...] = WHOLE,
    ) -> None:
        if normal not in transforms.NORMALS:
            raise unknown("normalisation", normal, transforms.NORMALS)
        sampling.check_scales(scales)
        if min(scales) * _STORED_PER_FRAME < 1:
            rule = (
                f"{_STORED_PER_FRAME} frames are stored for each frame of a clip, so one of less than 1/{_STORED_PER_FRAME} of a video repeats some"
            )
            raise UsageError(rule, given=f"{min(scales):g}", remedy=f"use temporal scales from {1 / _STORED_PER_FRAME:g} to 1")
        self.scales, self.view = scales, View()
        self.folder = Path(folder).expanduser()
        self.split: Split = known_split(split)
        self.normal, self.flip = normal, flip
        self.listing: Listing = listing(self.folder)
        self.videos: tuple[Video, ...] = tuple(video for video in self.listing.videos if video.split == self.split)
        if not self.videos:
            remedy = f"put videos into {self.folder / self.split}/<class>/, or more than one video of a class into train"
            raise NothingToWorkOn(f"the {self.split} split has videos", given=f"none in {self.folder} ({self.listing.rule})", remedy=remedy)
        self.name = self.folder.resolve().name
        self.digest = digest({"rule": self.listing.rule, "videos": [(video.path, video.size_bytes, video.split) for video in self.listing.videos]})
        names = self.listing.classes
        self.clip = Clip(frames=frames, height=height, width=width, channels=3, classes=len(names), class_names=names)
        number = {name: i for i, name in enumerate(names)}
        groups = {name: i for i, name in enumerate(self.listing.groups)}
        self._label_V = np.array([number[video.label] for video in self.videos])
        self._group_V = np.array([groups[video.group] for video in self.videos])

    @property
    def counts(self) -> dict[str, int]:
        """Videos of each split, decodable or not."""
        return {split: sum(video.split == split for video in self.listing.videos) for split in SPLITS}

    @cached_property
    def frames(self) -> Frames:
        """The stored frames; decodes every video of the split once, unless the cache has them."""
        height, width = transforms.margin(self.clip.height), transforms.margin(self.clip.width)
        stored = frames_of(self.folder, self.videos, _STORED_PER_FRAME * self.clip.frames, height, width)
        if not stored.kept_N:
            path, reason = stored.left_out[0]
            raise NothingToWorkOn(
                f"the {self.split} split has a video that can be decoded",
                given=f"none of {len(self.videos)}; {path}: {reason}",
                remedy="check the files",
            )
        return stored

    def batch(self, size: int, seed: int) -> Clips:
        """Videos drawn at random, each once where there are enough; random frames, crop and flip for the train split, else as in testing."""
        if size < 1 or seed < 0:
            raise UsageError("a batch has at least one clip and a seed of 0 or more", given=f"size {size}, seed {seed}", remedy="set both so")
        rng = np.random.default_rng([SPLITS.index(self.split), seed])
        stored = len(self.frames.kept_N)
        return self._clips(rng.choice(stored, size, replace=size > stored), rng if self.split == "train" else None)

    def evaluation(self, count: int | None = None, seed: int = 0) -> Iterator[Clips]:
        """Each decodable video once, the frames and crop of its view (one view: the middle ones).

        The order depends on the seed, so that a prefix is a fair sample.
        """
        stored = len(self.frames.kept_N)
        order = np.random.default_rng([len(SPLITS), seed]).permutation(stored)[: stored if count is None else count]
        for start in range(0, len(order), _EVALUATION_BATCH):
            yield self._clips(order[start : start + _EVALUATION_BATCH], None)

    @property
    def most_views(self) -> Views:
        """As many clips as frames are stored for each frame of a clip, of three crops."""
        return Views(clips=_STORED_PER_FRAME, crops=transforms.CROPS)

    def seen(self, views: Views) -> tuple[VideoFolder, ...]:
        """The folder once for each view, clip by clip; crops lie within the stored frames, so they see their 8/7 and not all of a wide video."""
        most = self.most_views
        if views.clips > most.clips:
            rule = f"{most.clips} frames are stored for each frame of a clip, so at most {most.clips} clips of a video share no frame"
            raise UsageError(rule, given=views, remedy=f"use {most.clips}x{views.crops}")
        if views.crops not in (1, most.crops):
            raise UsageError(f"a clip of a video has 1 or {most.crops} crops", given=views, remedy=f"use {views.clips}x{most.crops}")
        places = range(most.crops) if views.crops > 1 else (transforms.CENTRE,)
        return tuple(self._through(View(clip=i, clips=views.clips, crop=place)) for i in range(views.clips) for place in places)

    def describe(self) -> dict[str, Any]:
        """As `Source.describe`; decodes the split if that hasn't happened, since only then it is known which videos are left out."""
        frames = self.frames
        left_out = [{"video": path, "reason": reason} for path, reason in frames.left_out]
        return {
            "name": self.name,
            "path": folders.portable(self.folder),
            "digest": self.digest,
            "split": self.split,
            "split_rule": self.listing.rule,
            "counts": self.counts,
            "decoded": len(frames.kept_N),
            "groups": len({video.group for video in self.videos}),
            "chance": 1 / self.clip.class_count,
            "left_out": left_out,
            "warning": f"{len(left_out)} of {len(self.videos)} videos can't be decoded, first {frames.left_out[0][0]}: {frames.left_out[0][1]}"
            if left_out
            else "",
            "sampling": {
                "stored_frames": _STORED_PER_FRAME * self.clip.frames,
                "train": _described(self.scales),
                "test": "middle frame of each segment",
            },
            "crop": {"stored_px": list(frames.frame_NFHWC.shape[2:4]), "train": "random" + (", flipped" if self.flip else ""), "test": "centre"},
            "normal": self.normal,
            "decoder": decoder(),
            "frame_indices_digest": frames.indices_digest,
        }

    def _through(self, view: View) -> VideoFolder:
        other = copy(self)
        other.view = view
        return other

    def _clips(self, row_B: np.ndarray[tuple[int, ...], np.dtype[np.int64]], rng: np.random.Generator | None) -> Clips:
        """Clips of those rows of the stored frames; jittered, cropped and flipped at random if `rng` is given."""
        frames, (height, width) = self.frames, (self.clip.height, self.clip.width)
        total = frames.frame_NFHWC.shape[1]
        clips = []
        for row in row_B:
            if rng is None:
                chosen_T = sampling.uniform(total, self.clip.frames, self.view.clip, self.view.clips)
                clips.append(transforms.one_of_three(frames.frame_NFHWC[row, chosen_T], height, width, self.view.crop))
                continue
            # One scale is not drawn, so that the plain rule takes the random numbers it always took.
            scale = self.scales[int(rng.integers(len(self.scales)))] if len(self.scales) > 1 else self.scales[0]
            chosen_T = sampling.scaled(total, self.clip.frames, scale, rng)
            clip = transforms.random_crop(frames.frame_NFHWC[row, chosen_T], height, width, rng)
            clips.append(transforms.flipped(clip, rng) if self.flip else clip)
        video_B = np.array(frames.kept_N)[row_B]
        return Clips(
            clip_BTCHW=transforms.normalised(clips, self.normal),
            label_B=torch.from_numpy(self._label_V[video_B].astype(np.int64)),
            group_B=torch.from_numpy(self._group_V[video_B].astype(np.int64)),
        )


def _described(scales: tuple[float, ...]) -> str:
    plain = "random frame of each segment"
    return plain if scales == WHOLE else f"{plain} of a random window, as long as the video times one of {', '.join(f'{s:g}' for s in scales)}"
