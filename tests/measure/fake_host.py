"""Machines made of a few files, for the doctor's checks."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vitgs.measure.host import Host, Reading
from vitgs.measure.machine import CpuTimes


def fake_host(root: Path, files: dict[str, str] | None = None, **parts: Any) -> Host:
    """Two cores, an empty environment, nothing installed, and these files under the root."""
    for name, text in (files or {}).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    host = Host(
        root=root,
        environ={},
        cores=frozenset({0, 1}),
        cpu_count=2,
        cpu_times=lambda: CpuTimes(wall_s=0.0, all_s=0.0, own_s=0.0),
        clock_ns=Ticks(30),
        version=lambda _: None,
        requires=lambda _: [],
        module=lambda _: None,
        probe=lambda _: (0, ""),
        which=lambda _: None,
        writable=lambda _: True,
        free_bytes=lambda _: 2**40,
    )
    return dataclasses.replace(host, **parts)


class Ticks:
    """A clock that moves by so many ns at each look."""

    def __init__(self, step_ns: int) -> None:
        self._now_ns, self._step_ns = 10**12, step_ns

    def __call__(self) -> int:
        self._now_ns += self._step_ns
        return self._now_ns


def reading(wall_s: float = 0.0, all_s: float | None = 0.0, own_s: float = 0.0, counted_s: float | None = None, **counters: Any) -> Reading:
    """Counters at one moment."""
    return Reading(cpu=CpuTimes(wall_s=wall_s, all_s=all_s, own_s=own_s, counted_s=counted_s), **counters)
