"""Timing by blocks of calls, all subjects of one comparison interleaved in random order, so that a slow minute hits everyone alike.

A block is enough calls to last 5 ms and 100 ticks of the clock; the device is waited for at its end. Every round times each subject once, the
anchor included; ratios are taken inside a round.

Stopping when an interval is narrow picks the runs in which it is narrow by luck, and these hold the truth less often than they say. Two things keep
that small: for stopping, no series counts as better than independent blocks, and all must be narrow at two looks in a row. (When time is up, the
last look alone says what is unstable.)
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from vitgs.errors import UnfitMachine, UsageError
from vitgs.measure.intervals import estimate, half_width, percentiles, ratio
from vitgs.measure.setting import no_collection, synchronise

__all__ = ["Timing", "estimate", "half_width", "percentiles", "ratio", "resolution_ns", "time_interleaved"]

SHORTEST_BLOCK_NS = 5_000_000
TICKS_PER_BLOCK = 100
FEWEST_ROUNDS = 6  # the fewest that give an interval; calls so slow that they need three times the time given stop at 3
SLOWEST_ROUNDS = 3
STABLE = 0.05
WARMUP_SHARE = 0.2
LOOK_AGAIN = 1.1  # at so many times the rounds: looking costs time, and every look is a chance to stop by luck
LOOKS_IN_A_ROW = 2

Clock = Callable[[], int]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """`blocks_ms`: time per call of each block, in the order of the rounds, nothing dropped. `device_blocks_ms`: the same by CUDA events, empty on
    CPU. `unstable`: time ran out before the interval was narrow enough."""

    blocks_ms: tuple[float, ...]
    device_blocks_ms: tuple[float, ...]
    calls_per_block: int
    first_call_ms: float
    warmup_s: float
    unstable: bool


def resolution_ns(clock_ns: Clock = time.perf_counter_ns) -> int:
    """The smallest step seen on this clock; a clock that doesn't move makes the machine unfit."""
    steps = []
    for _ in range(5):
        start = clock_ns()
        step = next((now - start for now in (clock_ns() for _ in range(200_000)) if now != start), 0)
        if step <= 0:
            raise UnfitMachine("the clock must move forward while it is read", given=f"a step of {step} ns", remedy="check the clock source")
        steps.append(step)
    return min(steps)


def time_interleaved(
    calls: Mapping[str, Callable[[], object]],
    *,
    target_half_width: float,
    min_blocks: int,
    max_seconds: float,
    rng_seed: int,
    anchor: str | None = None,
    device: torch.device | None = None,
    clock_ns: Clock = time.perf_counter_ns,
) -> dict[str, Timing]:
    """Times all calls side by side until each one's interval, and its ratio's to `anchor`, is under the target (a share), or time is up.

    At least six rounds are run, even if that takes up to three times the time given; three, whatever the time.
    """
    if not calls or (anchor is not None and anchor not in calls):
        raise UsageError("the anchor must be among the calls that are timed", given=anchor, remedy=f"name one of {', '.join(calls) or 'none'}")
    device = device or torch.device("cpu")
    shortest_ns = max(SHORTEST_BLOCK_NS, TICKS_PER_BLOCK * resolution_ns(clock_ns))
    began_ns = clock_ns()
    share_ns = int(max_seconds * 1e9 * WARMUP_SHARE / len(calls))
    subjects = {name: _Subject(call, device, clock_ns, shortest_ns, share_ns) for name, call in calls.items()}
    order, rounds, rng = list(calls), 0, random.Random(rng_seed)
    next_look = max(int(min_blocks / LOOK_AGAIN), FEWEST_ROUNDS)  # so that the second look may come at the fewest blocks asked for
    unsettled, in_a_row = set(calls), 0
    with no_collection():
        while True:
            rng.shuffle(order)
            for name in order:
                subjects[name].block()
            rounds += 1
            spent_s = (clock_ns() - began_ns) / 1e9
            late = (spent_s >= max_seconds and rounds >= FEWEST_ROUNDS) or (spent_s >= 3 * max_seconds and rounds >= SLOWEST_ROUNDS)
            if late or rounds >= next_look:
                next_look = max(min_blocks, math.ceil(rounds * LOOK_AGAIN))
                unsettled = {name for name in calls if not _settled(subjects, name, anchor, target_half_width)}
                in_a_row = 0 if unsettled else in_a_row + 1
                if late or in_a_row == LOOKS_IN_A_ROW:
                    break
    return {name: subject.timing(unstable=name in unsettled or rounds < min_blocks) for name, subject in subjects.items()}


class _Subject:
    """One thing that is timed: its first call, its warm-up, its blocks."""

    def __init__(self, call: Callable[[], object], device: torch.device, clock_ns: Clock, shortest_ns: int, warmup_ns: int) -> None:
        self._call, self._device, self._clock_ns = call, device, clock_ns
        self.blocks_ms: list[float] = []
        self.device_blocks_ms: list[float] = []
        self._calls = 1
        self.first_call_ms, _ = self._timed(1)
        began_ns, last = clock_ns(), [self.first_call_ms]
        # Warm until three blocks in a row agree; with the same instrument as the measurement.
        while clock_ns() - began_ns < warmup_ns:
            per_call_ms, _ = self._timed(self._calls)
            last = [*last[-2:], per_call_ms]
            self._calls = max(1, math.ceil(shortest_ns / 1e6 / min(last)))
            if len(last) == 3 and max(last) <= (1 + STABLE) * min(last):
                break
        self._warmup_s = (clock_ns() - began_ns) / 1e9

    def block(self) -> None:
        wall_ms, device_ms = self._timed(self._calls)
        self.blocks_ms.append(wall_ms)
        if device_ms is not None:
            self.device_blocks_ms.append(device_ms)

    def timing(self, *, unstable: bool) -> Timing:
        return Timing(
            blocks_ms=tuple(self.blocks_ms),
            device_blocks_ms=tuple(self.device_blocks_ms),
            calls_per_block=self._calls,
            first_call_ms=self.first_call_ms,
            warmup_s=self._warmup_s,
            unstable=unstable,
        )

    def _timed(self, count: int) -> tuple[float, float | None]:
        """Wall time per call, and by the device's own events where it has them, in ms."""
        cuda = self._device.type == "cuda"
        synchronise(self._device)
        if cuda:
            with torch.cuda.device(self._device):
                first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began_ns = self._clock_ns()
        if cuda:
            first.record(torch.cuda.current_stream(self._device))
        for _ in range(count):
            self._call()
        if cuda:
            last.record(torch.cuda.current_stream(self._device))
        synchronise(self._device)
        elapsed_ns = self._clock_ns() - began_ns
        if elapsed_ns < count:
            raise UnfitMachine("the clock must move forward during a block", given=f"{elapsed_ns} ns", remedy="check the machine's clock source")
        return round(elapsed_ns / 1e6 / count, 6), round(first.elapsed_time(last) / count, 6) if cuda else None


def _settled(subjects: Mapping[str, _Subject], name: str, anchor: str | None, target: float) -> bool:
    own = subjects[name].blocks_ms
    if half_width(estimate(own, least_time=1.0)) > target:
        return False
    return anchor is None or name == anchor or half_width(ratio(own, subjects[anchor].blocks_ms, least_time=1.0)) <= target
