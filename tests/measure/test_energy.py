"""Counters that are there, missing, forbidden, standing still or wrapping, by stand-ins for the driver and the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitgs.measure import energy, nvml

CPU = torch.device("cpu")


class NVMLError(Exception):
    """As the library raises it."""


class Time:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


class Library:
    """NVML of a machine whose GPU draws 100 W, or `busy_w` while work runs."""

    NVMLError = NVMLError

    def __init__(self, clock: Time, *, counter: str = "moves") -> None:
        self.clock, self.counter, self.busy_s = clock, counter, 0.0

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid != "GPU-known":
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.counter in ("Not Supported", "Insufficient Permissions"):
            raise NVMLError(self.counter)
        if self.counter == "stands still":
            return 5
        return int(1000 * (100 * self.clock.now_s + 200 * self.busy_s))

    def work(self) -> None:
        self.clock.now_s += 0.1
        self.busy_s += 0.1


def _open(library: Library) -> energy.Meter:
    meter, why = energy.nvml_meter(nvml.Gpu(library, "GPU-known"))
    assert meter is not None, why
    return meter


def test_a_counter_gives_gross_and_net() -> None:
    clock = Time()
    library = Library(clock)
    found = energy.per_clip(_open(library), library.work, 4, device=CPU, window_s=5.0, clock_s=clock, sleep=clock.sleep)
    assert found.source == "nvml_counter"
    assert found.idle_w == pytest.approx(100, rel=1e-3)
    # 300 W over 0.1 s for 4 clips, of which 100 W would have been drawn anyway.
    assert found.gross_j_per_clip.value == pytest.approx(7.5, rel=1e-3)
    assert found.net_j_per_clip.value == pytest.approx(5.0, rel=1e-3)
    assert len(found.gross_j_per_clip.samples) == energy.WINDOWS >= 5


def test_windows_hold_twenty_steps_of_a_slow_counter() -> None:
    clock = Time()

    class Slow(Library):
        def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
            return 30_000 * int(self.clock.now_s / 0.5)

    library = Slow(clock)
    found = energy.per_clip(_open(library), library.work, 1, device=CPU, window_s=1.0, clock_s=clock, sleep=clock.sleep)
    assert found.window_s == pytest.approx(10, rel=0.02)


@pytest.mark.parametrize("why", ["Not Supported", "Insufficient Permissions"])
def test_a_counter_that_can_not_be_read_is_a_reason(why: str) -> None:
    meter, reason = energy.nvml_meter(nvml.Gpu(Library(Time(), counter=why), "GPU-known"))
    assert meter is None
    assert why in reason


def test_a_counter_that_stands_still_is_never_zero() -> None:
    clock = Time()
    library = Library(clock, counter="stands still")
    found = energy.per_clip(_open(library), library.work, 1, device=CPU, clock_s=clock, sleep=clock.sleep)
    assert (found.gross_j_per_clip.value, found.source) == (None, None)
    assert "doesn't move" in found.gross_j_per_clip.reason


def test_a_cpu_has_no_gpu() -> None:
    assert nvml.find(CPU) == (None, "the device is cpu")


def _package(root: Path, name: str, energy_uj: int, span_uj: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    (folder / "max_energy_range_uj").write_text(f"{span_uj}\n")
    return folder / "energy_uj"


def test_rapl_adds_packages_and_follows_wrap_around(tmp_path: Path) -> None:
    first = _package(tmp_path, "intel-rapl:0", 900_000, 1_000_000)
    second = _package(tmp_path, "intel-rapl:1", 0, 1_000_000)
    _package(tmp_path, "intel-rapl:0:0", 0, 1_000_000)
    meter, why = energy.open_meter(CPU, powercap=tmp_path)
    assert meter is not None, why
    assert (meter.source, meter.read_j()) == ("rapl", 0.0)
    first.write_text("100000\n")
    second.write_text("300000\n")
    assert meter.read_j() == pytest.approx(0.5)


def test_rapl_that_is_absent_or_forbidden_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meter, why = energy.open_meter(CPU, powercap=tmp_path)
    assert meter is None
    assert "no RAPL counters" in why
    _package(tmp_path, "intel-rapl:0", 1, 10)

    def forbidden(self: Path, *_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert energy.open_meter(CPU, powercap=tmp_path) == (None, "no CPU energy: RAPL counters are readable by root only on this kernel")
