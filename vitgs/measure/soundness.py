"""When a model can't be measured: out of memory, failing, or answering anything but finite logits. A speed of nonsense is no speed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from vitgs.errors import VitgsError
from vitgs.record import Clip


class NotMeasurable(VitgsError):
    """This model gives no measurement. `flags` go into its record."""

    exit_code = 1
    flags: tuple[str, ...] = ()


class OutOfMemory(NotMeasurable):
    """The device had not enough memory at the stated batch, which is a result; the batch is never made smaller silently."""

    flags = ("oom",)


def check(logits: object, batch: int, clip: Clip) -> None:
    """Raises unless these are finite logits `(batch, classes)`."""
    if not isinstance(logits, Tensor) or tuple(logits.shape) != (batch, clip.class_count):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        rule = f"a measured model must give logits of shape {(batch, clip.class_count)}"
        raise NotMeasurable(rule, given=given, remedy="check the model's head and its clip")
    if not bool(torch.isfinite(logits).all()):
        bad = int((~torch.isfinite(logits)).sum())
        raise NotMeasurable(
            "a measured model must give finite logits", given=f"{bad} of {logits.numel()} are not", remedy="check its weights, or measure in float32"
        )


@contextlib.contextmanager
def known_failures() -> Iterator[None]:
    """Turns what a model raises into one line; its own traceback stays attached as the cause."""
    try:
        yield
    except (RuntimeError, MemoryError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        text = " ".join(str(error).split())[:300]
        if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in text or "out of memory" in text.lower():
            remedy = "measure a smaller batch, clip or size"
            raise OutOfMemory("a model must fit into memory at the stated batch", given=text or "out of memory", remedy=remedy) from error
        given = f"{type(error).__name__}: {text}"
        raise NotMeasurable("a measured model must run", given=given, remedy="run it once on such a clip by hand") from error
