"""Options that several commands share, and how their text becomes values."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from vitgs.errors import UsageError
from vitgs.record import Views

Model = Annotated[str, typer.Argument(help="A system (see `list models`), `package.module:factory`, or a .py file.")]
SizeName = Annotated[str, typer.Option("--size", help="Row of the table of sizes: Ti, S, B, L, H, or a small one.")]
StyleName = Annotated[str, typer.Option("--style", help="in21k, deit, dinov2, clip, or digits.")]
Frames = Annotated[int, typer.Option("--frames", help="Frames of a clip.")]
Resolution = Annotated[int, typer.Option("--resolution", help="Height and width of a frame in pixels.")]
Classes = Annotated[int, typer.Option("--classes", help="Classes.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="KNOB=VALUE", help="Set a knob; may be repeated.")]
Weights = Annotated[str | None, typer.Option("--weights", metavar="FILE|timm:NAME", help="Weights to load: a local file, or a timm model's.")]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1 ...")]
AsJson = Annotated[bool, typer.Option("--json", help="Last line of stdout is one JSON document.")]


def settings(given: Sequence[str] | None) -> dict[str, Any]:
    """`["budget=0.25", "attention=divided"]` -> `{"budget": 0.25, "attention": "divided"}`. A JSON list becomes a tuple, `.25` and `1.` are numbers
    too; what isn't JSON is text."""
    found: dict[str, Any] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise UsageError("--set takes knob=value", given=repr(text), remedy="write, say, --set budget=0.25")
        if name in found:
            raise UsageError("a knob is set once", given=f"{name} twice", remedy=f"leave one --set {name}= out")
        found[name] = _value(value)
    return found


def _value(text: str) -> Any:
    try:
        value = json.loads(text, parse_constant=str)
    except ValueError:
        return float(text) if re.fullmatch(r"[+-]?(\d+\.|\.\d+)", text) else text
    return tuple(value) if isinstance(value, list) else value


def names(given: Sequence[str] | None) -> list[str] | None:
    """`["a,b", "c"]`, an option given twice, -> `["a", "b", "c"]`; None and empty are None."""
    return [part.strip() for text in given or () for part in text.split(",") if part.strip()] or None


def positive(option: str, value: float | None) -> None:
    """Refuses zero and less."""
    if value is not None and not value > 0:
        raise UsageError(f"{option} must be above 0", given=f"{value:g}", remedy=f"give {option} a positive number")


def views(text: str) -> Views:
    """`2x3` -> two clips of three crops each."""
    if not (parts := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)):
        raise UsageError("--views must be clips x crops", given=repr(text), remedy="write, say, --views 2x3 for two clips of three crops each")
    return Views(clips=int(parts[1]), crops=int(parts[2]))


def numbers(option: str, text: str) -> tuple[float, ...]:
    """`1,0.5` -> `(1.0, 0.5)`."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"{option} takes numbers with commas between", given=repr(text), remedy=f"write, say, {option} 1,0.5") from error
