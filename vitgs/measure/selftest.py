"""The machine tried out in a few seconds: a known time on the project's own clock, and the multiply-accumulates a second that it reaches.

The product of two square matrices is the machine's ceiling: no model can do more MACs a second with torch, so a model's share of it says how much
of its time is not multiplication. Timed as models are: interleaved blocks, threads as they are, median with interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from vitgs.measure import clock, machine
from vitgs.measure.host import Finding
from vitgs.measure.intervals import half_width, mapped
from vitgs.measure.nvml import Gpu
from vitgs.numbers import interval, percent
from vitgs.record import Estimate

KNOWN_S = 0.02
KNOWN_SECONDS, PRODUCT_SECONDS = 0.4, 3.0
LATE, STABLE = 1.1, 0.05
EARLY = 0.99  # no sleep ends before its time: a clock that reads less runs slow
WIDTH = {"cpu": 1024, "cuda": 8192}  # wide enough to keep all units busy, one product well under a second on a slow one
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """`known_ratio`: what the clock read for a known time, over that time. `macs_per_s`: by dtype, of products `width` wide on `device`."""

    known_ratio: Estimate
    macs_per_s: Mapping[str, Estimate]
    width: int
    device: str
    threads: int
    foreign_cpu_share: float | None


def run(
    device: torch.device,
    *,
    width: int | None = None,
    seconds: float = PRODUCT_SECONDS,
    clock_ns: clock.Clock = time.perf_counter_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> SelfTest:
    """Sleeps a known time again and again, then multiplies matrices in float32 and bfloat16 for about `seconds`."""
    wide = width or WIDTH[device.type]
    with torch.inference_mode():
        slept = clock.time_interleaved(
            {"known": lambda: sleep(KNOWN_S)}, target_half_width=STABLE, min_blocks=8, max_seconds=KNOWN_SECONDS, rng_seed=0, clock_ns=clock_ns
        )["known"]
        before = machine.cpu_times()
        reached = products(DTYPES, device, width=wide, seconds=seconds)
    return SelfTest(
        known_ratio=mapped(clock.estimate(slept.blocks_ms), lambda ms: ms / 1000 / KNOWN_S, "time read over the time slept"),
        macs_per_s=reached,
        width=wide,
        device=device.type,
        threads=torch.get_num_threads(),
        foreign_cpu_share=machine.foreign_share(before, machine.cpu_times()),
    )


def products(
    dtypes: Mapping[str, torch.dtype], device: torch.device, *, width: int | None = None, seconds: float = PRODUCT_SECONDS
) -> dict[str, Estimate]:
    """MACs a second that square products reach in each of these types, by name, timed side by side at the threads in force."""
    wide = width or WIDTH[device.type]
    timed = clock.time_interleaved(
        {name: _product(wide, dtype, device) for name, dtype in dtypes.items()},
        target_half_width=STABLE, min_blocks=12, max_seconds=seconds, rng_seed=0, device=device,
    )  # fmt: skip
    method = "MACs over the median time of a product"
    return {name: mapped(clock.estimate(timing.blocks_ms), lambda ms: wide**3 * 1000 / ms, method) for name, timing in timed.items()}


def _product(width: int, dtype: torch.dtype, device: torch.device) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(width, width, generator=generator).to(device, dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def findings(tested: SelfTest) -> list[Finding]:
    """The self-test in the doctor's words."""
    return [known_time(tested), *(ceiling(tested, name) for name in tested.macs_per_s)]


def known_time(tested: SelfTest) -> Finding:
    """A clock that runs slow is no clock; one that is read late belongs to a busy machine."""
    ratio = tested.known_ratio.value or 0.0
    known_ms = 1000 * KNOWN_S
    seen = f"{interval(tested.known_ratio.value, tested.known_ratio.low, tested.known_ratio.high, scale=known_ms)} ms for {known_ms:g} ms of sleep"
    if ratio < EARLY:
        why = "a sleep never ends early, so this clock runs slow and every time would be too short"
        return Finding(check="known time", level="unfit", seen=seen, why=why, remedy="check the machine's clock source")
    if ratio > LATE:
        why = "the process is woken late: others are on the cores, or the host is"
        return Finding(check="known time", level="warn", seen=seen, why=why, remedy="end the other work, or wait until it is done")
    return Finding(check="known time", level="ok", seen=seen)


def ceiling(tested: SelfTest, dtype: str) -> Finding:
    """What the machine reaches in this dtype, and whether the number is one to rely on."""
    reached, single = tested.macs_per_s[dtype], tested.macs_per_s["float32"]
    name, where = f"ceiling, {dtype}", f"{tested.threads} thread{'s' * (tested.threads > 1)}" if tested.device == "cpu" else tested.device
    seen = f"{interval(reached.value, reached.low, reached.high, scale=1e-9)} GMACs/s, {where}"
    again = "ask again on a quiet machine"
    if (tested.foreign_cpu_share or 0.0) > machine.FOREIGN_LIMIT:
        why = f"others used {percent(tested.foreign_cpu_share, 0)} % of the cores meanwhile: the machine can do more"
        return Finding(check=name, level="warn", seen=seen, why=why, remedy=again)
    if half_width(reached) > STABLE:
        why = reached.reason or f"the interval is wider than ±{percent(STABLE, 0)} %: the machine's speed changes while it works"
        return Finding(check=name, level="warn", seen=seen, why=why, remedy=again)
    if reached.value and single.value and reached.value < single.value:
        return Finding(check=name, level="ok", seen=seen, why="slower than float32 on this machine: its models will be too")
    return Finding(check=name, level="ok", seen=seen)


def gpu(found: Gpu | None, why_not: str) -> Finding:
    """Whether others compute on the GPU that will be measured, or heat holds it down."""
    if found is None:
        return Finding(check="GPU", level="unknown", seen=why_not, why="its energy, its heat and other processes on it stay unseen")
    strangers, slowed, facts = found.strangers(), found.slowed(), found.facts()
    seen = ", ".join(f"{value:g} {unit}" for name, unit in _UNITS.items() if isinstance(value := facts[name], (int, float))) or "no readings"
    if strangers:
        why = "measure marks its numbers as contaminated when others compute on the same GPU"
        seen = f"{strangers} other process{'es' * (strangers > 1)}, {seen}"
        return Finding(check="GPU", level="unfit", seen=seen, why=why, remedy="end them, or measure on another GPU (--device cuda:N)")
    if slowed:
        why = "heat or the hardware holds its clock down"
        return Finding(check="GPU", level="warn", seen=seen, why=why, remedy="let it cool and see to its cooling")
    if strangers is None or slowed is None:
        return Finding(check="GPU", level="unknown", seen=seen, why="the driver doesn't tell of other processes or of throttling")
    return Finding(check="GPU", level="ok", seen=seen)


_UNITS = {"temperature_c": "°C", "clock_mhz": "MHz", "power_limit_w": "W at most"}
