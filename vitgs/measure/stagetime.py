"""Where the time goes: each stage's share of an eager forward pass, and how much of the pass the stages cover.

Own time: a stage inside a stage is not counted twice. On CUDA the device is waited for at each stage's edge, so shares are right and the total is
longer than a free run's; that is why this is a pass of its own.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from vitgs.backbone import stages
from vitgs.measure.setting import no_collection, synchronise

FEWEST_PASSES, MOST_PASSES = 3, 50


@dataclass(frozen=True, kw_only=True)
class StageTimes:
    """`share`: stage -> median share of the pass's time. `coverage`: staged time over total; None, with the reason, where no stage is marked."""

    share: Mapping[str, float] = field(default_factory=dict)
    coverage: float | None = None
    passes: int = 0
    reason: str = ""


class _Stopwatch:
    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: list[str] = []
        self._since_ns = 0
        self.own_ns: defaultdict[str, int] = defaultdict(int)

    def _tick(self) -> None:
        synchronise(self._device)
        now_ns = time.perf_counter_ns()
        if self._open:
            self.own_ns[self._open[-1]] += now_ns - self._since_ns
        self._since_ns = now_ns

    def enter(self, name: str) -> None:
        self._tick()
        self._open.append(name)

    def exit(self, name: str) -> None:
        self._tick()
        self._open.pop()


def stage_times(call: Callable[[], object], *, seconds: float, device: torch.device) -> StageTimes:
    """Runs `call` for about that long, at least three times after one that is not counted."""
    passes: list[tuple[int, dict[str, int]]] = []
    call()
    deadline = time.perf_counter() + seconds
    with no_collection():
        while len(passes) < FEWEST_PASSES or (len(passes) < MOST_PASSES and time.perf_counter() < deadline):
            watch = _Stopwatch(device)
            synchronise(device)
            began_ns = time.perf_counter_ns()
            with stages.recording(watch):
                call()
            synchronise(device)
            passes.append((time.perf_counter_ns() - began_ns, dict(watch.own_ns)))
    names = list(dict.fromkeys(name for _, own in passes for name in own))
    if not names:
        return StageTimes(passes=len(passes), reason="the model marks no stages")
    share = {name: statistics.median(own.get(name, 0) / total for total, own in passes) for name in names}
    coverage = statistics.median(sum(own.values()) / total for total, own in passes)
    return StageTimes(share=share, coverage=coverage, passes=len(passes))
