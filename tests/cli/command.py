"""Runs command lines in this process and keeps what they print."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import vitgs


@dataclass(frozen=True, kw_only=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The JSON document in the last line."""
        return json.loads(self.out.splitlines()[-1])


Ran = Callable[[list[str]], Done]


def command() -> list[str]:
    """The command of a fresh process."""
    return [sys.executable, "-m", "vitgs"]


def from_anywhere() -> dict[str, str]:
    """The environment of a process that isn't started in the checkout, where the package need not be installed."""
    return {**os.environ, "PYTHONPATH": str(Path(vitgs.__file__).parents[1])}


def one_line(done: Done, code: int) -> str:
    """The one line of a known error, without its line break; nothing else may have been printed."""
    assert (done.code, done.out) == (code, ""), done
    assert done.err.startswith("error: "), done
    assert done.err.count("\n") == 1, done
    return done.err.rstrip("\n")
