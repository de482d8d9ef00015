"""The settings of the embedded tasks, as data: what a clip holds, how hard it is, what guessing and frame averaging can reach. No heavy import.

Chance is 1 / classes. `frame_average_ceiling` is the best accuracy of any model that sees the frames as an unordered bag, hence of any model that
averages features or logits over frames:

* appearance, moment: None. The label is a digit's identity, which one frame shows; order carries nothing.
* direction: 1/2. Playing a clip backwards maps direction d onto its opposite, keeps the bag of frames, and keeps the probability of the clip (paths
  of opposite directions are each other's exact reversal, clutter and noise are independent and equal in all frames). So a bag tells the line (4 of
  them) and never the sense.
* order: 1/2. The same reversal maps "a then b" onto "b then a": the pairs of starting times are drawn uniformly from a set that is symmetric in
  time. A bag tells the set of two digits and never who came first.
* link: 1/2. Reversal maps (identity, left) onto (identity, right), since the path of those who return is a palindrome, so the sense is lost to a
  bag. Who moved is not lost in principle: the places of two digits in one frame are correlated in a way that differs for mover and returners. Without
  those correlations (each digit is at each of its cells equally often moving or returning) the guess is one of three identities and one of two
  senses, `marginal_ceiling` = 1/6. Enumerated: the best bag model reaches exactly 1/2, one that follows each digit apart exactly 1/6, and a linear
  one on averaged codes of whole frames about 1/4.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

from vitgs.errors import UsageError, unknown
from vitgs.record import digest

GENERATOR_VERSION = 2
DIGIT_PX = 8
FRAGMENT_PX = 8
STILL_SHARES = 4  # a still's label says where its digit is, in quarters of the height and of the width
DIRECTIONS = ("right", "down right", "down", "down left", "left", "up left", "up", "up right")


@dataclass(frozen=True, kw_only=True)
class Task:
    """One task. `name` picks the generator (appearance, direction, moment, order, link, stills); all else is difficulty.

    A digit is `scale` x 8 px wide and stands on a grid of `grid_px`. Each frame has `fragments` pieces of digits and `scrambled` digits in pieces;
    `scrambled_share` is the chance of each scrambled one. `noise` is the standard deviation over the whole clip, pixel values being 0 to 1.
    `identities`: the first so many digits take part. An event lasts `flash_frames`; two events keep `gap_frames` frames between them (None: a quarter
    of the clip). `objects`, `travel_cells`: digits in a `link` clip and how far each goes. `small_share`: the share of stills with a digit at
    scale 1 on an 8-px grid.
    """

    name: str
    frames: int = 8
    height: int = 32
    width: int = 32
    noise: float = 0.2
    scale: int = 2
    grid_px: int = 4
    fragments: int = 1
    scrambled: int = 1
    scrambled_share: float = 1.0
    identities: int = 10
    flash_frames: int = 2
    gap_frames: int | None = None
    objects: int = 3
    travel_cells: int = 2
    small_share: float = 0.5

    def __post_init__(self) -> None:
        if self.name not in GENERATORS:
            raise unknown("digit task", self.name, GENERATORS)
        least = {"frames": 1, "scale": 1, "grid_px": 1, "fragments": 0, "scrambled": 0, "flash_frames": 1, "objects": 1, "travel_cells": 1}
        for field, low in least.items():
            if getattr(self, field) < low:
                raise UsageError(
                    f"{field} of task {self.name} must be at least {low}", given=getattr(self, field), remedy=f"set {field} to {low} or more"
                )
        if not 2 <= self.identities <= 10:
            raise UsageError("a task has 2 to 10 digits", given=self.identities, remedy="set identities to 10 or less")
        room = min(self.height, self.width)
        if self.name == "link" and room < self.digit_px * max(self.objects, self.travel_cells + 1):
            raise UsageError(
                "a link clip needs a row per digit and room to travel",
                given=f"{room} px",
                remedy="make the clip larger, or set objects or scale lower",
            )
        if self.name == "link" and (self.frames % 2 or self.travel_cells % 2):
            raise UsageError(
                "a link clip has even numbers of frames and of cells to travel, so that a mover and a returner look alike without time",
                given=f"{self.frames} frames, {self.travel_cells} cells",
                remedy="set both to even numbers",
            )
        if self.name == "link" and self.objects > self.identities:
            raise UsageError(
                "a link clip's digits differ", given=f"{self.objects} of {self.identities}", remedy="set objects lower or identities higher"
            )
        if room < self.digit_px or room < FRAGMENT_PX:
            raise UsageError(
                "a clip must be at least as large as a digit",
                given=f"{room} px, digit {self.digit_px} px",
                remedy="make the clip larger or set scale to 1",
            )
        if self.name == "order" and 2 * self.flash_frames + self.gap > self.frames:
            raise UsageError(
                "a clip must have room for two events and the gap between them",
                given=f"{self.frames} frames, 2 x {self.flash_frames} + {self.gap}",
                remedy=f"use at least {2 * self.flash_frames + self.gap} frames, or set flash_frames or gap_frames lower",
            )
        if self.name == "moment" and self.flash_frames > self.frames:
            raise UsageError(
                "the event must fit into the clip", given=f"{self.flash_frames} of {self.frames} frames", remedy="set flash_frames lower"
            )

    @property
    def gap(self) -> int:
        """Frames without an event that lie at least between two events."""
        return self.frames // 4 if self.gap_frames is None else self.gap_frames

    @property
    def digit_px(self) -> int:
        return self.scale * DIGIT_PX

    @property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The ordered pairs of different identities, by label."""
        return tuple((a, b) for a in range(self.identities) for b in range(self.identities) if a != b)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by label."""
        if self.name == "direction":
            return DIRECTIONS
        if self.name == "order":
            return tuple(f"{a} then {b}" for a, b in self.pairs)
        if self.name == "link":
            return tuple(f"{digit} {sense}" for digit in range(self.identities) for sense in ("left", "right"))
        if self.name == "stills":
            return tuple(f"{digit} at {y},{x}" for digit in range(self.identities) for y in range(STILL_SHARES) for x in range(STILL_SHARES))
        return tuple(str(digit) for digit in range(self.identities))

    @property
    def chance(self) -> float:
        return 1 / len(self.class_names)

    @property
    def frame_average_ceiling(self) -> float | None:
        """Best accuracy of a model for which the frames are an unordered bag; None where order carries nothing. Derived at the top of this file."""
        return 0.5 if self.name in ("direction", "order", "link") else None

    @property
    def marginal_ceiling(self) -> float | None:
        """`link` only: the guess of a bag model that follows each digit apart."""
        return 1 / (2 * self.objects) if self.name == "link" else None

    @property
    def digest(self) -> str:
        """Changes with every setting and with the generator: equal digests mean equal clips for equal seeds."""
        return digest({"generator": GENERATOR_VERSION, **asdict(self)})


GENERATORS = ("appearance", "direction", "moment", "order", "link", "stills")

TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(name="appearance"),
        Task(name="direction", fragments=2, scrambled=2),
        Task(name="moment", grid_px=8, flash_frames=3),
        Task(name="order", grid_px=8, identities=4),
        Task(name="link", grid_px=8, scale=1, fragments=1, scrambled=0, noise=0.1, identities=2, objects=2),
    )
}
STILLS = Task(name="stills", frames=1, scrambled_share=0.25)
