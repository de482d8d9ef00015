"""All checks together, what is read of a machine, and the checks of what happens on it at this moment."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import vitgs
from tests.measure.fake_host import fake_host, reading
from vitgs.measure import doctor, doctor_load, machine
from vitgs.measure.host import Finding, Host, Reading, nearest

STAT = "cpu  100 1 50 800 9 2 3 {stolen} 0 0\ncpu0 50 0 25 400 5 1 1 0 0 0\n"
VMSTAT = "nr_free_pages 5\npswpin 3\npswpout 4\n"
MEMINFO = "MemTotal:       1000 kB\nMemFree: 10 kB\nMemAvailable:    {free} kB\nSwapTotal: 100 kB\nSwapFree: {swap} kB\n"


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)


def test_a_machine_that_tells_nothing_is_fit_and_says_what_is_unknown(tmp_path: Path) -> None:
    host = fake_host(tmp_path)
    found = doctor.examine(host, doctor.watch(host, sleep=lambda _: None), plans(tmp_path), try_imports=False)
    assert doctor.fit(found)
    assert doctor.count(found, "unknown") >= 8
    assert len({finding.check for finding in found}) == len(found)


def test_every_doubt_says_why_and_every_fault_its_remedy(tmp_path: Path) -> None:
    host = fake_host(tmp_path, {"sys/fs/cgroup/cpu.max": "50000 100000"}, environ={"OMP_NUM_THREADS": "7"}, writable=lambda _: False)
    found = doctor.examine(host, doctor.watch(host, sleep=lambda _: None), plans(tmp_path), try_imports=True)
    assert not doctor.fit(found)
    doubts = [finding for finding in found if finding.level in ("warn", "unfit")]
    assert {"CPU limit", "threads", "results", "cache"} <= {finding.check for finding in doubts}
    assert [finding.check for finding in doubts if not (finding.why and finding.remedy)] == []


def test_the_watch_reads_around_the_sleep_and_around_the_work(tmp_path: Path) -> None:
    happened: list[str] = []

    def times() -> machine.CpuTimes:
        happened.append("read")
        return machine.cpu_times()

    host = fake_host(tmp_path, cpu_times=times)
    doctor.watch(host, lambda: happened.append("work"), lambda seconds: happened.append(f"slept {seconds:g}"))
    assert happened == ["read", "slept 1", "read", "work", "read"]


def test_this_machine_can_be_examined_without_torch() -> None:
    code = (
        "import sys, pathlib; from vitgs.measure import doctor; from vitgs.measure.host import Host; host = Host(); here = pathlib.Path('.')\n"
        "seen = doctor.watch(host, sleep=lambda _: None)\n"
        "assert len(doctor.examine(host, seen, doctor.Plans(results=here, cache=here), try_imports=False)) >= 20\n"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=Path(vitgs.__file__).parents[1]).returncode == 0


def plans(folder: Path) -> doctor.Plans:
    return doctor.Plans(results=folder / "results", cache=folder / "cache")


# What is read


def test_a_reading(tmp_path: Path) -> None:
    heat = {f"sys/devices/system/cpu/cpu{n}/thermal_throttle/{kind}_throttle_count": "2" for n in (0, 1) for kind in ("core", "package")}
    process = "77 (a (b) c) S 1 77 77 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 1 0 5 1 1 1"
    found = fake_host(tmp_path, {"proc/stat": STAT.format(stolen=35), "proc/vmstat": VMSTAT, "proc/77/stat": process, **heat}).reading()
    assert (found.all_ticks, found.stolen_ticks, found.swapped_pages, found.throttled) == (1000, 35, 7, 8)
    assert found.processes == {77: ("a (b) c", 42)}


def test_a_reading_where_nothing_is_told(tmp_path: Path) -> None:
    found = fake_host(tmp_path, {"proc/stat": "cpu 1 2\n", "proc/88/stat": "", "proc/99/stat": "99 (short) S 1"}).reading()
    assert (found.all_ticks, found.stolen_ticks, found.swapped_pages, found.throttled, found.processes) == (None, None, None, None, {})


def test_own_process_is_not_among_the_others(tmp_path: Path) -> None:
    line = f"{os.getpid()} (python) R 1 1 1 0 -1 0 1 0 0 0 30 12 0 0 20 0 1 0 5 1 1 1"
    assert fake_host(tmp_path, {f"proc/{os.getpid()}/stat": line}).reading().processes == {}


def test_numbers_and_texts_of_files(tmp_path: Path) -> None:
    host = fake_host(tmp_path, {"a": " 12\n", "b": "many"})
    assert (host.number("a"), host.number("b"), host.number("c"), host.text("c")) == (12, None, None, "")


def test_the_real_readers(tmp_path: Path) -> None:
    host = Host()
    assert host.version("typer") and host.version("no-such-package") is None
    assert host.requires("typer") and host.requires("no-such-package") == []
    assert host.module("json") is not None and host.module("no_such_module") is None
    assert host.probe("print('first'); print('last')") == (0, "last")
    assert host.probe("raise SystemExit('no')") == (1, "no")
    assert host.writable(tmp_path / "new" / "folder") and not (tmp_path / "new").exists()
    assert host.free_bytes(tmp_path / "new") > 0
    assert host.cores


def test_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert nearest(tmp_path) == tmp_path


def test_a_folder_that_can_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(**_: object) -> object:
        raise PermissionError

    monkeypatch.setattr(tempfile, "TemporaryFile", refuses)
    assert not Host().writable(tmp_path)


def test_a_probe_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vitgs.measure.host.PROBE_S", 0.01)
    code, answer = Host().probe("import time; time.sleep(10)")
    assert code == 1 and "TimeoutExpired" in answer


# What happens at this moment


@pytest.mark.parametrize(
    ("after", "level", "says"),
    [
        (reading(10, 101.0), "ok", "others use 5 %"),
        (reading(10, 101.6), "warn", "others use 8 %"),
        (reading(10, 105.0), "unfit", "others use 25 %"),
        (reading(10, 105.0, 5.0), "ok", "others use 0 %"),
        (reading(10, None), "unknown", "doesn't tell"),
        (reading(10, 100.0), "unknown", "doesn't tell"),
    ],
)
def test_other_load(after: Reading, level: str, says: str) -> None:
    agrees(doctor_load.other_load(reading(0, 100.0), after), level, says)


def test_the_limit_is_the_one_of_measure() -> None:
    at = reading(10, 2 * 10 * machine.FOREIGN_LIMIT)
    assert doctor_load.other_load(reading(), at).level == "warn"
    assert doctor_load.other_load(reading(), reading(10, at.cpu.all_s + 0.1 if at.cpu.all_s else 0)).level == "unfit"


def test_an_idle_machine_is_not_an_unknown_one() -> None:
    assert doctor_load.other_load(reading(0, 5.0, counted_s=1.0), reading(1, 5.0, counted_s=3.0)).level == "ok"


def test_the_busiest_processes_are_named() -> None:
    before = reading(processes={1: ("init", 5), 7: ("train", 100), 8: ("build", 0), 9: ("page", 0)})
    after = reading(10, 15.0, processes={1: ("init", 5), 7: ("train", 900), 8: ("build", 400), 9: ("page", 200), 10: ("new", 999)})
    agrees(doctor_load.other_load(before, after), "unfit", "train (process 7), build (process 8)")


@pytest.mark.parametrize(
    ("text", "level", "says"),
    [("0.50 0.60 0.70 1/100 5", "ok", "0.5, 0.6, 0.7"), ("3.55 4.25 3.96 3/101 1983", "warn", "on 2 cores"), ("", "unknown", "doesn't tell")],
)
def test_load_average(text: str, level: str, says: str, tmp_path: Path) -> None:
    agrees(doctor_load.load_average(fake_host(tmp_path, {"proc/loadavg": text})), level, says)


@pytest.mark.parametrize(
    ("before", "after", "level"),
    [((1000, 10), (1200, 11), "ok"), ((1000, 10), (1200, 20), "warn"), ((1000, 10), (1000, 10), "unknown"), ((None, None), (1000, 10), "unknown")],
)
def test_stolen_time(before: tuple[int | None, int | None], after: tuple[int, int], level: str) -> None:
    first, second = (reading(all_ticks=ticks, stolen_ticks=stolen) for ticks, stolen in (before, after))
    assert doctor_load.stolen_time(first, second).level == level


@pytest.mark.parametrize(
    ("files", "pages", "level", "says"),
    [
        ({"proc/meminfo": MEMINFO.format(free=600, swap=100)}, (5, 5), "ok", "nothing swapped out"),
        ({"proc/meminfo": MEMINFO.format(free=600, swap=36)}, (5, 5), "ok", "64.0 KiB swapped out"),
        ({"proc/meminfo": MEMINFO.format(free=600, swap=36)}, (5, 9), "warn", "4 pages swapped"),
        ({"proc/meminfo": MEMINFO.format(free=40, swap=100)}, (None, None), "warn", "less than 5 % free"),
        ({"proc/meminfo": MEMINFO.format(free=600, swap=100), "proc/pressure/memory": "some avg10=7.50 avg60=0"}, (5, 5), "warn", "7.50 %"),
        ({}, (5, 5), "unknown", "doesn't tell"),
    ],
)
def test_memory(files: dict[str, str], pages: tuple[Any, Any], level: str, says: str, tmp_path: Path) -> None:
    first, second = (reading(swapped_pages=count) for count in pages)
    agrees(doctor_load.memory(fake_host(tmp_path, files), first, second), level, says)


@pytest.mark.parametrize(("counts", "level"), [((3, 3), "ok"), ((3, 5), "warn"), ((None, None), "unknown")])
def test_throttling(counts: tuple[int | None, int | None], level: str) -> None:
    first, second = (reading(throttled=count) for count in counts)
    assert doctor_load.throttling(first, second).level == level


def agrees(found: Finding, level: str, says: str) -> None:
    assert (found.level, says in found.seen) == (level, True), found
