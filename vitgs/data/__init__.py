"""Data sets behind one interface: `open_data("digits:moment", "train")` or `open_data("my/videos", "test", frames=8, height=224, width=224)`.

Importing this module is cheap: no torch, no numpy, so that listing names is immediate.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from vitgs.data.task import STILLS, TASKS
from vitgs.errors import UsageError, unknown

if TYPE_CHECKING:
    from vitgs.data.source import Source

PREFIX = "digits:"
WHOLE = (1.0,)  # a training clip covers the whole video


def names() -> list[str]:
    """The embedded data sets, as `open_data` takes them."""
    return [PREFIX + name for name in TASKS]


def open_data(
    spec: str,
    split: str,
    *,
    frames: int | None = None,
    height: int | None = None,
    width: int | None = None,
    scales: tuple[float, ...] = WHOLE,
) -> Source:
    """One split of an embedded task (`digits:<task>`) or of a folder of videos; sizes default to the task's own, and to 8 x 224 x 224 for videos.

    `scales`: shares of a video that a training clip may cover, for folders.
    """
    if spec.startswith(PREFIX):
        if scales != WHOLE:
            given = ",".join(f"{scale:g}" for scale in scales)
            raise UsageError("temporal scales are for folders of videos", given=f"{given} with {spec}", remedy="leave them out")
        from vitgs.data.digits import Digits, named_task

        task = named_task(spec.removeprefix(PREFIX))
        frames = task.frames if frames is None or task.name == STILLS.name else frames
        return Digits(replace(task, frames=frames, height=_given(height, task.height), width=_given(width, task.width)), split)
    if spec in TASKS or spec == PREFIX.rstrip(":"):
        remedy = f"write {PREFIX}{spec if spec in TASKS else '<task>'}; known: {', '.join(names())}"
        raise UsageError("a data set is named digits:<task> or is a folder of videos", given=repr(spec), remedy=remedy)
    if not Path(spec).expanduser().exists() and "/" not in spec:
        raise unknown("data set", spec, names())
    from vitgs.data.folder import VideoFolder

    return VideoFolder(Path(spec), split, frames=_given(frames, 8), height=_given(height, 224), width=_given(width, 224), scales=scales)


def _given(value: int | None, default: int) -> int:
    return default if value is None else value
