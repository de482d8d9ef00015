"""Each thing that can befall a machine raises its own flag, and a counter that isn't there raises none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vitgs.measure import machine, validity
from vitgs.measure.machine import CpuTimes
from vitgs.measure.validity import Conditions

HEAT = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"


def _at(wall_s: float, all_s: float | None = None, **counters: Any) -> Conditions:
    return Conditions(cpu=CpuTimes(wall_s=wall_s, all_s=all_s, own_s=0.0), **counters)


@pytest.mark.parametrize(
    ("before", "after", "flags"),
    [
        ({}, {}, ()),
        ({"all_s": 10.0}, {"all_s": 30.0}, ("contaminated",)),
        ({"heat_slowed": 4}, {"heat_slowed": 5}, ("throttled",)),
        ({"quota_stopped": 4}, {"quota_stopped": 5}, ("quota",)),
        ({"quota_stopped": 4}, {"quota_stopped": 4}, ()),
        ({"quota_stopped": None}, {"quota_stopped": 9}, ()),
        ({"swapped_pages": 3, "disk_waits": 1}, {"swapped_pages": 4, "disk_waits": 2}, ("swapped",)),
        ({"swapped_pages": 3, "disk_waits": 1}, {"swapped_pages": 4, "disk_waits": 1}, ()),
        ({"clock_s": 1.0, "raw_s": 1.0}, {"clock_s": 11.0, "raw_s": 10.9}, ("drift",)),
        ({"clock_s": 1.0, "raw_s": 1.0}, {"clock_s": 11.0, "raw_s": 11.001}, ()),
        ({"clock_s": 1.0, "raw_s": None}, {"clock_s": 11.0, "raw_s": None}, ()),
    ],
)
def test_flags(before: dict[str, Any], after: dict[str, Any], flags: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert validity.judge(_at(0.0, **before), _at(10.0, **after)).flags == flags


def test_a_look_reads_the_counters(tmp_path: Path) -> None:
    files = {
        "proc/vmstat": "pgfault 9\npswpin 3\npswpout 4\n",
        "proc/self/cgroup": "0::/a\n",
        "sys/fs/cgroup/a/cpu.stat": "usage_usec 1\nnr_periods 8\nnr_throttled 5\n",
        HEAT: "6\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    seen = validity.look(tmp_path)
    assert (seen.swapped_pages, seen.quota_stopped, seen.heat_slowed) == (7, 5, 6)
    nothing = validity.look(tmp_path / "empty")
    assert (nothing.swapped_pages, nothing.quota_stopped, nothing.heat_slowed) == (None, None, None)


def test_this_machine_can_be_looked_at() -> None:
    first, second = validity.look(), validity.look()
    assert second.clock_s > first.clock_s
    share = validity.judge(first, second).foreign_share
    assert share is None or 0 <= share <= 1
    assert machine.FOREIGN_LIMIT < 1
