"""Records say which kind of machine it was, and not whose."""

from __future__ import annotations

import dataclasses
import getpass
import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from vitgs.measure import machine
from vitgs.measure.machine import CpuTimes


def test_description_is_json_and_names_nobody() -> None:
    found = machine.describe()
    text = json.dumps(found, allow_nan=False)
    assert found["cpu_cores"]
    assert socket.gethostname() not in text
    assert str(Path.home()) not in text
    assert not re.search(rf"\b{re.escape(getpass.getuser())}\b", text)


def test_slug_is_a_steady_folder_name() -> None:
    assert machine.slug() == machine.slug()
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*-[0-9a-f]{6}", machine.slug())


def test_slug_needs_no_torch() -> None:
    code = "import sys, vitgs.measure.machine as m; m.slug(); m.describe(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(machine.__file__).parents[2]).returncode == 0


def _tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({f"{V2}/cpu.max": "150000 100000"}, 1.5),
        ({f"{V2}/cpu.max": "max 100000"}, None),
        ({}, None),
        (
            {"proc/self/cgroup": "0::/a/b\n", f"{V2}/cpu.max": "max 100000", f"{V2}/a/cpu.max": "50000 100000", f"{V2}/a/b/cpu.max": "200000 100000"},
            0.5,
        ),
        ({"proc/self/cgroup": "0::/a\n", f"{V2}/a/cpu.max": "max 100000", f"{V2}/other/cpu.max": "50000 100000"}, None),
        ({"proc/self/cgroup": "0::/../../elsewhere\n", f"{V2}/cpu.max": "300000 100000"}, 3.0),
        ({f"{V2}/cpu/cpu.cfs_quota_us": "-1\n", f"{V2}/cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({f"{V2}/cpu/cpu.cfs_quota_us": "50000\n", f"{V2}/cpu/cpu.cfs_period_us": "100000\n"}, 0.5),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/x/y\n3:memory:/x\n0::/z\n",
                f"{V1}/x/cpu.cfs_quota_us": "250000",
                f"{V1}/x/cpu.cfs_period_us": "100000",
                f"{V1}/x/y/cpu.cfs_quota_us": "-1",
                f"{V1}/x/y/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
    ],
)
def test_the_tightest_quota_along_the_path(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    assert machine.cpu_quota_cores(_tree(tmp_path, files)) == cores


def test_memory_limits_along_the_path(tmp_path: Path) -> None:
    files = {
        "proc/self/cgroup": "4:memory:/x/y\n0::/\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "4000\n",
        "sys/fs/cgroup/memory/x/memory.usage_in_bytes": "1500\n",
        "sys/fs/cgroup/memory/x/y/memory.limit_in_bytes": "8000\n",
        "sys/fs/cgroup/memory.max": "max\n",
    }
    assert sorted(machine.memory_limits(_tree(tmp_path, files))) == [(4000, 1500), (8000, None)]
    assert machine.memory_limits(tmp_path / "empty") == []


def test_foreign_share_is_what_others_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    before, after = CpuTimes(wall_s=0, all_s=100, own_s=10), CpuTimes(wall_s=10, all_s=130, own_s=20)
    assert machine.foreign_share(before, after) == 0.5
    assert machine.foreign_share(before, CpuTimes(wall_s=10, all_s=None, own_s=20)) is None
    # Nothing but idling was counted; nothing was counted at all; a counter that ran backwards.
    idle = [CpuTimes(wall_s=wall, all_s=100, own_s=10, counted_s=200 + 4 * wall) for wall in (0, 0.3)]
    assert machine.foreign_share(*idle) == 0.0
    assert machine.foreign_share(idle[0], dataclasses.replace(idle[0], wall_s=0.3)) is None
    assert machine.foreign_share(idle[0], CpuTimes(wall_s=1, all_s=90, own_s=10, counted_s=300)) is None
    share = machine.busy_now(0.05)
    assert share is None or 0 <= share <= 1
