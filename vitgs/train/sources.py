"""What training asks of a data set, so that this package needs none: anything with these methods will do."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from torch import Tensor

from vitgs.record import Clip


class Clips(Protocol):
    """A batch: `(B, T, C, H, W)` float, labels `(B,)` int64, and the unit that a bootstrap resamples by."""

    @property
    def clip_BTCHW(self) -> Tensor: ...
    @property
    def label_B(self) -> Tensor: ...
    @property
    def group_B(self) -> Tensor: ...


class Source(Protocol):
    """One split of a data set."""

    @property
    def clip(self) -> Clip: ...
    @property
    def digest(self) -> str: ...
    @property
    def split(self) -> str: ...
    def batch(self, size: int, seed: int) -> Clips: ...
    def evaluation(self, count: int | None = None, seed: int = 0) -> Iterator[Clips]: ...
