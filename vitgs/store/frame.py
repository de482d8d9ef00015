"""Records as a pandas table, one row each, for notebooks and checks: knobs and numbers become columns, an Estimate becomes three."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from vitgs.record import Record

_JOB = ("kind", "suite", "profile", "system", "size", "style", "rule", "seed", "start", "data", "purpose")
_ROW = ("id", "attempt", "status", "reason", "code_version", "started_utc", "seconds")


def to_frame(records: Iterable[Record]) -> pd.DataFrame:
    """One row a record. Columns: fields of the row and its job, `knob.<name>`, `run.<name>`, and numbers and texts of the result by dotted path."""
    return pd.DataFrame([_row(record) for record in records])


def _row(record: Record) -> dict[str, Any]:
    job = record.job
    row: dict[str, Any] = {name: getattr(record, name) for name in _ROW} | {name: getattr(job, name) for name in _JOB}
    row |= {"job": job.id, "flags": ",".join(record.flags), "classes": job.clip.class_count}
    row |= {name: getattr(job.clip, name) for name in ("frames", "height", "width")}
    row |= {f"knob.{name}": value for name, value in job.knobs.items()} | {f"run.{name}": value for name, value in job.run.items()}
    row |= {"split": job.options["split"]} if "split" in job.options else {}
    return row | dict(_flat(record.result))


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and "value" in value and "low" in value:
            yield path, value["value"]
            yield f"{path}.low", value["low"]
            yield f"{path}.high", value["high"]
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif not isinstance(value, (list, tuple)):
            yield path, value
