"""The embedded data set: clips made on the fly from real handwritten digits, deterministic by seed, so that the main job needs no download."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from vitgs.data.digits_images import COUNTS, Floats, Ints, images
from vitgs.data.digits_tasks import PAINTERS
from vitgs.data.source import SPLITS, Clips, Split, known_split
from vitgs.data.task import GENERATOR_VERSION, STILLS, TASKS, Task
from vitgs.errors import UsageError, unknown
from vitgs.record import Clip, Views

EVALUATION_CLIPS = 1000
_EVALUATION_BATCH = 40
_MEAN, _STD = 0.12, 0.32  # of the pixels of all tasks with noise 0.2, rounded


class Digits:
    """One split of one task; `task` by name or with settings of one's own."""

    def __init__(self, task: str | Task, split: str) -> None:
        self.task: Task = named_task(task) if isinstance(task, str) else task
        self.split: Split = known_split(split)
        self.name = f"digits:{self.task.name}"
        self.digest = self.task.digest
        names = self.task.class_names
        self.clip = Clip(frames=self.task.frames, height=self.task.height, width=self.task.width, channels=3, classes=len(names), class_names=names)

    @property
    def counts(self) -> dict[str, int]:
        """Digit images of each split."""
        return {split: COUNTS[split] for split in SPLITS}

    def batch(self, size: int, seed: int) -> Clips:
        """Fresh clips with balanced labels, the same for the same (seed, split)."""
        if size < 1 or seed < 0:
            raise UsageError("a batch has at least one clip and a seed of 0 or more", given=f"size {size}, seed {seed}", remedy="set both so")
        rng = self._generator(0, seed)
        classes = self.clip.class_count
        return self._paint(rng.permutation((rng.integers(classes) + np.arange(size)) % classes), rng)

    def evaluation(self, count: int | None = None, seed: int = 0) -> Iterator[Clips]:
        """The split's fixed clips; labels take turns, so that every prefix is balanced."""
        wanted = EVALUATION_CLIPS if count is None else count
        for start in range(0, wanted, _EVALUATION_BATCH):
            label_B = (start + np.arange(_EVALUATION_BATCH)) % self.clip.class_count
            yield self._paint(label_B, self._generator(1, seed, start)).first(wanted - start)

    @property
    def most_views(self) -> Views:
        """One: a clip is made as it is, and there is no longer or larger video around it."""
        return Views()

    def seen(self, views: Views) -> tuple[Digits, ...]:
        if views != Views():
            raise UsageError(f"{self.name} has one view, since its clips are whole videos", given=views, remedy="use 1x1, or a folder of videos")
        return (self,)

    def describe(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "digest": self.digest,
            "split": self.split,
            "counts": self.counts,
            "chance": self.task.chance,
            "frame_average_ceiling": self.task.frame_average_ceiling,
            "settings": asdict(self.task),
            "generator": GENERATOR_VERSION,
        }

    def _generator(self, *entropy: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence([GENERATOR_VERSION, SPLITS.index(self.split), *entropy])))

    def _paint(self, label_B: Ints, rng: np.random.Generator) -> Clips:
        scene_BTHW, group_B = PAINTERS[self.task.name](self.task, images(self.split), label_B, rng)
        pixels = torch.from_numpy(_normalised(scene_BTHW, self.task.noise, rng))
        # Three equal channels as a view: the bytes of one are enough.
        clip_BTCHW = pixels[:, :, None].expand(-1, -1, self.clip.channels, -1, -1)
        return Clips(clip_BTCHW=clip_BTCHW, label_B=torch.from_numpy(label_B.astype(np.int64)), group_B=torch.from_numpy(group_B.astype(np.int64)))


def Stills(split: str, task: Task = STILLS) -> Digits:
    """Single images (T = 1) for the image pretraining, of the same splits: an encoder that has seen them has seen no test digit."""
    return Digits(task, split)


def named_task(name: str) -> Task:
    """The task's default settings."""
    known = {**TASKS, STILLS.name: STILLS}
    if name not in known:
        raise unknown("digit task", name, known)
    return known[name]


def pixels(clip_BTCHW: torch.Tensor) -> torch.Tensor:
    """Pixel values as painted (0 to 1, and noise beyond) from normalised ones."""
    return clip_BTCHW * _STD + _MEAN


def _normalised(scene_BTHW: Floats, noise: float, rng: np.random.Generator) -> Floats:
    if noise:
        grain = rng.standard_normal(scene_BTHW.shape, dtype=np.float32)
        grain *= np.float32(noise)
        scene_BTHW += grain
    scene_BTHW -= np.float32(_MEAN)
    scene_BTHW *= np.float32(1 / _STD)
    return scene_BTHW
