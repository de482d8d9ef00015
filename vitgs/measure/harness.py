"""One model's measurement, joined: cost, memory, latency, throughput, stages, energy, each with its interval or the reason why there is none.

Everything runs in evaluation mode without autograd, at fixed threads and dtype, on rotating inputs, with the anchor in every round.
The order matters: memory comes first, because only a first run shows how far the process grows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import cycle
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vitgs.errors import UsageError
from vitgs.measure import clock, cost, energy, machine, memory, nvml, setting, soundness
from vitgs.measure.clock import Timing
from vitgs.measure.cost import Cost, CostSpread
from vitgs.measure.energy import Energy
from vitgs.measure.intervals import Percentiles, mapped, percentiles, ratio
from vitgs.measure.memory import Memory
from vitgs.measure.stagetime import StageTimes, stage_times
from vitgs.record import Clip, Estimate

MIN_BLOCKS = 12
STAGE_SHARE = 0.1
INPUTS_BYTES = 32 * 2**20  # more than the caches that would flatter a repeated input
FEWEST_INPUTS, MOST_INPUTS = 4, 16
SPREAD_CLIPS = 8
SUBJECT, ANCHOR = "subject", "anchor"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All of it. Ratios are subject over anchor: times for latency, clips/s for throughput. `realised_share`: the batch's speed-up over the anchor
    divided by the FLOP speed-up. `content`: what the inputs were. `flags`: unstable, contaminated, throttled."""

    cost: Cost
    cost_spread: CostSpread | None
    anchor_macs: int | None
    batch: int
    latency_ms: Estimate
    latency_percentiles_ms: Percentiles
    throughput_clips_per_s: Estimate
    latency_to_anchor: Estimate
    throughput_to_anchor: Estimate
    realised_share: float | None
    timings: Mapping[str, Timing]
    stages: StageTimes
    memory: Memory
    energy: Energy
    content: Literal["given", "noise"]
    inputs: int
    foreign_cpu_share: float | None
    flags: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)


def measure(
    model: nn.Module,
    *,
    clip: Clip,
    run: Mapping[str, object],
    anchor: nn.Module | None = None,
    batch: int = 8,
    device: str = "cpu",
    dtype: str = "float32",
    seconds: float = 3.0,
    target: float = 0.02,
    content: Callable[[int], Tensor] | None = None,
    threads: int | None = None,
    witnesses: bool = False,
    energy_window_s: float | None = None,
    seed: int = 0,
) -> Measurement:
    """Measures `model(clips, **run)` in about `seconds` of timing. `energy_window_s` (5 or more) asks for energy too: one idle window, six of work.

    `content(n)` gives n clips `(n, T, C, H, W)` of the kind the model is for; None means noise, on which content-adaptive systems behave differently.
    `target`: half-width of the intervals as a share. The modules are moved to the device and dtype and stay there. Raises
    `soundness.NotMeasurable` for a model that runs out of memory, fails, or gives anything but finite logits.
    """
    if batch < 1 or seconds <= 0 or target <= 0:
        raise UsageError("batch, seconds and target must be positive", given=f"{batch}, {seconds}, {target}", remedy="set each above 0")
    where, kind = setting.device_of(device), setting.dtype_of(dtype)
    subjects = {SUBJECT: model} | ({} if anchor is None else {ANCHOR: anchor})
    for module in subjects.values():
        module.to(where, kind).eval()
    with setting.threads(threads), soundness.known_failures():
        batches = _inputs(content, clip, batch, kind, seed)
        one = batches[0][:1]
        with torch.no_grad():  # not inference mode: composite operators are taken apart, and what they make inside is counted too
            on_device = batches[0].to(where)
            seen = memory.peaks(model, lambda: soundness.check(model(on_device, **run), batch, clip), on_device, where)
        spent = cost.count(model, one, run, witnesses_too=witnesses)
        content_decides = spent.device == "cpu" and content is not None
        spread = cost.spread(model, torch.cat(batches)[:SPREAD_CLIPS], run) if content_decides else None
        anchor_macs = None if anchor is None else cost.count(anchor, one, {}).macs
        batches = [b.to(where) for b in batches]
        with torch.inference_mode():
            gpu, _ = nvml.find(where)
            before, strangers, slowed = machine.cpu_times(), gpu and gpu.strangers(), gpu and gpu.slowed()
            timings = _timings(subjects, run, batches, batch, where, seconds * (1 - STAGE_SHARE), target, seed)
            slowed = slowed or (gpu and gpu.slowed())
            foreign = machine.foreign_share(before, machine.cpu_times())
            stages = stage_times(_rotating(model, run, batches), seconds=seconds * STAGE_SHARE, device=where)
            joules = _energy(_rotating(model, run, batches), batch, where, energy_window_s)
            strangers = strangers or (gpu and gpu.strangers())
        settings = setting.in_force(where, dtype) | ({} if gpu is None else {"gpu": gpu.facts()})
    flags = {
        "unstable": any(t.unstable for name, t in timings.items() if name.startswith(SUBJECT)),
        "contaminated": (foreign or 0.0) > machine.FOREIGN_LIMIT or bool(strangers),
        "throttled": bool(slowed),
    }
    latency, throughput = timings[f"{SUBJECT}_latency"], timings[f"{SUBJECT}_throughput"]
    to_anchor = {what: _to_anchor(timings, what) for what in ("latency", "throughput")}
    faster = mapped(to_anchor["throughput"], lambda r: 1 / r, "inverse of the ratio of times") if anchor is not None else to_anchor["throughput"]
    return Measurement(
        cost=spent,
        cost_spread=spread,
        anchor_macs=anchor_macs,
        batch=batch,
        latency_ms=clock.estimate(latency.blocks_ms),
        latency_percentiles_ms=percentiles(latency.blocks_ms),
        throughput_clips_per_s=mapped(clock.estimate(throughput.blocks_ms), lambda ms: 1000 * batch / ms, "clips over the median time of a batch"),
        latency_to_anchor=to_anchor["latency"],
        throughput_to_anchor=faster,
        realised_share=faster.value * spent.macs / anchor_macs if faster.value and spent.macs and anchor_macs else None,
        timings=timings,
        stages=stages,
        memory=seen,
        energy=joules,
        content="noise" if content is None else "given",
        inputs=len(batches),
        foreign_cpu_share=foreign,
        flags=tuple(name for name, raised in flags.items() if raised),
        settings=settings,
    )


def _timings(
    subjects: Mapping[str, nn.Module],
    run: Mapping[str, object],
    batches: list[Tensor],
    batch: int,
    device: torch.device,
    seconds: float,
    target: float,
    seed: int,
) -> dict[str, Timing]:
    """Latency at batch 1 and throughput at the batch, `<subject>_<what>`; at batch 1 they are one and the same."""
    kinds = {"latency": [b[:1].clone() for b in batches]} | ({"throughput": batches} if batch > 1 else {})
    found: dict[str, Timing] = {}
    for what, inputs in kinds.items():
        calls = {name: _rotating(module, run if name == SUBJECT else {}, inputs) for name, module in subjects.items()}
        timed = clock.time_interleaved(
            calls,
            target_half_width=target,
            min_blocks=MIN_BLOCKS,
            max_seconds=seconds / len(kinds),
            rng_seed=seed,
            anchor=ANCHOR if ANCHOR in calls else None,
            device=device,
        )
        found |= {f"{name}_{what}": timing for name, timing in timed.items()}
    if batch == 1:
        found |= {f"{name}_throughput": found[f"{name}_latency"] for name in subjects}
    return found


def _energy(call: Callable[[], object], batch: int, device: torch.device, window_s: float | None) -> Energy:
    meter, why = energy.open_meter(device)
    if meter is None:
        return energy.absent(why)
    if window_s is None:
        return energy.absent("energy was not asked for: its windows take longer than this measurement")
    return energy.per_clip(meter, call, batch, device=device, window_s=window_s)


def _to_anchor(timings: Mapping[str, Timing], what: str) -> Estimate:
    if f"{ANCHOR}_{what}" not in timings:
        return Estimate.missing("no anchor was given")
    return ratio(timings[f"{SUBJECT}_{what}"].blocks_ms, timings[f"{ANCHOR}_{what}"].blocks_ms)


def _rotating(model: nn.Module, run: Mapping[str, object], inputs: list[Tensor]) -> Callable[[], object]:
    turn = cycle(inputs)
    return lambda: model(next(turn), **run)


def _inputs(content: Callable[[int], Tensor] | None, clip: Clip, batch: int, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """Several batches on CPU, together more than the caches hold."""
    batch_bytes = batch * torch.Size(clip.shape).numel() * dtype.itemsize
    count = min(max(FEWEST_INPUTS, -(-INPUTS_BYTES // batch_bytes)), MOST_INPUTS)
    if content is None:
        clips_BTCHW = torch.randn((count * batch, *clip.shape), generator=torch.Generator().manual_seed(seed))
    else:
        clips_BTCHW = content(count * batch)
    if tuple(clips_BTCHW.shape) != (count * batch, *clip.shape):
        raise UsageError(
            f"content must give clips of shape {(count * batch, *clip.shape)}",
            given=tuple(clips_BTCHW.shape),
            remedy="return (n, T, C, H, W) for n clips",
        )
    return [part.clone() for part in clips_BTCHW.to(dtype).split(batch)]  # type: ignore[no-untyped-call]
