"""`list`: what there is. The plain tables read names and texts without importing any system, so that they answer at once."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from vitgs import folders
from vitgs.cli import show as output
from vitgs.errors import unknown

Row = dict[str, Any]


def show(
    what: Annotated[str, typer.Argument(help="models, suites, profiles or data.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="A Markdown table.")] = False,
) -> None:
    """Show what there is: models with their knobs (--json), suites, profiles, data sets."""
    if what not in _KINDS:
        raise unknown("list", what, _KINDS)
    full = as_json or as_markdown
    rows = _full_models() if what == "models" and full else _KINDS[what]()
    if as_json:
        output.document(rows)
        return
    header = list(rows[0]) if rows else []
    cells = [[_cell(value) for value in row.values()] for row in rows]
    (output.markdown if as_markdown else output.columns)(cells, header)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={knob['default']}" for name, knob in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _models() -> list[Row]:
    """Names and groups, read from the text of each system's file: importing one would import torch."""
    texts = {path.stem: path for path in _system_files()}
    method = folders.PACKAGE / "graphsampler" / "model.py"
    files = {"graphsampler": method} if method.is_file() else {}
    return [{"name": name, **_literals(path)} for name, path in {**files, **dict(sorted(texts.items()))}.items()]


def _system_files() -> list[Path]:
    import os

    places = [Path(place).expanduser() for place in os.environ.get("VITGS_SYSTEMS", "").split(os.pathsep) if place]
    root = folders.checkout()
    places = [root / "baselines" if root else folders.PACKAGE / "baselines", *places]
    return [path for place in places for path in sorted(place.glob("*.py")) if not path.stem.startswith("_")]


def _literals(path: Path) -> Row:
    """`group` and `paper` of `SYSTEM = System(...)` where they are written as literals."""
    found = {"group": "", "paper": ""}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        value = node.value if isinstance(node, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(value, ast.Call) and getattr(value.func, "id", "") == "System":
            for keyword in value.keywords:
                if keyword.arg in found and isinstance(keyword.value, ast.Constant):
                    found[keyword.arg] = str(keyword.value.value)
    return dict(found)


def _full_models() -> list[Row]:
    from vitgs import registry

    rows = []
    for name in registry.names():
        system = registry.get(name)
        knobs = {
            knob_name: {"default": knob.default, "values": knob.values, "low": knob.low, "high": knob.high, "when": knob.when, "help": knob.help}
            for knob_name, knob in system.space.items()
        }
        rows.append({"name": name, "group": system.group, "paper": system.paper, "knobs": knobs})
    return rows


def _titled(folder: Path) -> list[Row]:
    rows = []
    for path in sorted(folder.glob("*.toml"), key=lambda file: file.stem):
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        rows.append({"name": path.stem, "title": str(table.get("title", ""))})
    return rows


def _data() -> list[Row]:
    from vitgs import data
    from vitgs.data.task import TASKS

    embedded = [
        {"name": name, "frames": task.frames, "height": task.height, "width": task.width, "classes": len(task.class_names), "chance": task.chance}
        for name, task in ((name, TASKS[name.removeprefix(data.PREFIX)]) for name in data.names())
    ]
    return embedded


_KINDS: dict[str, Callable[[], list[Row]]] = {
    "models": _models,
    "suites": lambda: _titled(folders.suites()),
    "profiles": lambda: _titled(folders.suites() / "profiles"),
    "data": _data,
}
