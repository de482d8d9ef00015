"""Counters that are there, missing, forbidden, standing still or wrapping, by stand-ins for the driver and the kernel's files."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

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
    """NVML of a machine whose GPU draws 100 W, or 300 W while work runs. `counter`, `power`: `works`, or the error of each reading.

    `fails_at_s`: when the counter begins to fail; `is_slice`: MIG.
    """

    NVMLError = NVMLError

    def __init__(self, clock: Time, *, counter: str = "works", power: str = "works", fails_at_s: float = 1e9, is_slice: bool = False) -> None:
        self.clock, self.counter, self.power, self.fails_at_s, self.is_slice = clock, counter, power, fails_at_s, is_slice
        self.busy_s = 0.0
        self.working = False

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        if uuid not in ("GPU-known", "GPU-other"):
            raise NVMLError("Not Found")
        return uuid

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> int:
        return int(self.is_slice)

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        if self.counter != "works":
            raise NVMLError(self.counter)
        if self.clock.now_s >= self.fails_at_s:
            raise NVMLError("GPU is lost")
        return 7 if handle == "GPU-other" else int(1000 * (100 * self.clock.now_s + 200 * self.busy_s))

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:
        if self.power != "works":
            raise NVMLError(self.power)
        return 300_000 if self.working else 100_000

    def work(self) -> None:
        self.clock.now_s += 0.1
        self.busy_s += 0.1


def _nothing() -> None:
    return


class Looks:
    """In place of the thread: a look at the power at both ends of each piece of work, and a failure from one piece on."""

    def __init__(self, library: Library, lost_after: int = 10**9) -> None:
        self.library, self.left = library, lost_after
        self.sample: Callable[[], None] = _nothing

    @contextlib.contextmanager
    def __call__(self, sample: Callable[[], None]) -> Iterator[None]:
        self.sample = sample
        yield
        self.sample = _nothing

    def work(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.library.power = "GPU is lost"
        self.library.working = True
        self.sample()
        self.library.work()
        self.sample()
        self.library.working = False
        self.sample()


def _open(library: Library, uuid: str = "GPU-known") -> energy.Meter:
    meters, why = energy.nvml_meters(nvml.Gpu(library, uuid))
    assert meters, why
    return meters[0]


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
def test_power_stands_in_for_a_counter_that_can_not_be_read(why: str) -> None:
    clock = Time()
    library = Library(clock, counter=why)
    gpu = nvml.Gpu(library, "GPU-known")
    meters, reason = energy.nvml_meters(gpu)
    assert [meter.source for meter in meters] == ["nvml_power_integral"]
    assert why in reason
    looks = Looks(library)
    meter = energy.PowerMeter(gpu, clock_s=clock, sampler=looks)
    found = energy.per_clip(meter, looks.work, 4, device=CPU, window_s=5.0, clock_s=clock, sleep=clock.sleep)
    assert found.source == "nvml_power_integral"
    assert found.idle_w == pytest.approx(100)
    assert found.gross_j_per_clip.value == pytest.approx(7.5, rel=1e-2)
    assert found.net_j_per_clip.value == pytest.approx(5.0, rel=2e-2)


def test_a_gpu_that_tells_nothing_is_two_reasons() -> None:
    meters, reason = energy.nvml_meters(nvml.Gpu(Library(Time(), counter="Not Supported", power="Insufficient Permissions"), "GPU-known"))
    assert meters == []
    assert "Not Supported" in reason
    assert "Insufficient Permissions" in reason


def test_a_slice_of_a_gpu_has_no_counter_of_its_own() -> None:
    meters, reason = energy.nvml_meters(nvml.Gpu(Library(Time(), is_slice=True), "GPU-known"))
    assert (meters, "MIG" in reason) == ([], True)


def test_the_gpu_is_found_by_uuid_whatever_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    clock.now_s = 3.0
    library = Library(clock)
    for uuid, reads in (("known", 300.0), ("other", 0.007)):
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _, uuid=uuid: SimpleNamespace(uuid=uuid))
        meters, why = energy.open_meters(torch.device("cuda", 0), library=library)
        assert meters, why
        assert meters[0].read_j() == pytest.approx(reads)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: SimpleNamespace(uuid="gone"))
    meters, why = energy.open_meters(torch.device("cuda", 0), library=library)
    assert (meters, "doesn't know this GPU" in why) == ([], True)


def test_a_device_that_vanishes_is_a_reason() -> None:
    clock = Time()
    library = Library(clock, fails_at_s=17.0)
    found = energy.per_clip(_open(library), library.work, 1, device=CPU, clock_s=clock, sleep=clock.sleep)
    assert (found.gross_j_per_clip.value, found.net_j_per_clip.value, found.idle_w, found.source) == (None, None, None, None)
    assert "could no longer be read (GPU is lost)" in found.gross_j_per_clip.reason


def test_power_that_vanishes_in_the_side_thread_is_a_reason() -> None:
    clock = Time()
    library = Library(clock)
    looks = Looks(library, lost_after=70)
    meter = energy.PowerMeter(nvml.Gpu(library, "GPU-known"), clock_s=clock, sampler=looks)
    found = energy.per_clip(meter, looks.work, 1, device=CPU, clock_s=clock, sleep=clock.sleep)
    assert (found.gross_j_per_clip.value, "GPU is lost" in found.gross_j_per_clip.reason) == (None, True)


def test_the_side_thread_looks_and_ends() -> None:
    seen = threading.Event()
    before = threading.active_count()
    with energy.from_the_side(seen.set):
        assert seen.wait(10)
    assert threading.active_count() == before


class Steps:
    """A counter of joules that grows by 10 W, and at one moment jumps, or stops for good."""

    source: energy.Source = "rapl"
    scope = "a test"
    lag_s = 0.0

    def __init__(self, clock: Time, at_s: float = 1e9, jump_j: float | None = 0.0, watts: float = 10.0) -> None:
        self.clock, self.at_s, self.jump_j, self.watts = clock, at_s, jump_j, watts

    def read_j(self) -> float:
        if self.clock.now_s < self.at_s:
            return self.watts * self.clock.now_s
        return self.watts * self.at_s if self.jump_j is None else self.watts * self.clock.now_s + self.jump_j

    def reading(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def work(self) -> None:
        self.clock.now_s += 0.1


@pytest.mark.parametrize(("jump_j", "says"), [(-1000.0, "ran backwards"), (65_000.0, "jumped by"), (None, "stood still")])
def test_a_counter_that_is_set_back_or_stops_gives_no_number(jump_j: float | None, says: str) -> None:
    clock = Time()
    meter = Steps(clock, at_s=12.0, jump_j=jump_j)
    found = energy.per_clip(meter, meter.work, 1, device=CPU, window_s=5.0, clock_s=clock, sleep=clock.sleep)
    assert says in found.gross_j_per_clip.reason
    assert (found.gross_j_per_clip.value, found.source) == (None, None)


def test_work_that_draws_no_more_than_idling_has_no_net() -> None:
    clock = Time()
    meter = Steps(clock)
    found = energy.per_clip(meter, meter.work, 1, device=CPU, clock_s=clock, sleep=clock.sleep)
    assert found.gross_j_per_clip.value == pytest.approx(1.0, rel=1e-2)
    assert found.net_j_per_clip.value is None or found.net_j_per_clip.value < 1e-9


def test_the_next_meter_is_asked_when_one_gives_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Time()
    still, good = Steps(clock, watts=0.0), Steps(clock)
    good.source = "nvml_power_integral"
    per_clip = energy.per_clip
    monkeypatch.setattr(energy, "per_clip", lambda *args, **options: per_clip(*args, **options, clock_s=clock, sleep=clock.sleep))
    found = energy.first_reading([still, good], good.work, 1, device=CPU, before="no counter")
    assert found.source == "nvml_power_integral"
    assert found.passed_over == "no counter; rapl: no energy: the counter of a test doesn't move"
    nothing = energy.first_reading([still], still.work, 1, device=CPU)
    assert (nothing.gross_j_per_clip.value, nothing.source) == (None, None)
    assert "doesn't move" in nothing.gross_j_per_clip.reason


def test_a_counter_that_stands_still_is_never_zero() -> None:
    clock = Time()
    library = Library(clock)
    found = energy.per_clip(_open(library, "GPU-other"), library.work, 1, device=CPU, clock_s=clock, sleep=clock.sleep)
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
    psys = _package(tmp_path, "intel-rapl:2", 0, 1_000_000)
    (psys.parent / "name").write_text("psys\n")
    meters, why = energy.open_meters(CPU, powercap=tmp_path)
    assert len(meters) == 1, why
    meter = meters[0]
    assert (meter.source, meter.read_j()) == ("rapl", 0.0)
    first.write_text("100000\n")
    second.write_text("300000\n")
    psys.write_text("900000\n")
    assert meter.read_j() == pytest.approx(0.5)
    first.unlink()
    with pytest.raises(energy.Unreadable, match="FileNotFoundError"):
        meter.read_j()
    (tmp_path / "intel-rapl:1" / "max_energy_range_uj").unlink()
    _package(tmp_path, "intel-rapl:3", 0, 10)
    assert energy.open_meters(CPU, powercap=tmp_path) == ([], "no CPU energy: RAPL counters can't be read (FileNotFoundError)")


def test_rapl_that_is_absent_or_forbidden_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meters, why = energy.open_meters(CPU, powercap=tmp_path)
    assert meters == []
    assert "no RAPL counters" in why
    _package(tmp_path, "intel-rapl:0", 1, 10)

    def forbidden(self: Path, *_: object, **__: object) -> str:
        raise PermissionError

    monkeypatch.setattr(Path, "read_text", forbidden)
    assert energy.open_meters(CPU, powercap=tmp_path) == ([], "no CPU energy: RAPL counters are readable by root only on this kernel")
