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
    "measure": ("cost.params", "cost.macs", "cost.flops", "batch", "settings.dtype"),
}
ESTIMATES = {"train": (), "eval": ("top1", "top5"), "measure": ("latency_to_anchor", "throughput_to_anchor")}
BESIDE = {"train": ("core_seconds",), "eval": (), "measure": ("latency_ms", "throughput_clips_per_s", "energy.gross_j_per_clip")}
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
    kind = before.job.kind
    both = {name: (_at(before.result, name), _at(now.result, name)) for name in (*EXACT[kind], *ESTIMATES[kind], *BESIDE[kind])}
    lines = [_line(name, old, new, old == new) for name, (old, new) in both.items() if name in EXACT[kind] and old is not None]
    for name, (old, new) in both.items():
        if name not in EXACT[kind] and _value(old) is not None:
            lines.append(_estimates(name, old, new, decides=name in ESTIMATES[kind]))
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


def _at(result: Mapping[str, Any], path: str) -> Any:
    """`cost.macs` -> `result["cost"]["macs"]`; None where there is nothing."""
    value: Any = result
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


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
