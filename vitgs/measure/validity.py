"""What befell the machine while a number was taken: two looks at the kernel's counters, and the flags that the difference raises.

A counter that this system doesn't have raises nothing; a record's environment tells which system it was. Doesn't import torch.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from vitgs.measure import machine
from vitgs.measure.machine import CpuTimes

DRIFT_LIMIT = 1e-3  # twice the most by which a kernel slews its clock
HEAT = "sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count"


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """One look. `heat_slowed`, `quota_stopped`: how often heat, or the CPU limit of a cgroup, held the cores back.

    `swapped_pages`: of the whole system; `disk_waits`: page faults of this process that had to wait for the disk. `clock_s`, `raw_s`: the clock of
    the timings, and one that nobody adjusts.
    """

    cpu: CpuTimes
    swapped_pages: int | None = None
    disk_waits: int = 0
    heat_slowed: int | None = None
    quota_stopped: int | None = None
    clock_s: float = 0.0
    raw_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`flags`: contaminated, throttled, quota, swapped, drift. `foreign_share`: of all cores, used by others; None where the system doesn't tell."""

    flags: tuple[str, ...] = ()
    foreign_share: float | None = field(default=None)


def look(root: Path = Path("/")) -> Conditions:
    """The counters now."""
    raw = getattr(time, "CLOCK_MONOTONIC_RAW", None)
    return Conditions(
        cpu=machine.cpu_times(),
        swapped_pages=_sum(_fields(root / "proc/vmstat", "pswpin", "pswpout")),
        disk_waits=resource.getrusage(resource.RUSAGE_SELF).ru_majflt,
        heat_slowed=_sum([int(text) for path in root.glob(HEAT) if (text := machine.text_of(path).strip()).isdigit()]),
        quota_stopped=_sum(
            [count for folder in machine.control_groups("cpu", root) for count in _fields(folder / "cpu.stat", "nr_throttled")],
        ),
        clock_s=time.perf_counter(),
        raw_s=None if raw is None else time.clock_gettime(raw),
    )


def judge(before: Conditions, after: Conditions) -> Verdict:
    """What happened between two looks."""
    foreign = machine.foreign_share(before.cpu, after.cpu)
    raised = {
        "contaminated": (foreign or 0.0) > machine.FOREIGN_LIMIT,
        "throttled": _grew(before.heat_slowed, after.heat_slowed),
        "quota": _grew(before.quota_stopped, after.quota_stopped),
        # The system's swapping may be somebody else's; a process that waited for the disk meanwhile was hit by it.
        "swapped": _grew(before.swapped_pages, after.swapped_pages) and after.disk_waits > before.disk_waits,
        "drift": _drifted(before, after),
    }
    return Verdict(flags=tuple(name for name, is_so in raised.items() if is_so), foreign_share=foreign)


def _drifted(before: Conditions, after: Conditions) -> bool:
    if before.raw_s is None or after.raw_s is None or after.raw_s <= before.raw_s:
        return False
    return abs((after.clock_s - before.clock_s) / (after.raw_s - before.raw_s) - 1) > DRIFT_LIMIT


def _grew(before: int | None, after: int | None) -> bool:
    return before is not None and after is not None and after > before


def _sum(counts: list[int]) -> int | None:
    return sum(counts) if counts else None


def _fields(path: Path, *names: str) -> list[int]:
    return list(_numbers(machine.text_of(path), names))


def _numbers(text: str, names: tuple[str, ...]) -> Iterator[int]:
    for line in text.splitlines():
        words = line.split()
        if len(words) == 2 and words[0] in names and words[1].isdigit():
            yield int(words[1])
