"""Records say which kind of machine it was, and not whose."""

from __future__ import annotations

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


@pytest.mark.parametrize(("files", "cores"), [({"cpu.max": "150000 100000"}, 1.5), ({"cpu.max": "max 100000"}, None), ({}, None)])
def test_container_quota(tmp_path: Path, files: dict[str, str], cores: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota_cores(tmp_path) == cores


def test_container_quota_of_version_1(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("-1\n")
    assert machine.cpu_quota_cores(tmp_path) is None
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    assert machine.cpu_quota_cores(tmp_path) == 0.5


def test_foreign_share_is_what_others_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    before, after = CpuTimes(wall_s=0, all_s=100, own_s=10), CpuTimes(wall_s=10, all_s=130, own_s=20)
    assert machine.foreign_share(before, after) == 0.5
    assert machine.foreign_share(before, CpuTimes(wall_s=10, all_s=None, own_s=20)) is None
    share = machine.busy_now(0.05)
    assert share is None or 0 <= share <= 1
