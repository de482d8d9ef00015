"""Joules from what the hardware itself keeps or tells, over windows long enough for it, each number with its source; or none, with the reasons.

Tried in this order: the GPU's energy counter, the GPU's power integrated over time, the CPU's RAPL counters. One that fails, stands still, runs
backwards or jumps gives no number, and the next is tried. Never 0 for "don't know", never a thermal design power passed off as a reading.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Protocol

import torch

from vitgs.measure import nvml
from vitgs.measure.intervals import estimate
from vitgs.measure.setting import synchronise
from vitgs.record import Estimate

Source = Literal["nvml_counter", "nvml_power_integral", "rapl"]
POWERCAP = Path("/sys/class/powercap")
WINDOWS = 6  # the fewest that give an interval
WINDOW_S = 5.0
PERIODS_PER_WINDOW = 20
SAMPLE_S = 0.02  # between two looks at the power
POWER_LAG_S = 2.0  # newer GPUs tell the mean power of the last second: a change is wholly seen after so long
MOST_W = 5_000.0  # of one GPU, or of the CPU packages of one machine: a counter that was set back looks like a jump above it


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Gross: all that the device drew. Net: less its idle power, measured before. `source` is None where nothing could be read; `passed_over`: what
    was tried before it, and why it gave nothing."""

    gross_j_per_clip: Estimate
    net_j_per_clip: Estimate
    idle_w: float | None = None
    source: Source | None = None
    window_s: float | None = None
    passed_over: str = ""


class Unreadable(Exception):
    """A meter that could be read before can't be read any more."""


class Meter(Protocol):
    """A counter of joules that only grows. `scope` says what it counts; `lag_s`: how long a change of power takes to be seen. `read_j` may raise
    `Unreadable`. Whatever it needs meanwhile runs inside `reading()`."""

    source: Source
    scope: str
    lag_s: float

    def read_j(self) -> float: ...

    def reading(self) -> AbstractContextManager[None]: ...


class NvmlMeter:
    """One GPU's total-energy counter."""

    source: Source = "nvml_counter"
    scope = "the whole GPU board"
    lag_s = 0.0

    def __init__(self, gpu: nvml.Gpu) -> None:
        self._gpu = gpu

    def read_j(self) -> float:
        try:
            return self._gpu.energy_mj() / 1000
        except self._gpu.library.NVMLError as error:
            raise Unreadable(str(error)) from error

    def reading(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


Sampler = Callable[[Callable[[], None]], AbstractContextManager[None]]


@contextlib.contextmanager
def from_the_side(sample: Callable[[], None]) -> Iterator[None]:
    """Calls `sample` every few milliseconds, in a thread of its own."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(SAMPLE_S):
            sample()

    thread = threading.Thread(target=work, daemon=True, name="power")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


class PowerMeter:
    """One GPU's power, integrated between looks by the trapezium rule: for GPUs without an energy counter."""

    source: Source = "nvml_power_integral"
    scope = "the whole GPU board"
    lag_s = POWER_LAG_S

    def __init__(self, gpu: nvml.Gpu, *, clock_s: Callable[[], float] = time.perf_counter, sampler: Sampler = from_the_side) -> None:
        self._gpu, self._clock_s, self._sampler = gpu, clock_s, sampler
        self._lock = threading.Lock()
        self._sum_j, self._last, self._error = 0.0, (clock_s(), gpu.power_mw() / 1000), ""

    def sample(self) -> None:
        """One look; a failure is kept for the next reading, because a thread has nobody to tell."""
        with self._lock:
            try:
                now = (self._clock_s(), self._gpu.power_mw() / 1000)
            except self._gpu.library.NVMLError as error:
                self._error = self._error or str(error)
                return
            self._sum_j += (now[0] - self._last[0]) * (now[1] + self._last[1]) / 2
            self._last = now

    def read_j(self) -> float:
        self.sample()
        if self._error:
            raise Unreadable(self._error)
        return self._sum_j

    def reading(self) -> AbstractContextManager[None]:
        return self._sampler(self.sample)


class RaplMeter:
    """All CPU packages' counters together, each followed through its wrap-around; read often enough, which a window of seconds is."""

    source: Source = "rapl"
    scope = "the CPU packages"
    lag_s = 0.0

    def __init__(self, packages: list[Path]) -> None:
        self._packages = [(p / "energy_uj", int((p / "max_energy_range_uj").read_text())) for p in packages]
        self._last = [int(counter.read_text()) for counter, _ in self._packages]
        self._sum_uj = 0

    def read_j(self) -> float:
        try:
            seen = [int(counter.read_text()) for counter, _ in self._packages]
        except (OSError, ValueError) as error:
            raise Unreadable(type(error).__name__) from error
        for now, last, (_, span) in zip(seen, self._last, self._packages, strict=True):
            self._sum_uj += now - last if now >= last else now + span - last
        self._last = seen
        return self._sum_uj / 1e6

    def reading(self) -> AbstractContextManager[None]:
        return contextlib.nullcontext()


def open_meters(device: torch.device, *, library: Any = None, powercap: Path = POWERCAP) -> tuple[list[Meter], str]:
    """The meters of `device` that can be read at this moment, best first, and why the others can't."""
    if device.type == "cpu":
        return _open_rapl(powercap)
    gpu, why = nvml.find(device, library)
    return ([], f"no GPU energy: {why}") if gpu is None else nvml_meters(gpu)


def nvml_meters(gpu: nvml.Gpu) -> tuple[list[Meter], str]:
    """The GPU's counter and its power, as far as it has them and they may be read."""
    if gpu.is_slice():
        return [], "no GPU energy: this is a slice of a GPU (MIG), and the counters are of the whole board"
    found: list[Meter] = []
    reasons = []
    try:
        gpu.energy_mj()
        found.append(NvmlMeter(gpu))
    except gpu.library.NVMLError as error:
        reasons.append(f"its total-energy counter can't be read ({error})")
    try:
        found.append(PowerMeter(gpu))
    except gpu.library.NVMLError as error:
        reasons.append(f"its power can't be read ({error})")
    return found, f"no GPU energy: {', and '.join(reasons)}" if reasons else ""


def _open_rapl(powercap: Path) -> tuple[list[Meter], str]:
    # Whole packages only: their sub-domains (core, uncore, dram on some) are part of them or not, depending on the CPU, and `psys` counts them again.
    domains = sorted(p for p in powercap.glob("intel-rapl:*") if p.name.count(":") == 1 and (p / "energy_uj").exists())
    try:
        packages = [p for p in domains if not (p / "name").exists() or (p / "name").read_text().strip() != "psys"]
        if not packages:
            return [], f"no CPU energy: no RAPL counters under {powercap}"
        return [RaplMeter(packages)], ""
    except PermissionError:
        return [], "no CPU energy: RAPL counters are readable by root only on this kernel"
    except (OSError, ValueError) as error:
        return [], f"no CPU energy: RAPL counters can't be read ({type(error).__name__})"


def absent(reason: str) -> Energy:
    """The answer of a machine without a counter."""
    return Energy(gross_j_per_clip=Estimate.missing(reason), net_j_per_clip=Estimate.missing(reason))


def first_reading(
    meters: Sequence[Meter], call: Callable[[], object], clips_per_call: int, *, device: torch.device, window_s: float = WINDOW_S, before: str = ""
) -> Energy:
    """Energy by the first of the meters that gives a number. `before`: why better ones were not even opened."""
    reasons = [before] if before else []
    for meter in meters:
        found = per_clip(meter, call, clips_per_call, device=device, window_s=window_s)
        if found.source is not None:
            return replace(found, passed_over="; ".join(reasons))
        reasons.append(f"{meter.source}: {found.gross_j_per_clip.reason}")
    return absent("; ".join(reasons) or "no energy: there is no meter")


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
    try:
        with meter.reading():
            return _per_clip(meter, call, clips_per_call, device, windows, window_s, clock_s, sleep)
    except Unreadable as error:
        return absent(f"no energy: the counter of {meter.scope} could no longer be read ({error})")


def _per_clip(
    meter: Meter,
    call: Callable[[], object],
    clips_per_call: int,
    device: torch.device,
    windows: int,
    window_s: float,
    clock_s: Callable[[], float],
    sleep: Callable[[float], None],
) -> Energy:
    period_s = _period_s(meter, clock_s, sleep)
    if period_s is None:
        return absent(f"no energy: the counter of {meter.scope} doesn't move")
    window_s = max(window_s, PERIODS_PER_WINDOW * period_s)

    def window(work: Callable[[], int]) -> tuple[float, float, int]:
        start_j, start_s = meter.read_j(), clock_s()
        calls = work()
        return meter.read_j() - start_j, clock_s() - start_s, calls

    def worked(seconds: float) -> int:
        start_s, calls = clock_s(), 0
        while clock_s() - start_s < seconds:
            call()
            synchronise(device)  # a queue of launched work would otherwise outlive the window
            calls += 1
        return calls

    def idled() -> int:
        sleep(window_s)
        return 0

    synchronise(device)
    sleep(meter.lag_s)
    seen = [window(idled)]
    worked(meter.lag_s)
    seen += [window(lambda: worked(window_s)) for _ in range(windows)]
    if reason := next((why for spent_j, spent_s, _ in seen if (why := _implausible(meter, spent_j, spent_s))), ""):
        return absent(reason)
    idle_w = seen[0][0] / seen[0][1]
    gross = [spent_j / (calls * clips_per_call) for spent_j, _, calls in seen[1:]]
    net = [(spent_j - idle_w * spent_s) / (calls * clips_per_call) for spent_j, spent_s, calls in seen[1:]]
    net_of = estimate(net)
    if net_of.value is not None and net_of.value <= 0:
        net_of = Estimate.missing("working drew no more than idling before: others used the device then")
    return Energy(gross_j_per_clip=estimate(gross), net_j_per_clip=net_of, idle_w=idle_w, source=meter.source, window_s=window_s)


def _implausible(meter: Meter, spent_j: float, spent_s: float) -> str:
    """Why what a counter said of a window can't be, or nothing."""
    if spent_j == 0:
        return f"no energy: the counter of {meter.scope} stood still for {spent_s:.1f} s"
    if spent_j < 0:
        return f"no energy: the counter of {meter.scope} ran backwards, as when it is set back"
    if spent_j > MOST_W * spent_s:
        return f"no energy: the counter of {meter.scope} jumped by {spent_j:.3g} J in {spent_s:.1f} s, as when it is set back"
    return ""


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
