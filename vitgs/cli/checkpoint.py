"""A checkpoint of `train`: what it is, read from the small JSON file beside its weights without torch; its model again; and data that fits it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitgs.errors import UsageError
from vitgs.record import Clip

if TYPE_CHECKING:
    from vitgs.cli.subject import Subject
    from vitgs.data.source import Source
    from vitgs.graphsampler.model import GraphSampler


def about_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Model, size, style, clip, knobs and data of the weights; an error in one line where one of the two files isn't what `train` writes."""
    beside = checkpoint.with_suffix(".json")
    for file in (checkpoint, beside):
        if not file.is_file():
            remedy = "make one with `vitgs-bench train`"
            raise UsageError("a checkpoint is a .safetensors file with its .json beside it", given=f"no {file}", remedy=remedy)
    try:
        about: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        Clip(**about["clip"]), about["knobs"].items()  # what `rebuilt` will ask of them
        return about | {name: about[name] for name in ("model", "size", "style", "clip", "knobs", "data")}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError("the .json beside a checkpoint is written by `train`", given=f"{beside}: {error}", remedy="train it again") from error


def rebuilt(about: Mapping[str, Any]) -> Subject:
    """The model of a description, in evaluation mode and still without its weights."""
    from vitgs.cli.subject import build

    knobs = {name: tuple(value) if isinstance(value, list) else value for name, value in about["knobs"].items()}
    return build(about["model"], size=about["size"], style=about["style"], clip=Clip(**about["clip"]), given=knobs)


def sampler(checkpoint: Path, about: Mapping[str, Any], needed_by: str, budget: float | None = None) -> GraphSampler:
    """graphsampler with its weights; one line of error for another system or a wrong budget. `needed_by`: which command needs it, and why."""
    from vitgs.backbone.weights import read_weights
    from vitgs.graphsampler.model import GraphSampler

    subject = rebuilt(about)
    if not isinstance(subject.model, GraphSampler):
        remedy = "give a checkpoint of `vitgs-bench train graphsampler`"
        raise UsageError(needed_by, given=f"a checkpoint of {about['model']}", remedy=remedy)
    if budget is not None:
        subject.system.space["budget"].check(subject.system.name, "budget", budget)
    subject.system.load(subject.model, read_weights(checkpoint))
    return subject.model


def data_for(shape: Clip, name: str, split: str, remedy: str = "give data with the same classes") -> Source:
    """Data in the clips that a model was trained on; an error in one line where the classes are others."""
    from vitgs import data

    source = data.open_data(name, split, frames=shape.frames, height=shape.height, width=shape.width)
    if source.clip.class_count != shape.class_count:
        raise UsageError(f"the model knows {shape.class_count} classes", given=f"{source.clip.class_count} in {source.name}", remedy=remedy)
    return source
