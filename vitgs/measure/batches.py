"""The largest batch that fits, and the batch with the most clips a second: a curve over doubling batches, tried side by side.

Choosing the best of several noisy numbers flatters it, so the chosen batch is timed again afterwards, and that is the number given.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from vitgs.measure import clock, soundness
from vitgs.measure.intervals import mapped
from vitgs.measure.setting import synchronise
from vitgs.record import Estimate

LIMIT = 256
CURVE_HALF_WIDTH, CURVE_BLOCKS = 0.05, 6
LONGEST_CALL = 1 / 16  # of the search's seconds: each of several batches needs a few blocks
METHOD = "clips over the median time of a batch"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """One point of the curve; no value, and the reason, where the batch gave none."""

    batch: int
    clips_per_s: Estimate


@dataclass(frozen=True, kw_only=True)
class BestBatch:
    """`clips_per_s`: timed again at `batch`, alone. `largest_batch`: fits into memory, by bisection up to `limit`. `stopped`: why the curve
    ends where it does. `unstable`: time ran out before the interval was narrow enough."""

    batch: int
    clips_per_s: Estimate
    tried: tuple[Tried, ...]
    stopped: str
    largest_batch: int
    limit: int
    unstable: bool


def largest_batch(fits: Callable[[int], bool], limit: int) -> int:
    """The largest batch up to `limit` that fits, by doubling and bisection; 0 if none does. `fits` must be true below the boundary, false above."""
    fitting, size = 0, 1
    while size <= limit and fits(size):
        fitting, size = size, size * 2
    too_large = min(size, limit + 1)
    while too_large - fitting > 1:
        middle = (fitting + too_large) // 2
        fitting, too_large = (middle, too_large) if fits(middle) else (fitting, middle)
    return fitting


def best_batch(
    call_of: Callable[[int], Callable[[], object]],
    fits: Callable[[int], bool],
    *,
    seconds: float,
    target: float,
    device: torch.device,
    seed: int = 0,
    limit: int | None = None,
    clock_ns: clock.Clock = time.perf_counter_ns,
) -> BestBatch:
    """Searches for about `seconds`. `call_of(n)` makes the call of one batch of n clips. If not even one clip fits: batch 0, and the reason."""
    limit = limit or LIMIT
    largest = largest_batch(fits, limit)
    calls: dict[str, Callable[[], object]] = {}
    lost: list[Tried] = []
    stopped, size = f"the limit of {limit} clips a batch" if largest >= limit else f"memory: {largest} clips fit", 1
    while size <= largest:
        try:
            with soundness.known_failures():
                call = call_of(size)
                call()  # not counted: kernels are chosen, memory is taken
                synchronise(device)
                began_ns = clock_ns()
                call()
                synchronise(device)
            took_s = (clock_ns() - began_ns) / 1e9
        except soundness.OutOfMemory:
            stopped = f"memory ran out at {size} clips"
            lost.append(Tried(batch=size, clips_per_s=Estimate.missing("out of memory")))
            break
        except soundness.NotMeasurable as error:  # what was found until here stands
            stopped = f"a failure at {size} clips"
            lost.append(Tried(batch=size, clips_per_s=Estimate.missing(str(error))))
            break
        if calls and took_s > seconds * LONGEST_CALL:
            stopped = f"time: a batch of {size} takes {took_s:.3g} s, so that a curve would take more than the {seconds:g} s given"
            break
        calls[str(size)] = call
        size *= 2
    if not calls:
        none = Estimate.missing(f"not even one clip fits: {stopped}")
        return BestBatch(batch=0, clips_per_s=none, tried=tuple(lost), stopped=stopped, largest_batch=largest, limit=limit, unstable=False)
    curve = clock.time_interleaved(
        calls,
        target_half_width=CURVE_HALF_WIDTH,
        min_blocks=CURVE_BLOCKS,
        max_seconds=seconds * 2 / 3,
        rng_seed=seed,
        device=device,
        clock_ns=clock_ns,
    )
    tried = [Tried(batch=int(name), clips_per_s=_rate(int(name), timing)) for name, timing in curve.items()]
    best = max(tried, key=lambda point: point.clips_per_s.value or 0.0).batch
    again = clock.time_interleaved(
        {"best": calls[str(best)]},
        target_half_width=target,
        min_blocks=2 * CURVE_BLOCKS,
        max_seconds=seconds / 3,
        rng_seed=seed,
        device=device,
        clock_ns=clock_ns,
    )["best"]
    return BestBatch(
        batch=best,
        clips_per_s=_rate(best, again),
        tried=(*tried, *lost),
        stopped=stopped,
        largest_batch=largest,
        limit=limit,
        unstable=again.unstable,
    )


def _rate(batch: int, timing: clock.Timing) -> Estimate:
    return mapped(clock.estimate(timing.blocks_ms), lambda ms: 1000 * batch / ms, METHOD)
