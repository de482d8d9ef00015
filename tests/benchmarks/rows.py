"""What the long benchmark programs share: rows that are kept as they come and found again, rounds enough for an interval, and how it is put in words.

A record holds one JSON object a line, on the disk before the next cell begins. A line that was cut while written is no row: its cell runs again.

Records end in .ndjson: `.jsonl` under `results/` is for the rows of sweeps, which the report reads.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch

from vitgs.errors import UsageError
from vitgs.measure import clock
from vitgs.measure.clock import FEWEST_ROUNDS, Timing
from vitgs.measure.setting import synchronise
from vitgs.record import Estimate, digest, to_json
from vitgs.store.records import no_room_is_known

Row = dict[str, Any]
Call = Callable[[], object]

FORMAT = 1
MIN_BLOCKS = 12  # where there is time; the clock's fewest rounds where a call is slow
GIB = 2**30


def name_of(cell: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """What a row is found by: all that its numbers depend on."""
    return digest({"format": FORMAT, "cell": dict(cell), "settings": dict(settings)})


def read(path: Path) -> list[Row]:
    """The whole rows of a record, in their order; none when there is no file."""
    found = []
    for line in path.read_bytes().split(b"\n") if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "name" in row:
            found.append(row)
    return found


def append(path: Path, row: Row) -> None:
    """Adds a row and returns once it is on the disk."""
    line = json.dumps(row, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    with no_room_is_known(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                line = line if file.read(1) == b"\n" else b"\n" + line
            file.write(line)
            file.flush()
            os.fsync(file.fileno())


def measured(rows: Iterable[Row]) -> set[str]:
    """The names that need no second run: what failed or was left out is tried again."""
    return {row["name"] for row in rows if row["status"] == "measured"}


def latest(rows: Iterable[Row], settings: Mapping[str, Any]) -> list[Row]:
    """The last row of each cell that was run under these settings."""
    return list({row["name"]: row for row in rows if row["settings"] == to_json(settings)}.values())


def once_s(call: Call, device: torch.device) -> float:
    """The seconds of one call, the device waited for."""
    synchronise(device)
    began = time.perf_counter()
    call()
    synchronise(device)
    return time.perf_counter() - began


def interleaved(calls: Mapping[str, Call], *, seconds: float, target: float, device: torch.device, anchor: str | None = None) -> dict[str, Timing]:
    """Times the calls side by side for about that long, or for as long as the fewest rounds that give an interval take."""
    round_s = sum(once_s(call, device) for call in calls.values())
    while True:
        blocks, most_s = rounds_in(seconds, round_s)
        timed = clock.time_interleaved(
            calls, target_half_width=target, min_blocks=blocks, max_seconds=most_s, rng_seed=0, anchor=anchor, device=device
        )
        if all(len(timing.blocks_ms) >= FEWEST_ROUNDS for timing in timed.values()):
            return timed
        # The trial calls were faster than the rest: again, by what the rounds really took.
        round_s = max(2 * round_s, sum(max(timing.blocks_ms) * timing.calls_per_block for timing in timed.values()) / 1000)


def rounds_in(seconds: float, round_s: float) -> tuple[int, float]:
    """How many blocks to ask for and how long to let them take, so that a round of `round_s` is run often enough for an interval.

    The clock ends after six rounds once the time is up, and before them at three times the time given: half of six rounds leaves room to warm up.
    """
    roomy = (MIN_BLOCKS + 2) * round_s <= seconds
    return (MIN_BLOCKS if roomy else FEWEST_ROUNDS), max(seconds, (FEWEST_ROUNDS / 2 + 0.5) * round_s)


def plain(of: Estimate) -> dict[str, Any]:
    """An estimate for a row, without the samples that the row keeps once."""
    written: dict[str, Any] = to_json(dataclasses.replace(of, samples=()))
    return written


def shown(of: Mapping[str, Any], digits: int = 3) -> str:
    """`1.07 (1.05–1.09)`; a missing value is a dash."""
    if of["value"] is None:
        return "–"
    text = f"{of['value']:.{digits}g}"
    return text if of["low"] is None else f"{text} ({of['low']:.{digits}g}–{of['high']:.{digits}g})"


def missed(of: Mapping[str, Any], *, at_most: float | None = None, at_least: float | None = None) -> str:
    """Empty when the value keeps to the target; else how it misses it, and whether the interval says so too."""
    value, low, high = of["value"], of["low"], of["high"]
    if value is None:
        return ""
    if at_most is not None and value > at_most:
        return f"{value:.3g} above {at_most:g}" + (", the interval holds it" if low is not None and low <= at_most else "")
    if at_least is not None and value < at_least:
        return f"{value:.3g} below {at_least:g}" + (", the interval holds it" if high is not None and high >= at_least else "")
    return ""


def budget_of(text: str) -> float:
    """`1/8` or `0.125`."""
    try:
        return float(Fraction(text))
    except (ValueError, ZeroDivisionError) as error:
        raise UsageError("a budget must be a fraction or a number", given=text, remedy="write 1/8 or 0.125") from error
