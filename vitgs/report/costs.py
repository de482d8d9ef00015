"""Measure rows -> what each configuration costs, at one setting (device, type, threads, batch, machine), with speed-ups against the anchor
that the row was timed beside."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from vitgs.record import Record
from vitgs.report.points import Configuration, Cost
from vitgs.report.reading import configuration_of, estimate, machine_of, number

_SETTING = ("device", "dtype", "threads", "batch")
# Where a measure row keeps each value: by its own name, or inside the part that measured it.
_PLACES = {
    "macs": ("macs", "cost_spread.mean", "cost.macs"),
    "flops": ("flops", "cost.flops"),
    "params": ("params", "cost.params"),
    "uncounted": ("uncounted", "cost.uncounted"),
    "macs_reason": ("macs_reason", "cost.reason"),
    "anchor_macs": ("anchor_macs",),
    "latency_ms": ("latency_ms",),
    "clips_per_s": ("clips_per_s", "throughput_clips_per_s"),
    "latency_ratio": ("latency_ratio", "latency_to_anchor"),
    "throughput_ratio": ("throughput_ratio", "throughput_to_anchor"),
    "peak_live_bytes": ("peak_live_bytes", "memory.peak_live_bytes"),
    "cuda_peak_bytes": ("cuda_allocated_bytes", "memory.cuda_allocated_bytes"),
    "energy": ("energy_j_per_clip", "energy.gross_j_per_clip"),
    "stage_share": ("stage_share", "stages.share"),
    "batch": ("batch",),
    "ceiling_share": ("ceiling_share",),
}


class Costs:
    """Finds the measure row of a configuration. Rows at another than the most frequent setting are kept apart and counted in `notes`."""

    def __init__(self, rows: Sequence[Record]) -> None:
        common = Counter(_setting(row) for row in rows).most_common(1)
        self.rows = [row for row in rows if common and _setting(row) == common[0][0]]
        self.notes: list[str] = []
        if len(self.rows) < len(rows):
            at = ", ".join(f"{k} {v}" for k, v in zip((*_SETTING, "machine"), common[0][0], strict=True) if v)
            self.notes.append(f"costs are those at {at}; {len(rows) - len(self.rows)} measure rows at other settings are in the results files only")
        self._by_key: dict[Any, list[Record]] = {}
        for row in self.rows:
            self._by_key.setdefault(_key(configuration_of(row.job, "")), []).append(row)

    def of(self, configuration: Configuration, data: str) -> tuple[Cost, list[Record]]:
        """The cost and the row it came from; a row measured on this data set's clips goes before one that holds for any content."""
        latest = sorted(self._by_key.get(_key(configuration), []), key=lambda row: row.started_utc, reverse=True)
        rows = sorted(latest, key=lambda row: (row.job.data != data, row.job.data != "", row.job.seed))
        if not rows:
            return Cost(), []
        row = rows[0]
        macs, anchor = number(_read(row, "macs")), number(_read(row, "anchor_macs"))
        uncounted = _read(row, "uncounted") or _read(row, "macs_reason") or ""
        batch = number(_read(row, "batch"))
        return Cost(
            macs=macs,
            flops=number(_read(row, "flops")),
            params=number(_read(row, "params")),
            latency_ms=estimate(_read(row, "latency_ms")),
            clips_per_s=estimate(_read(row, "clips_per_s")),
            latency_ratio=estimate(_read(row, "latency_ratio")),
            throughput_ratio=estimate(_read(row, "throughput_ratio")),
            peak_live_bytes=number(_read(row, "peak_live_bytes")),
            cuda_peak_bytes=number(_read(row, "cuda_peak_bytes")),
            energy_j_per_clip=estimate(_read(row, "energy")),
            stage_share={str(k): float(v) for k, v in (_read(row, "stage_share") or {}).items()},
            batch=int(batch) if batch else None,
            uncounted=", ".join(uncounted) if isinstance(uncounted, list) else str(uncounted),
            flop_speedup=anchor / macs if anchor and macs else None,
            ceiling_share=estimate(_read(row, "ceiling_share")),
        ), [row]


def _read(row: Record, name: str) -> Any:
    for place in _PLACES[name]:
        value: Any = row.result
        for step in place.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if value is not None:
            return value
    return None


def _key(c: Configuration) -> Any:
    return (c.system, c.shape, c.knobs, c.run)


def _setting(row: Record) -> tuple[Any, ...]:
    """What all costs of one table must share; times of two machines are never put side by side."""
    return (*(row.result.get(name, row.job.options.get(name)) for name in _SETTING), machine_of(row))
