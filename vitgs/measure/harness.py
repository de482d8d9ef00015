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
from vitgs.measure import batches as batch_search
from vitgs.measure import clock, cost, energy, memory, nvml, selftest, setting, soundness, validity
from vitgs.measure import execution as executions
from vitgs.measure.batches import BestBatch
from vitgs.measure.clock import Timing
from vitgs.measure.cost import Cost, CostSpread
from vitgs.measure.energy import Energy
from vitgs.measure.execution import EAGER, Execution, Runner
from vitgs.measure.intervals import Percentiles, mapped, percentiles, quotient, ratio
from vitgs.measure.memory import Memory
from vitgs.measure.stagetime import StageTimes, stage_times
from vitgs.record import Clip, Estimate

MIN_BLOCKS = 12
STAGE_SHARE, CEILING_SHARE = 0.1, 0.1
INPUTS_BYTES = 32 * 2**20  # more than the caches that would flatter a repeated input
FEWEST_INPUTS, MOST_INPUTS = 4, 16
FEWEST_OF_A_SEARCH, MOST_DIFFERENT = 2, 128
SPREAD_CLIPS = 8
SUBJECT, ANCHOR = "subject", "anchor"


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """All of it. Ratios are subject over anchor: times for latency, clips/s for throughput. `realised_share`: the batch's speed-up over the anchor
    divided by the FLOP speed-up. `ceiling_macs_per_s`: what a square product reaches here in this type, right after the timings; `ceiling_share`: the
    MACs a second of the batch over that. `content`: what the inputs were. `flags`: unstable, few_samples, contaminated, throttled, quota, swapped,
    drift. Cost, memory and stages are of the model as it is, all other numbers of how `settings` say that it ran. `best_batch`: where asked for."""

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
    ceiling_macs_per_s: Estimate
    ceiling_share: Estimate
    timings: Mapping[str, Timing]
    stages: StageTimes
    memory: Memory
    energy: Energy
    content: Literal["given", "noise"]
    inputs: int
    foreign_cpu_share: float | None
    flags: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    best_batch: BestBatch | None = None


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
    execution: Execution = EAGER,
    best_batch: bool = False,
) -> Measurement:
    """Measures `model(clips, **run)` in about `seconds` of timing. `energy_window_s` (5 or more) asks for energy too: one idle window, six of work.
    `best_batch` asks for the batch with the most clips/s, in as many seconds again; `execution` says how subject and anchor run while they are timed.

    `content(n)` gives n clips `(n, T, C, H, W)` of the kind the model is for; None means noise, on which content-adaptive systems behave differently.
    `target`: half-width of the intervals as a share. The modules are moved to the device and dtype and stay there. Raises
    `soundness.NotMeasurable` for a model that runs out of memory, fails, or gives anything but finite logits.
    """
    if batch < 1 or seconds <= 0 or target <= 0:
        raise UsageError("batch, seconds and target must be positive", given=f"{batch}, {seconds}, {target}", remedy="set each above 0")
    where, kind = setting.device_of(device), setting.dtype_of(dtype)
    executions.check(execution, where)
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
            runners = {name: Runner(module, run if name == SUBJECT else {}, execution, where) for name, module in subjects.items()}
            for runner in runners.values():  # compiled and captured before anybody watches who uses the cores
                for inputs in _kinds(batches, batch).values():
                    runner.ready(inputs)
            before, strangers, slowed = validity.look(), gpu and gpu.strangers(), gpu and gpu.slowed()
            timings = _timings(runners, batches, batch, where, seconds * (1 - STAGE_SHARE - CEILING_SHARE), target, seed)
            slowed = slowed or (gpu and gpu.slowed())
            ceiling = _ceiling(dtype, kind, where, seconds * CEILING_SHARE)
            verdict = validity.judge(before, validity.look())
            stages = stage_times(_rotating(lambda clips: model(clips, **run), batches), seconds=seconds * STAGE_SHARE, device=where)
            before = validity.look()
            found = None
            if best_batch:

                def inputs_of(size: int) -> list[Tensor]:
                    return [b.to(where) for b in _inputs(_repeating(content), clip, size, kind, seed, fewest=FEWEST_OF_A_SEARCH)]

                fits = _fits(memory.room_for(seen, batch, where), _sized(Runner(model, run, EAGER, where), inputs_of), where)
                sized = _sized(runners[SUBJECT], inputs_of)
                found = batch_search.best_batch(sized, fits, seconds=seconds, target=target, device=where, seed=seed)
            joules = _energy(_rotating(runners[SUBJECT].ready(batches), batches), batch, where, energy_window_s)
            later = validity.judge(before, validity.look()) if found is not None or joules.source is not None else verdict
            strangers = strangers or (gpu and gpu.strangers())
        settings = setting.in_force(where, dtype) | ({} if gpu is None else {"gpu": gpu.facts()})
        if execution != EAGER:
            ran = {name: runner.facts for name, runner in runners.items()}
            settings |= {"compile": execution.backend, "cuda_graphs": execution.cuda_graphs, "execution": ran}
    own = [timing for name, timing in timings.items() if name.startswith(SUBJECT)]
    flags = {
        "unstable": any(timing.unstable for timing in own) or (found is not None and found.unstable),
        "few_samples": any(len(timing.blocks_ms) < MIN_BLOCKS for timing in own),
        **dict.fromkeys((*verdict.flags, *later.flags), True),
    }
    flags |= {"contaminated": True} if strangers else {}
    flags |= {"throttled": True} if slowed else {}
    latency, throughput = timings[f"{SUBJECT}_latency"], timings[f"{SUBJECT}_throughput"]
    to_anchor = {what: _to_anchor(timings, what) for what in ("latency", "throughput")}
    faster = mapped(to_anchor["throughput"], lambda r: 1 / r, "inverse of the ratio of times") if anchor is not None else to_anchor["throughput"]
    per_s = mapped(clock.estimate(throughput.blocks_ms), lambda ms: 1000 * batch / ms, "clips over the median time of a batch")
    macs = None if spent.macs is None else spent.macs if spread is None else spread.mean
    return Measurement(
        cost=spent,
        cost_spread=spread,
        anchor_macs=anchor_macs,
        batch=batch,
        latency_ms=clock.estimate(latency.blocks_ms),
        latency_percentiles_ms=percentiles(latency.blocks_ms),
        throughput_clips_per_s=per_s,
        latency_to_anchor=to_anchor["latency"],
        throughput_to_anchor=faster,
        realised_share=faster.value * spent.macs / anchor_macs if faster.value and spent.macs and anchor_macs else None,
        ceiling_macs_per_s=ceiling,
        ceiling_share=_share(macs, per_s, ceiling, spent.reason),
        timings=timings,
        stages=stages,
        memory=seen,
        energy=joules,
        content="noise" if content is None else "given",
        inputs=len(batches),
        foreign_cpu_share=verdict.foreign_share,
        flags=tuple(name for name, raised in flags.items() if raised),
        settings=settings,
        best_batch=found,
    )


def _timings(
    runners: Mapping[str, Runner], batches: list[Tensor], batch: int, device: torch.device, seconds: float, target: float, seed: int
) -> dict[str, Timing]:
    """Latency at batch 1 and throughput at the batch, `<subject>_<what>`; at batch 1 they are one and the same."""
    kinds = _kinds(batches, batch)
    found: dict[str, Timing] = {}
    for what, inputs in kinds.items():
        calls = {name: _rotating(runner.ready(inputs), inputs) for name, runner in runners.items()}
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
        found |= {f"{name}_throughput": found[f"{name}_latency"] for name in runners}
    return found


def _kinds(batches: list[Tensor], batch: int) -> dict[str, list[Tensor]]:
    return {"latency": [b[:1].clone() for b in batches]} | ({"throughput": batches} if batch > 1 else {})


def _ceiling(dtype: str, kind: torch.dtype, device: torch.device, seconds: float) -> Estimate:
    """What a square product reaches; a device that is too full for it has a model that was measured all the same."""
    try:
        return selftest.products({dtype: kind}, device, seconds=seconds)[dtype]
    except torch.OutOfMemoryError:
        return Estimate.missing("no memory left for the square product beside the model")


def _share(macs: float | None, clips_per_s: Estimate, ceiling: Estimate, no_macs: str) -> Estimate:
    if macs is None:
        return Estimate.missing(no_macs or "no MACs")
    return quotient(mapped(clips_per_s, lambda rate: macs * rate, "MACs a second"), ceiling, "MACs a second over the square product's")


def _energy(call: Callable[[], object], batch: int, device: torch.device, window_s: float | None) -> Energy:
    meters, why = energy.open_meters(device)
    if not meters:
        return energy.absent(why)
    if window_s is None:
        return energy.absent("energy was not asked for: its windows take longer than this measurement")
    return energy.first_reading(meters, call, batch, device=device, window_s=window_s, before=why)


def _sized(runner: Runner, inputs_of: Callable[[int], list[Tensor]]) -> Callable[[int], Callable[[], object]]:
    """The call of one batch of n clips, on inputs of its own."""

    def call_of(size: int) -> Callable[[], object]:
        inputs = inputs_of(size)
        return _rotating(runner.ready(inputs), inputs)

    return call_of


def _fits(room: Callable[[int], bool], sized: Callable[[int], Callable[[], object]], device: torch.device) -> Callable[[int], bool]:
    """Whether a batch fits: by what was seen at the stated batch, and on a GPU, which says so when it is full, by trying."""

    def fits(size: int) -> bool:
        if not room(size):
            return False
        if device.type == "cuda":
            try:
                sized(size)()
                setting.synchronise(device)
            except torch.OutOfMemoryError:
                torch.cuda.empty_cache()
                return False
        return True

    return fits


def _to_anchor(timings: Mapping[str, Timing], what: str) -> Estimate:
    if f"{ANCHOR}_{what}" not in timings:
        return Estimate.missing("no anchor was given")
    return ratio(timings[f"{SUBJECT}_{what}"].blocks_ms, timings[f"{ANCHOR}_{what}"].blocks_ms)


def _rotating(forward: Callable[[Tensor], object], inputs: list[Tensor]) -> Callable[[], object]:
    turn = cycle(inputs)
    return lambda: forward(next(turn))


def _repeating(content: Callable[[int], Tensor] | None) -> Callable[[int], Tensor] | None:
    """The same content for any number of clips: a large batch may ask for more than there are."""
    if content is None:
        return None

    def clips(count: int) -> Tensor:
        some = content(min(count, MOST_DIFFERENT))
        return some.repeat(-(-count // len(some)), 1, 1, 1, 1)[:count]

    return clips


def _inputs(
    content: Callable[[int], Tensor] | None, clip: Clip, batch: int, dtype: torch.dtype, seed: int, *, fewest: int = FEWEST_INPUTS
) -> list[Tensor]:
    """Several batches on CPU, together more than the caches hold."""
    batch_bytes = batch * torch.Size(clip.shape).numel() * dtype.itemsize
    count = min(max(fewest, -(-INPUTS_BYTES // batch_bytes)), MOST_INPUTS)
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
