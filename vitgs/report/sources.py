"""Finds and reads the results folders: rows, machine descriptions and the clip groups that lie beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitgs.errors import NothingToWorkOn, UsageError
from vitgs.record import Record
from vitgs.store.records import files, read

REMEDY = "make some with `vitgs-bench sweep --suite budget`"


@dataclass(frozen=True, kw_only=True)
class MachineResults:
    """One machine's folder, read. `groups` maps a digest to the group index of each clip."""

    machine: str
    records: tuple[Record, ...]
    description: Mapping[str, Any]
    groups: Mapping[str, tuple[int, ...]]


REFERENCE = "reference-"


def machine_folders(results: Sequence[Path]) -> list[Path]:
    """The folders among `results`, or directly inside them, that hold rows; committed references only when named or when nothing else is there."""
    found: list[Path] = []
    for folder in results:
        if files(folder):
            found.append(folder)
        elif folder.is_dir():
            inside = sorted(f for f in folder.iterdir() if f.is_dir() and files(f))
            found += [f for f in inside if not f.name.startswith(REFERENCE)] or inside
    return list(dict.fromkeys(found))


def load(results: Sequence[Path]) -> list[MachineResults]:
    """All machines' results; nothing there, or one of several folders missing, is an error that says how to get some."""
    if missing := [str(folder) for folder in results if not folder.is_dir()]:
        raise NothingToWorkOn("results lie in a folder", given=f"{', '.join(missing)}, which is none", remedy=REMEDY)
    given = ", ".join(map(str, results)) or "no folder"
    found = machine_folders(results)
    if not found:
        raise NothingToWorkOn("a report needs results", given=f"{given} without any .jsonl", remedy=REMEDY)
    loaded = [_machine(folder) for folder in found]
    if not any(machine.records for machine in loaded):
        raise NothingToWorkOn("a report needs results", given=f"{given} with files that hold no row", remedy=REMEDY)
    return loaded


def _machine(folder: Path) -> MachineResults:
    records = tuple(record for file in files(folder) for record in read(file))
    described = folder / "machine.json"
    description = _table(described) if described.is_file() else {}
    groups = {f.stem.removeprefix("groups-"): _groups(f) for f in sorted(folder.glob("groups-*.json"))}
    return MachineResults(machine=folder.resolve().name, records=records, description=description, groups=groups)


def _groups(file: Path) -> tuple[int, ...]:
    groups = _table(file).get("groups")
    if not isinstance(groups, list) or not all(isinstance(group, int) for group in groups):
        raise _broken(file, "no list of numbers called groups")
    return tuple(groups)


def _table(file: Path) -> dict[str, Any]:
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise _broken(file, str(error)) from error
    if not isinstance(table, dict):
        raise _broken(file, f"a {type(table).__name__}")
    return table


def _broken(file: Path, what: str) -> UsageError:
    return UsageError("what lies beside the rows must be as a sweep wrote it", given=f"{file}: {what}", remedy="restore the file from a copy")
