"""The gate's own records: `results/<machine>/gate.jsonl`, append-only and on the disk before the gate answers, and its calibration beside it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitgs import folders
from vitgs.errors import UsageError
from vitgs.measure import machine
from vitgs.record import digest, to_json
from vitgs.store import records

FORMAT = 1
CUT_MARK = records.CUT_MARK
ROWS, CALIBRATION = records.GATE, "gate-calibration.json"


def folder(results: Path | None = None) -> Path:
    """This machine's results."""
    return (results or folders.results()) / machine.slug()


def append(path: Path, row: Mapping[str, Any]) -> None:
    """Adds a row; a line that an earlier writer left cut is ended and marked first. A full disk is the one-line error of all results."""
    line = (json.dumps({"format": FORMAT, **to_json(row)}, separators=(",", ":"), allow_nan=False) + "\n").encode()
    with records.no_room_is_known(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            size = file.seek(0, os.SEEK_END)
            ended = size == 0 or os.pread(file.fileno(), 1, size - 1) == b"\n"
            file.write(line if ended else CUT_MARK.encode() + b"\n" + line)
            file.flush()
            os.fsync(file.fileno())


def rows(path: Path) -> list[dict[str, Any]]:
    """All rows that were written whole; a line that was is no row is an error that names it, as in the results files."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.endswith(CUT_MARK.encode()):
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
            if number == len(lines):  # cut while it was written, and not yet marked
                continue
        if not isinstance(row, dict) or row.get("format") != FORMAT:
            remedy = "restore the file from a copy, or move that line out of it"
            raise UsageError("every line of the gate's file must be one of its rows", given=f"{path}:{number}", remedy=remedy)
        found.append(row)
    return found


def shape(case: Mapping[str, Any]) -> str:
    """The name of what a calibration holds for: everything of a case but what it is called."""
    return digest({key: value for key, value in case.items() if key not in ("name", "was")})


def save_calibration(place: Path, found: Mapping[str, Any]) -> Path:
    """Writes it, whole or not at all; cases of other suites stay."""
    path = place / CALIBRATION
    whole = {"format": FORMAT, "cases": {**load_calibration(place), **found}}
    records.write_beside(path, json.dumps(to_json(whole), indent=1) + "\n")
    return path


def load_calibration(place: Path) -> dict[str, Any]:
    """By the case's shape; empty where this machine was not calibrated, or by another format."""
    try:
        table = json.loads((place / CALIBRATION).read_text(encoding="utf-8"))
        return dict(table["cases"]) if table.get("format") == FORMAT else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
