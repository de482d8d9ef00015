"""Blocks of calls of one warm model, timed. Imports torch and nothing of the project: it runs in any base's tree.

A model that runs on one thread of the CPU computes and never waits, so its time is this process's CPU time: whoever else takes the core meanwhile,
and a host that gives it to another guest, are not in it. (Work that makes a model wait without computing would not be, either.) More threads wait for
each other, and a GPU is waited for: they are timed by the wall.
"""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

SHORTEST_CALL_NS = 1_000_000  # shorter calls are timed several at once
WARM_S, WARM_CALLS = 0.03, 3
DISTURBED = 1.2  # wall over CPU time


class Warm:
    """A model that is timed, warm: it has run for a while, and calls too short for the clock are timed several at once."""

    def __init__(self, model: nn.Module, given: tuple[tuple[Any, ...], Mapping[str, Any]], *, device: str) -> None:
        self._model, self._given, self._device = model, given, device
        self._clock_ns = time.process_time_ns if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter_ns
        self._together = 1
        until, calls = time.perf_counter() + WARM_S, [self._call_ns() for _ in range(WARM_CALLS)]
        while time.perf_counter() < until:
            calls.append(self._call_ns())
        self._together = max(1, math.ceil(SHORTEST_CALL_NS / max(1.0, min(calls))))

    def block(self, calls: int) -> tuple[float, bool]:
        """The median time of so many calls in ms, and whether nobody came between: CPU time in which others had the core finds cold caches."""
        gc.disable()
        began_ns, computed_ns = time.perf_counter_ns(), time.process_time_ns()
        try:
            took_ms = statistics.median(self._call_ns() for _ in range(calls)) / 1e6
            wall_ns, own_ns = time.perf_counter_ns() - began_ns, time.process_time_ns() - computed_ns
            return took_ms, self._clock_ns is time.perf_counter_ns or wall_ns <= DISTURBED * own_ns
        finally:
            gc.enable()

    def _call_ns(self) -> float:
        cuda = self._device.startswith("cuda")
        with torch.inference_mode():
            if cuda:
                torch.cuda.synchronize()
            began_ns = self._clock_ns()
            for _ in range(self._together):
                self._model(*self._given[0], **self._given[1])
            if cuda:
                torch.cuda.synchronize()
            return (self._clock_ns() - began_ns) / self._together
