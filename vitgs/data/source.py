"""What every data set looks like to training, evaluation and measurement, so that digits made on the fly and videos on disk are exchangeable.

Shapes: B batch, T frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch

from vitgs.errors import unknown
from vitgs.record import Clip, Views

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")


@dataclass(frozen=True, kw_only=True)
class Clips:
    """A batch: normalised float32 clips, int64 labels, int64 groups. Clips of one group share their source, so a bootstrap resamples groups."""

    clip_BTCHW: torch.Tensor
    label_B: torch.Tensor
    group_B: torch.Tensor

    def __len__(self) -> int:
        return self.label_B.shape[0]

    def first(self, count: int) -> Clips:
        """The first `count` clips."""
        return Clips(clip_BTCHW=self.clip_BTCHW[:count], label_B=self.label_B[:count], group_B=self.group_B[:count])


class Source(Protocol):
    """One split of one data set."""

    @property
    def name(self) -> str:
        """`digits:<task>`, or the folder's name."""

    @property
    def split(self) -> Split: ...

    @property
    def clip(self) -> Clip:
        """Shape and classes of its clips."""

    @property
    def digest(self) -> str:
        """Names the data set as a whole: equal digests, and the same split, clip shape and seed, give the same clips."""

    @property
    def counts(self) -> dict[str, int]:
        """How many independent sources (digit images, videos) each split has."""

    def batch(self, size: int, seed: int) -> Clips:
        """A batch for training that depends on (`seed`, split) alone; another seed gives another batch, without end."""

    def evaluation(self, count: int | None = None, seed: int = 0) -> Iterator[Clips]:
        """Fixed clips in batches, `count` in all; a smaller count is a prefix of a larger one. None: every video of a folder, 1,000 made clips."""

    @property
    def most_views(self) -> Views:
        """The most clips in time, and crops of each, that it has of one video."""

    def seen(self, views: Views) -> tuple[Source, ...]:
        """The source once for each view: the same videos in the same order. `UsageError` for views that it can't give."""

    def describe(self) -> dict[str, Any]:
        """What a record keeps: name, digest, split, counts, settings, and whatever was left out."""


def known_split(split: str) -> Split:
    """`split` itself when it is train, val or test; else the error that says so."""
    for known in SPLITS:
        if split == known:
            return known
    raise unknown("split", split, SPLITS)
