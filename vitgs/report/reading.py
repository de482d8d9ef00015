"""Reads single rows: which configuration a row belongs to, which row of a job counts, and the numbers inside its result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from vitgs.errors import UsageError
from vitgs.record import Estimate, Job, Kind, Record
from vitgs.report.families import group_of
from vitgs.report.points import NOT_READ, Configuration
from vitgs.store.code import code_version
from vitgs.store.same import settled

STALE, CONTAMINATED = "stale", "contaminated"
CurrentVersion = Callable[[str, Kind], "str | None"]


def present_version(system: str, kind: Kind) -> str | None:
    """The version of the code that is here; None for a system whose file is not here, about whose rows nothing can be said."""
    try:
        return code_version(system, kind)
    except UsageError:
        return None


def configuration_of(job: Job, machine: str) -> Configuration:
    """The configuration that a row is about; a train row has no run knobs, a measure row no rule."""
    return Configuration(
        machine=machine,
        profile=job.profile,
        system=job.system,
        group=str(job.options.get("group") or group_of(job.system)),
        size=job.size,
        style=job.style,
        frames=job.clip.frames,
        height=job.clip.height,
        width=job.clip.width,
        knobs=frozen(job.knobs),
        run=frozen(job.run),
        rule=job.rule,
        label=str(job.options.get("label") or ""),
    )


def machine_of(record: Record) -> str:
    """The machine that made a row, by the row's own word: a folder may hold rows of several."""
    return str(record.environment.get("machine") or "")


def frozen(knobs: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Knobs as a value that can be a key; a list becomes its JSON text."""
    return tuple((k, json.dumps(v) if isinstance(v, (list, dict)) else v) for k, v in sorted(knobs.items()))


def is_stale(record: Record, current: CurrentVersion | None) -> bool:
    """Whether the code has changed since; by the row's own flag, and by the present version where the caller can tell it."""
    now = current(record.job.system, record.job.kind) if current else None
    return STALE in record.flags or (now is not None and bool(record.code_version) and settled(record.code_version) != settled(now))


def newest(records: Iterable[Record], current: CurrentVersion | None) -> dict[str, Record]:
    """The row that counts for each job: measured before anything else, fresh before stale, clean before contaminated, then the latest attempt."""
    chosen: dict[str, Record] = {}
    for record in records:
        known = chosen.get(record.job.id)
        if known is None or _standing(record, current) >= _standing(known, current):
            chosen[record.job.id] = record
    return chosen


def _standing(record: Record, current: CurrentVersion | None) -> tuple[bool, bool, bool, int]:
    return (record.status == "measured", not is_stale(record, current), CONTAMINATED not in record.flags, record.attempt)


def number(value: Any) -> float | None:
    """A number, or the mean of a distribution where cost depends on content."""
    if isinstance(value, Mapping):
        value = value.get("value", value.get("mean"))
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def estimate(value: Any) -> Estimate:
    """An Estimate from its JSON form; absent means missing, never 0."""
    if not isinstance(value, Mapping):
        found = number(value)
        return NOT_READ if found is None else Estimate(value=found)
    fields = {k: number(value.get(k)) for k in ("value", "low", "high")}
    return Estimate(
        value=fields["value"], low=fields["low"], high=fields["high"], method=str(value.get("method", "")), reason=str(value.get("reason", ""))
    )
