"""Joules from counters that the hardware keeps, over windows long enough for them, each number with its source; or none, with the reason.

Never 0 for "don't know", never a thermal design power passed off as a reading.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from vitgs.measure import nvml
from vitgs.measure.intervals import estimate
from vitgs.measure.setting import synchronise
from vitgs.record import Estimate

Source = Literal["nvml_counter", "rapl"]
POWERCAP = Path("/sys/class/powercap")
WINDOWS = 6  # the fewest whose range is a 95 % interval of the median
WINDOW_S = 5.0
PERIODS_PER_WINDOW = 20


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Gross: all that the device drew. Net: less its idle power, measured before. `source` is None where nothing could be read."""

    gross_j_per_clip: Estimate
    net_j_per_clip: Estimate
    idle_w: float | None = None
    source: Source | None = None
    window_s: float | None = None


class Meter(Protocol):
    """A counter of joules that only grows. `scope` says what it counts."""

    source: Source
    scope: str

    def read_j(self) -> float: ...


class NvmlMeter:
    """One GPU's total-energy counter."""

    source: Source = "nvml_counter"
    scope = "the whole GPU board"

    def __init__(self, gpu: nvml.Gpu) -> None:
        self._gpu = gpu

    def read_j(self) -> float:
        return self._gpu.energy_mj() / 1000


class RaplMeter:
    """All CPU packages' counters together, each followed through its wrap-around; read often enough, which a window of seconds is."""

    source: Source = "rapl"
    scope = "the CPU packages"

    def __init__(self, packages: list[Path]) -> None:
        self._packages = [(p / "energy_uj", int((p / "max_energy_range_uj").read_text())) for p in packages]
        self._last = [int(counter.read_text()) for counter, _ in self._packages]
        self._sum_uj = 0

    def read_j(self) -> float:
        for i, (counter, span) in enumerate(self._packages):
            now = int(counter.read_text())
            self._sum_uj += now - self._last[i] if now >= self._last[i] else now + span - self._last[i]
            self._last[i] = now
        return self._sum_uj / 1e6


def open_meter(device: torch.device, *, library: Any = None, powercap: Path = POWERCAP) -> tuple[Meter | None, str]:
    """The counter of `device`, tried once, or None and what was missing."""
    return _open_rapl(powercap) if device.type == "cpu" else _open_nvml(device, library)


def _open_nvml(device: torch.device, library: Any) -> tuple[Meter | None, str]:
    gpu, why = nvml.find(device, library)
    return (None, f"no GPU energy: {why}") if gpu is None else nvml_meter(gpu)


def nvml_meter(gpu: nvml.Gpu) -> tuple[Meter | None, str]:
    """The GPU's counter, or None where this GPU has none or the reading is not permitted."""
    try:
        gpu.energy_mj()
    except gpu.library.NVMLError as error:
        return None, f"no GPU energy: its total-energy counter can't be read ({error})"
    return NvmlMeter(gpu), ""


def _open_rapl(powercap: Path) -> tuple[Meter | None, str]:
    # Whole packages only: their sub-domains (core, uncore, dram on some) are part of them or not, depending on the CPU.
    packages = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1 and (p / "energy_uj").exists())
    if not packages:
        return None, f"no CPU energy: no RAPL counters under {powercap}"
    try:
        return RaplMeter(packages), ""
    except PermissionError:
        return None, "no CPU energy: RAPL counters are readable by root only on this kernel"
    except (OSError, ValueError) as error:
        return None, f"no CPU energy: RAPL counters can't be read ({type(error).__name__})"


def absent(reason: str) -> Energy:
    """The answer of a machine without a counter."""
    return Energy(gross_j_per_clip=Estimate.missing(reason), net_j_per_clip=Estimate.missing(reason))


def per_clip(
    meter: Meter,
    call: Callable[[], object],
    clips_per_call: int,
    *,
    device: torch.device,
    windows: int = WINDOWS,
    window_s: float = WINDOW_S,
    clock_s: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Energy:
    """Energy of one clip while `call` runs back to back, over so many windows after an idle one; each lasts at least 20 periods of the counter."""
    period_s = _period_s(meter, clock_s, sleep)
    if period_s is None:
        return absent(f"no energy: the counter of {meter.scope} doesn't move")
    window_s = max(window_s, PERIODS_PER_WINDOW * period_s)
    synchronise(device)
    idle_start_j, idle_start_s = meter.read_j(), clock_s()
    sleep(window_s)
    idle_w = (meter.read_j() - idle_start_j) / (clock_s() - idle_start_s)
    gross, net = [], []
    for _ in range(windows):
        synchronise(device)
        start_j, start_s, calls = meter.read_j(), clock_s(), 0
        while clock_s() - start_s < window_s:
            call()
            synchronise(device)  # a queue of launched work would otherwise outlive the window
            calls += 1
        spent_j, spent_s = meter.read_j() - start_j, clock_s() - start_s
        if spent_j <= 0:
            return absent(f"no energy: the counter of {meter.scope} stood still for {spent_s:.1f} s")
        gross.append(spent_j / (calls * clips_per_call))
        net.append((spent_j - idle_w * spent_s) / (calls * clips_per_call))
    return Energy(gross_j_per_clip=estimate(gross), net_j_per_clip=estimate(net), idle_w=idle_w, source=meter.source, window_s=window_s)


def _period_s(meter: Meter, clock_s: Callable[[], float], sleep: Callable[[float], None], limit_s: float = 2.0) -> float | None:
    """Time between two steps of the counter."""
    began_s, last_j = clock_s(), meter.read_j()
    steps: list[float] = []
    while len(steps) < 4 and clock_s() - began_s < limit_s:
        sleep(0.001)
        if (now_j := meter.read_j()) != last_j:
            last_j = now_j
            steps.append(clock_s())
    gaps = [later - earlier for earlier, later in pairwise(steps)]
    return max(gaps) if gaps else None
