"""Whether a second run of a job agrees with its row. Cost and weights must be equal; accuracy and time must agree within their intervals.

Times are compared as ratios to the anchor of the same rounds: the absolute ones belong to the machine and to the hour, and only stand beside.
Two runs of the same thing both scatter, so their 95 % intervals must overlap; the new value need not lie inside the old interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitgs.record import Record

EXACT = {
    "train": ("params", "params_trainable", "steps"),
    "eval": ("split", "clips", "labels_digest"),
    "measure": ("params", "macs", "flops", "batch", "dtype"),
}
ESTIMATES = {"train": (), "eval": ("top1", "top5"), "measure": ("latency_ratio", "throughput_ratio")}
BESIDE = {"train": ("core_seconds",), "eval": (), "measure": ("latency_ms", "clips_per_s", "energy_j_per_clip")}
Z95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Line:
    """One value then and now. `agrees` is None for what stands beside and decides nothing."""

    name: str
    before: str
    now: str
    agrees: bool | None


def compare(before: Record, now: Record) -> list[Line]:
    """Every value that both rows should share."""
    kind, old, new = before.job.kind, before.result, now.result
    lines = [_line(name, old[name], new.get(name), old[name] == new.get(name)) for name in EXACT[kind] if name in old]
    lines += [_estimates(name, old[name], new.get(name), decides=True) for name in ESTIMATES[kind] if _value(old.get(name)) is not None]
    lines += [_estimates(name, old[name], new.get(name), decides=False) for name in BESIDE[kind] if _value(old.get(name)) is not None]
    return lines + (_training(before, now) if kind == "train" else [])


def reproduced(lines: list[Line]) -> bool:
    """Whether everything that decides agrees; with nothing to decide by, no."""
    decided = [line.agrees for line in lines if line.agrees is not None]
    return bool(decided) and all(decided)


def _training(before: Record, now: Record) -> list[Line]:
    """Equal weights settle it; else the last val accuracy must agree as two samples of that many clips do."""
    old, new = before.result.get("checkpoint", {}).get("digest"), now.result.get("checkpoint", {}).get("digest")
    if old is not None and old == new:
        return [_line("weights", old, new, True)]
    clips = int(before.job.options.get("recipe", {}).get("val_clips", 300))
    accuracies = [float(record.result["curve"][-1]["val_top1"]) for record in (before, now) if record.result.get("curve")]
    if len(accuracies) < 2:
        return [_line("weights", old, new, False)]
    spread = math.sqrt(sum(p * (1 - p) for p in (min(max(a, 1 / clips), 1 - 1 / clips) for a in accuracies)) / clips)
    agrees = abs(accuracies[0] - accuracies[1]) <= Z95 * spread
    return [_line("weights", old, new, None), _line("val_top1", f"{accuracies[0]:.4g}", f"{accuracies[1]:.4g}", agrees)]


def _estimates(name: str, before: Any, now: Any, *, decides: bool) -> Line:
    (old_low, old_high), (new_low, new_high) = _interval(before), _interval(now)
    overlap = _value(now) is not None and old_low <= new_high and new_low <= old_high
    return _line(name, _text(before), _text(now), overlap if decides else None)


def _value(estimate: Any) -> float | None:
    value = estimate.get("value") if isinstance(estimate, Mapping) else estimate
    return float(value) if isinstance(value, (int, float)) else None


def _interval(estimate: Any) -> tuple[float, float]:
    value = _value(estimate)
    middle = math.nan if value is None else value
    if not isinstance(estimate, Mapping):
        return middle, middle
    low, high = estimate.get("low"), estimate.get("high")
    return middle if low is None else float(low), middle if high is None else float(high)


def _text(estimate: Any) -> str:
    value, (low, high) = _value(estimate), _interval(estimate)
    if value is None:
        return "–"
    return f"{value:.4g}" if low == high else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _line(name: str, before: Any, now: Any, agrees: bool | None) -> Line:
    return Line(name=name, before=str(before), now="–" if now is None else str(now), agrees=agrees)
