"""What commands print: aligned columns for people, Markdown for a page, one JSON document as the last line for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from vitgs.record import to_json


def columns(rows: Iterable[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Rows under each other, each column as wide as its widest cell."""
    table = [list(header), *map(list, rows)] if header else [list(row) for row in rows]
    widths = [max(len(row[i]) for row in table) for i in range(max(map(len, table), default=0))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def markdown(rows: Iterable[Sequence[str]], header: Sequence[str]) -> None:
    """The same as a Markdown table."""
    for row in (header, ["---"] * len(header), *rows):
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")


def document(value: Any) -> None:
    """One JSON document on one line."""
    print(json.dumps(to_json(value), allow_nan=False), flush=True)
