"""Names for the parts of a forward pass (select, backbone, merge, graph, memory, head), so that "fewer FLOPs but no faster" can be explained.

`with stage("graph"): …` does nothing unless a recorder listens, and nothing at all inside a compiled graph.
Stages may nest; a recorder sees properly nested enter and exit calls and can count own time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Literal, Protocol

import torch

StageName = Literal["select", "backbone", "merge", "graph", "memory", "head"]


class Recorder(Protocol):
    """What listens to stages."""

    def enter(self, name: str) -> None: ...

    def exit(self, name: str) -> None: ...


_active: ContextVar[Recorder | None] = ContextVar("vitgs_stage_recorder", default=None)


@contextlib.contextmanager
def _told(recorder: Recorder, name: str) -> Iterator[None]:
    recorder.enter(name)
    try:
        yield
    finally:
        recorder.exit(name)


def stage(name: StageName) -> AbstractContextManager[None]:
    """Marks the code under `with` as one stage."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    recorder = _active.get()
    return contextlib.nullcontext() if recorder is None else _told(recorder, name)


@contextlib.contextmanager
def recording(recorder: Recorder) -> Iterator[None]:
    """Lets `recorder` listen to all stages that run under `with` in this thread."""
    token = _active.set(recorder)
    try:
        yield
    finally:
        _active.reset(token)
