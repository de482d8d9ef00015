"""Puts labels beside points so that none covers another; a label without a free place is left out, the legend has it anyway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Box:
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        return self.left < other.right and other.left < self.right and self.bottom < other.top and other.bottom < self.top

    def inside(self, other: Box) -> bool:
        return self.left >= other.left and self.right <= other.right and self.bottom >= other.bottom and self.top <= other.top


def place(
    anchors: Sequence[tuple[float, float]], sizes: Sequence[tuple[float, float]], taken: Sequence[Box], frame: Box, gap: float
) -> list[Box | None]:
    """One box for each anchor, the first of the places around it (near before far) that is free, in the order given; None where all are taken."""
    occupied = list(taken)
    found: list[Box | None] = []
    for (x, y), (width, height) in zip(anchors, sizes, strict=True):
        boxes = (_at(x + dx, y + dy, width, height, side) for dx, dy, side in _offsets(gap, height))
        free = next((box for box in boxes if box.inside(frame) and not any(box.overlaps(other) for other in occupied)), None)
        found.append(free)
        if free is not None:
            occupied.append(free)
    return found


def _offsets(gap: float, height: float) -> list[tuple[float, float, int]]:
    near = [(gap, 0.0, 1), (0.0, gap + height / 2, 0), (-gap, 0.0, -1), (0.0, -gap - height / 2, 0)]
    return near + [(side * gap * reach, sign * reach * height * 0.8, side) for reach in (1, 1.6, 2.3, 3.2) for sign in (1, -1) for side in (1, -1)]


def _at(x: float, y: float, width: float, height: float, side: int) -> Box:
    left = x if side > 0 else x - width if side < 0 else x - width / 2
    return Box(left=left, bottom=y - height / 2, right=left + width, top=y + height / 2)
