"""scikit-learn's handwritten digits, split once by image, and the two kinds of clutter made from them: fragments and scrambled digits.

Shapes: N images of a split, M pictures to paint, h and w in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitgs.data.source import Split
from vitgs.data.task import DIGIT_PX, FRAGMENT_PX

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]

COUNTS: dict[str, int] = {"test": 500, "val": 300, "train": 997}
_SPLIT_SEED = 1797
# Where each quadrant (top left, top right, bottom left, bottom right) comes from: no quadrant stays, and top and bottom are never merely swapped,
# since that would leave a 1 a 1 and an 8 an 8.
_QUADRANTS = ((1, 0, 3, 2), (1, 2, 3, 0), (1, 3, 0, 2), (2, 0, 3, 1), (2, 3, 1, 0), (3, 0, 1, 2), (3, 2, 0, 1), (3, 2, 1, 0))


@dataclass(frozen=True, kw_only=True)
class Images:
    """The images of one split: pixels in 0 to 1, labels, and their places in scikit-learn's array (what a bootstrap resamples)."""

    pixels_Nhw: Floats
    label_N: Ints
    index_N: Ints
    by_label: tuple[Ints, ...]

    def pick(self, label_M: Ints, rng: np.random.Generator) -> Ints:
        """For each label the place in this split of a random image of it."""
        count_L = np.array([len(places) for places in self.by_label])
        table = np.stack([np.resize(places, count_L.max()) for places in self.by_label])
        return table[label_M, rng.integers(0, count_L[label_M])]

    def digits(self, place_M: Ints, scale: int) -> Floats:
        """The images at those places, enlarged by repeating pixels."""
        return _enlarge(self.pixels_Nhw[place_M], scale)

    def scrambled(self, count: int, scale: int, rng: np.random.Generator) -> Floats:
        """Random digits with their quadrants moved: the same pixels as a digit, yet none."""
        pixels = self.pixels_Nhw[rng.integers(0, len(self.label_N), count)].reshape(count, DIGIT_PX * DIGIT_PX)
        order = _scrambles()[rng.integers(0, len(_QUADRANTS), count)]
        return _enlarge(np.take_along_axis(pixels, order, axis=1).reshape(count, DIGIT_PX, DIGIT_PX), scale)

    def fragments(self, count: int, rng: np.random.Generator) -> Floats:
        """Random pieces of 8 x 8 px out of digits enlarged twice."""
        large = _enlarge(self.pixels_Nhw[rng.integers(0, len(self.label_N), count)], 2)
        windows = np.lib.stride_tricks.sliding_window_view(large, (FRAGMENT_PX, FRAGMENT_PX), axis=(1, 2))
        top, left = rng.integers(0, windows.shape[1], (2, count))
        picked: Floats = windows[np.arange(count), top, left]
        return picked


def _enlarge(pixels_Mhw: Floats, scale: int) -> Floats:
    return pixels_Mhw if scale == 1 else pixels_Mhw.repeat(scale, axis=1).repeat(scale, axis=2)


@lru_cache(maxsize=1)
def _scrambles() -> Ints:
    half = DIGIT_PX // 2
    place = np.arange(DIGIT_PX * DIGIT_PX).reshape(2, half, 2, half).transpose(0, 2, 1, 3).reshape(4, half, half)
    moved = [place[list(order)].reshape(2, 2, half, half).transpose(0, 2, 1, 3).reshape(-1) for order in _QUADRANTS]
    return np.stack(moved).astype(np.int64)


@lru_cache(maxsize=1)
def _splits() -> tuple[Floats, Ints, dict[str, Ints]]:
    from sklearn.datasets import load_digits

    pixels, label = load_digits(return_X_y=True)
    label = label.astype(np.int64)
    shuffled = np.random.Generator(np.random.PCG64(_SPLIT_SEED)).permutation(len(label))
    # The rank of an image within its class, as a share of the class, spreads every class evenly over the list that is then cut in three.
    share = np.empty(len(label))
    for digit in range(10):
        members = shuffled[label[shuffled] == digit]
        share[members] = (np.arange(len(members)) + 0.5) / len(members)
    queue = shuffled[np.argsort(share[shuffled], kind="stable")]
    ends = np.cumsum(list(COUNTS.values()))
    parts = {name: np.sort(part) for name, part in zip(COUNTS, np.split(queue, ends[:-1]), strict=True)}
    return (pixels / 16).astype(np.float32).reshape(-1, DIGIT_PX, DIGIT_PX), label, parts


@lru_cache(maxsize=3)
def images(split: Split) -> Images:
    """The images of a split: test 500, val 300, train 997, no image in two, classes alike in all."""
    pixels, label, parts = _splits()
    index_N = parts[split]
    label_N = label[index_N]
    return Images(
        pixels_Nhw=pixels[index_N], label_N=label_N, index_N=index_N, by_label=tuple(np.flatnonzero(label_N == digit) for digit in range(10))
    )
