"""What one forward pass costs in arithmetic: parameters, MACs and FLOPs (2 a MAC), by two counters that must agree within 1 %.

Public counters, when asked, have to agree too, or to lack operators, by name, that make up the difference. Else there is no number.

Counted on the meta device, where nothing is computed; a model whose shapes depend on values (boolean masks, `nonzero`, `.item()`) is run
for real on CPU instead, and its cost then belongs to the clip it was given.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from vitgs.measure import formula, witnesses
from vitgs.measure.formula import FORMULAS, FormulaCounter, operator_packets
from vitgs.measure.setting import evaluating, frozen, no_fast_path
from vitgs.measure.witnesses import Missing, Witness, near

TOLERANCE = 0.01
FLOPS_PER_MAC = 2
# What models raise on the meta device when they need values; anything that is really wrong is raised again by the run on CPU.
_NEEDS_VALUES = (RuntimeError, ValueError, TypeError)


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one view. `macs` is None, with `reason`, when the counters disagree. `macs_by_part`: by stage where the model marks stages, else by
    top-level module. `counters`: MACs by each counter, None where it can't count; `uncounted`: which operators which counter left out, and
    `left_out` how much that is: by public counter and operator."""

    params: int
    params_trainable: int
    macs: int | None
    flops: int | None
    macs_by_part: Mapping[str, int] = field(default_factory=dict)
    counters: Mapping[str, int | None] = field(default_factory=dict)
    uncounted: tuple[str, ...] = ()
    left_out: Mapping[str, Mapping[str, Missing]] = field(default_factory=dict)
    device: str = "meta"
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class CostSpread:
    """MACs over real clips, for systems whose cost depends on content."""

    clips: int
    mean: float
    p50: float
    p95: float
    samples: tuple[int, ...]


def count(model: nn.Module, clip_1TCHW: Tensor, run: Mapping[str, object], *, witnesses_too: bool = False) -> Cost:
    """The cost of `model(clip_1TCHW, **run)`; `witnesses_too` asks fvcore and ptflops as well (seconds, and a real run on CPU)."""
    clip = clip_1TCHW.to(next((p.dtype for p in model.parameters() if p.is_floating_point()), clip_1TCHW.dtype))
    try:
        on, clip = copy.deepcopy(model).to("meta"), clip.to("meta")
        torch_count, ours = _both(on, clip, run)
        device = "meta"
    except _NEEDS_VALUES:
        on, clip = on_cpu(model), clip_1TCHW.to("cpu", clip.dtype)
        torch_count, ours = _both(on, clip, run)
        device = "cpu"
    counters: dict[str, int | None] = {"torch": torch_count.get_total_flops() // FLOPS_PER_MAC, "formula": ours.macs}
    uncounted = [f"torch and formula: {name}" for name in sorted(ours.undescribed)]
    heard: dict[str, Witness] = {}
    if witnesses_too:
        heard = witnesses.ask(on_cpu(model), clip_1TCHW.to("cpu", clip.dtype), run, tolerance=TOLERANCE)
    for name, witness in heard.items():
        counters[name] = witness.macs
        uncounted += [f"{name}: {what}" for what in witness.said(ours.macs, TOLERANCE)]
    reason = _disagreement(torch_count, ours) or next(
        (f"{name} {witness.open(ours.macs)}" for name, witness in heard.items() if not witness.explained(ours.macs, TOLERANCE)), ""
    )
    return Cost(
        params=sum(p.numel() for p in model.parameters()),
        params_trainable=sum(p.numel() for p in model.parameters() if p.requires_grad),
        macs=None if reason else ours.macs,
        flops=None if reason else ours.macs * FLOPS_PER_MAC,
        macs_by_part=dict(ours.by_stage) if ours.staged else _by_module(torch_count, torch_count.get_total_flops() // FLOPS_PER_MAC),
        counters=counters,
        uncounted=tuple(uncounted),
        left_out={name: witness.left_out for name, witness in heard.items() if witness.left_out},
        device=device,
        reason=reason,
    )


def spread(model: nn.Module, clips_BTCHW: Tensor, run: Mapping[str, object]) -> CostSpread:
    """MACs of each clip alone, by a real run on CPU."""
    on = on_cpu(model)
    dtype = next((p.dtype for p in on.parameters() if p.is_floating_point()), clips_BTCHW.dtype)
    samples = []
    with evaluating(on), torch.no_grad(), no_fast_path():
        for clip in clips_BTCHW.to("cpu", dtype).split(1):  # type: ignore[no-untyped-call]
            with FormulaCounter() as counter:
                on(clip, **run)
            samples.append(counter.macs)
    ranked = sorted(samples)
    p95 = ranked[min(len(ranked) - 1, int(0.95 * len(ranked)))]
    return CostSpread(clips=len(samples), mean=statistics.fmean(samples), p50=statistics.median(samples), p95=p95, samples=tuple(samples))


def _both(model: nn.Module, clip: Tensor, run: Mapping[str, object]) -> tuple[FlopCounterMode, FormulaCounter]:
    # Two passes: each counter sees the operators themselves, not what the other made of them.
    # no_grad, not inference mode: autograd's dispatch takes composite operators apart, as it does in the models' own tests.
    with evaluating(model), frozen(model), torch.no_grad(), no_fast_path():
        theirs = FlopCounterMode(display=False, custom_mapping=_torch_lacks())
        with theirs:
            model(clip, **run)
        with FormulaCounter() as ours:
            model(clip, **run)
    return theirs, ours


def _disagreement(theirs: FlopCounterMode, ours: FormulaCounter) -> str:
    """Empty when our two counters agree, on the sum and on each operator, so that no two errors cancel; else the two numbers and those operators."""
    by_torch = theirs.get_total_flops() // FLOPS_PER_MAC
    counted = {packet._qualified_op_name: flops // FLOPS_PER_MAC for packet, flops in theirs.get_flop_counts().get("Global", {}).items()}
    noticed = TOLERANCE * max(by_torch, ours.macs)
    apart = sorted(name for name in {*counted, *ours.by_operator} if abs(counted.get(name, 0) - ours.by_operator[name]) > noticed)
    if near(by_torch, ours.macs, TOLERANCE) and not apart:
        return ""
    at = f" ({', '.join(apart)})" if apart else ""
    return f"the counters disagree by more than {TOLERANCE:.0%}: torch {by_torch}, formula {ours.macs} MACs{at}"


def _torch_lacks() -> dict[object, object]:
    """Operators for which this version of torch has no formula (2.13 counted fused attention on CPU as nothing): ours stand in."""
    known = FlopCounterMode(display=False).flop_registry

    def standing_in(name: str) -> object:
        def flops(*args: object, out_val: Tensor | tuple[Tensor, ...], **options: object) -> int:
            return FLOPS_PER_MAC * FORMULAS[name](args, out_val if isinstance(out_val, Tensor) else out_val[0])

        flops._get_raw = True  # type: ignore[attr-defined]  # torch's own mark for a formula that takes tensors, not shapes
        return flops

    return {packet: standing_in(name) for name, packet in operator_packets(tuple(FORMULAS)).items() if packet not in known}


def _by_module(counted: FlopCounterMode, total: int) -> dict[str, int]:
    parts = {}
    for path, flops in counted.get_flop_counts().items():
        if path.count(".") == 1 and (macs := sum(flops.values()) // FLOPS_PER_MAC):
            parts[path.partition(".")[2]] = macs
    rest = total - sum(parts.values())
    return parts | ({formula.OTHER: rest} if rest else {})


def on_cpu(model: nn.Module) -> nn.Module:
    """The model itself if it is on CPU, else a copy."""
    if all(t.device.type == "cpu" for t in (*model.parameters(), *model.buffers())):
        return model
    return copy.deepcopy(model).to("cpu")
