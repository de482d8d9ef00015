"""The checks of cores, threads, power and clock, each branch on a tree of files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.measure.fake_host import Ticks, fake_host
from vitgs.measure import doctor_cpu, machine

CPUS = "sys/devices/system/cpu"
Files = dict[str, str]


@pytest.mark.parametrize(
    ("files", "level"),
    [
        ({f"{CPUS}/cpufreq/policy{n}/scaling_governor": "performance\n" for n in (0, 1)}, "ok"),
        ({f"{CPUS}/cpufreq/policy0/scaling_governor": "performance", f"{CPUS}/cpufreq/policy1/scaling_governor": "powersave"}, "warn"),
        ({}, "unknown"),
    ],
)
def test_governor(files: Files, level: str, tmp_path: Path) -> None:
    assert doctor_cpu.governor(fake_host(tmp_path, files)).level == level


@pytest.mark.parametrize(
    ("files", "level", "remedy"),
    [
        ({f"{CPUS}/intel_pstate/no_turbo": "0"}, "warn", "echo 1 | sudo tee /sys/devices/system/cpu/intel_pstate/no_turbo"),
        ({f"{CPUS}/intel_pstate/no_turbo": "1"}, "ok", ""),
        ({f"{CPUS}/cpufreq/boost": "1"}, "warn", "echo 0 | sudo tee /sys/devices/system/cpu/cpufreq/boost"),
        ({f"{CPUS}/cpufreq/boost": "0"}, "ok", ""),
        ({}, "unknown", ""),
    ],
)
def test_boost(files: Files, level: str, remedy: str, tmp_path: Path) -> None:
    found = doctor_cpu.boost(fake_host(tmp_path, files))
    assert (found.level, remedy in found.remedy) == (level, True)


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, None),
        ({"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ({"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        # The limit of a folder above holds for all below it, and the tightest decides.
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "50000 100000", "sys/fs/cgroup/a/b/cpu.max": "200000 100000"}, 0.5),
        ({"proc/self/cgroup": "0::/../other\n", "sys/fs/cgroup/cpu.max": "300000 100000"}, 3.0),
        ({"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000"}, None),
        (
            {
                "proc/self/cgroup": "4:memory:/m\n2:cpu,cpuacct:/job\n0::/\n",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
                "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            },
            2.5,
        ),
    ],
)
def test_the_tightest_limit(files: Files, cores: float | None, tmp_path: Path) -> None:
    assert machine.cpu_quota_cores(fake_host(tmp_path, files).root) == cores


@pytest.mark.parametrize(
    ("text", "environ", "level", "remedy"),
    [
        ("max 100000", {}, "ok", ""),
        ("200000 100000", {}, "ok", ""),
        ("150000 100000", {}, "warn", "OMP_NUM_THREADS=1"),
        ("150000 100000", {"OMP_NUM_THREADS": "1"}, "ok", ""),
        ("100000 100000", {"MKL_NUM_THREADS": "2"}, "warn", "OMP_NUM_THREADS=1"),
        ("90000 100000", {"OMP_NUM_THREADS": "1"}, "unfit", "at least one whole core"),
    ],
)
def test_quota(text: str, environ: dict[str, str], level: str, remedy: str, tmp_path: Path) -> None:
    found = doctor_cpu.quota(fake_host(tmp_path, {"sys/fs/cgroup/cpu.max": text}, environ=environ))
    assert (found.level, remedy in found.remedy) == (level, True)


@pytest.mark.parametrize(
    ("lists", "environ", "level", "says"),
    [
        (["0", "1"], {}, "ok", "2 cores of one thread"),
        (["0-1", "0-1"], {}, "ok", "2 threads on 1 cores, all ours"),
        (["0-1", "0-1"], {"OMP_NUM_THREADS": "2"}, "warn", "2 threads on 1 cores"),
        (["0,2", "1,3"], {}, "warn", "2 shared with others"),
        ([], {}, "unknown", "doesn't show"),
    ],
)
def test_siblings(lists: list[str], environ: dict[str, str], level: str, says: str, tmp_path: Path) -> None:
    files = {f"{CPUS}/cpu{cpu}/topology/thread_siblings_list": text for cpu, text in enumerate(lists)}
    found = doctor_cpu.siblings(fake_host(tmp_path, files, environ=environ))
    assert (found.level, says in found.seen) == (level, True), found


@pytest.mark.parametrize(
    ("environ", "files", "level", "remedy"),
    [
        ({}, {}, "ok", ""),
        ({"OMP_NUM_THREADS": "2"}, {}, "ok", ""),
        ({"OMP_NUM_THREADS": "2,1", "MKL_NUM_THREADS": ""}, {}, "ok", ""),
        ({"OMP_NUM_THREADS": "8"}, {}, "warn", "OMP_NUM_THREADS=2"),
        ({"OMP_NUM_THREADS": "1"}, {}, "warn", "unless it is meant"),
        ({"OMP_NUM_THREADS": "1"}, {"sys/fs/cgroup/cpu.max": "150000 100000"}, "ok", ""),
        ({"OMP_NUM_THREADS": "1"}, {f"{CPUS}/cpu{cpu}/topology/thread_siblings_list": "0-1" for cpu in (0, 1)}, "ok", ""),
        ({"OMP_NUM_THREADS": "two"}, {}, "warn", "unset OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "0"}, {}, "warn", "unset OMP_NUM_THREADS"),
        ({"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "1"}, {}, "warn", "unset OMP_NUM_THREADS MKL_NUM_THREADS"),
    ],
)
def test_threads(environ: dict[str, str], files: Files, level: str, remedy: str, tmp_path: Path) -> None:
    found = doctor_cpu.threads(fake_host(tmp_path, files, environ=environ))
    assert (found.level, remedy in found.remedy) == (level, True), found


@pytest.mark.parametrize(("source", "level"), [("tsc", "ok"), ("kvm-clock", "ok"), ("arch_sys_counter", "ok"), ("hpet", "warn"), ("", "unknown")])
def test_clock_source(source: str, level: str, tmp_path: Path) -> None:
    files = {"sys/devices/system/clocksource/clocksource0/current_clocksource": source}
    assert doctor_cpu.clock_source(fake_host(tmp_path, files)).level == level


@pytest.mark.parametrize(
    ("step_ns", "level", "says"),
    [
        (30, "ok", "steps of at most 30 ns"),
        (1_000_000, "warn", "steps of at most 1,000,000 ns"),
        (0, "unfit", "stands still"),
        (-5, "unfit", "backwards by 5 ns"),
    ],
)
def test_clock(step_ns: int, level: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_cpu, "LONGEST_LOOK", 100)
    found = doctor_cpu.clock(fake_host(tmp_path, clock_ns=Ticks(step_ns)))
    assert (found.level, says in found.seen) == (level, True), found


@pytest.mark.parametrize(
    ("files", "level"),
    [
        ({}, "ok"),
        ({"BAT0/type": "Battery\n", "BAT0/status": "Discharging\n"}, "warn"),
        ({"BAT0/type": "Battery", "BAT0/status": "Charging", "AC/type": "Mains", "AC/online": "1"}, "ok"),
        ({"mouse/type": "Battery", "mouse/scope": "Device", "mouse/status": "Discharging"}, "ok"),
    ],
)
def test_battery(files: Files, level: str, tmp_path: Path) -> None:
    host = fake_host(tmp_path, {f"sys/class/power_supply/{name}": text for name, text in files.items()})
    assert doctor_cpu.battery(host).level == level


@pytest.mark.parametrize(
    ("files", "level", "says"),
    [
        ({"proc/cpuinfo": "model name : X\nflags : fpu hypervisor sse\n"}, "warn", "yes"),
        ({"proc/cpuinfo": "flags : fpu", "sys/hypervisor/type": "xen"}, "warn", "yes"),
        ({"proc/cpuinfo": "Features : fp", "sys/class/dmi/id/product_name": "KVM Virtual Machine"}, "warn", "yes: KVM Virtual Machine"),
        ({"proc/cpuinfo": "flags : fpu\n", "sys/class/dmi/id/sys_vendor": "Maker", "sys/class/dmi/id/product_name": "Tower 5"}, "ok", "no"),
        ({}, "unknown", "doesn't tell"),
    ],
)
def test_virtual_machine(files: Files, level: str, says: str, tmp_path: Path) -> None:
    found = doctor_cpu.virtual_machine(fake_host(tmp_path, files))
    assert (found.level, says in found.seen) == (level, True), found
