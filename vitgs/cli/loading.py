"""`--weights`: what of a file went into a model is told, and a file of another system or another size is refused.

Loading fills what fits and leaves the rest as it was built, so that a head for other classes can be trained. Without a word, a file that fits nowhere
would be a model trained from nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from vitgs.backbone.weights import OWN, LoadReport, read_weights
from vitgs.errors import UsageError
from vitgs.spec import System

NAMED = 3


def load_and_tell(system: System, model: nn.Module, weights: str) -> LoadReport:
    """Fills `model` from a file, in any layout known for the system, or from `timm:NAME`; one line on stderr for each kind of what didn't fit."""
    state = _from_timm(weights.removeprefix("timm:")) if weights.startswith("timm:") else read_weights(Path(weights).expanduser())
    report = system.load(model, state, strict=False)
    elsewhere = tuple(line for line in report.mismatched if not _of_a_head(line))
    unlike = _words(report.unexpected, "left over") + _words(report.missing, "missing") + _words(elsewhere, "of another shape")
    if report.layout == OWN.name and unlike:
        raise UsageError(
            "a checkpoint under our own names must be of this system, built with the same size, frames and knobs",
            given=f"{weights}: {'; '.join(unlike)}",
            remedy="take those that it was trained with (its .json, if `train` wrote it)",
        )
    if any(".blocks." in line for line in elsewhere):
        raise UsageError(
            "weights must be of the model's size and kind",
            given=f"{weights}: {'; '.join(_words(elsewhere, 'of another shape'))}",
            remedy="set --size, --style and knobs as they were trained with",
        )
    as_built = (*report.missing, *(line.partition(":")[0] for line in report.mismatched))
    total = len(model.state_dict())
    lines = [f"{total - len(as_built)} of {total} tensors from a {report.layout} file"]
    lines += _words(as_built, "as built") + _words(report.unexpected, "left over") + _words(report.mismatched, "of another shape (file, model)")
    print("\n".join(f"weights: {line}" for line in lines), file=sys.stderr)
    return report


def _of_a_head(mismatched: str) -> bool:
    return mismatched.partition(".")[0].endswith("head")


def _words(names: Sequence[str], kind: str) -> list[str]:
    some = ", ".join(names[:NAMED]) + (" ..." if len(names) > NAMED else "")
    return [f"{len(names)} {kind}: {some}"] if names else []


def _from_timm(name: str) -> dict[str, Tensor]:
    import timm

    if not timm.is_model(name):
        raise UsageError("--weights timm:NAME names a model of timm", given=repr(name), remedy="see timm.list_models(pretrained=True)")
    try:
        state: dict[str, Tensor] = timm.create_model(name, pretrained=True).state_dict()
    except (OSError, RuntimeError) as error:
        raise UsageError(f"the weights of timm's {name} must be at hand", given=error, remedy="connect once, or give a local file") from error
    return state
