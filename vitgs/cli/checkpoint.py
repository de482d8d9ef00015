"""What a checkpoint of `train` is: read from the small JSON file beside its weights, without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitgs.errors import UsageError


def about_checkpoint(checkpoint: Path) -> dict[str, Any]:
    """Model, size, style, clip, knobs and data of the weights; an error in one line where one of the two files isn't what `train` writes."""
    beside = checkpoint.with_suffix(".json")
    for file in (checkpoint, beside):
        if not file.is_file():
            remedy = "make one with `vitgs-bench train`"
            raise UsageError("a checkpoint is a .safetensors file with its .json beside it", given=f"no {file}", remedy=remedy)
    try:
        about: dict[str, Any] = json.loads(beside.read_text(encoding="utf-8"))
        return about | {name: about[name] for name in ("model", "size", "style", "clip", "knobs", "data")}
    except (ValueError, KeyError) as error:
        raise UsageError("the .json beside a checkpoint is written by `train`", given=f"{beside}: {error}", remedy="train it again") from error
