"""Which version of the code a row stands for: a hash of the system's file, of what it imports inside the project, and of the part that did the work.

Files are hashed as their tokens without comments and docstrings, so that those and the layout don't make results stale, and every version of Python
gives the same hash (a printed syntax tree changes with the version). Nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import os
import tokenize
from pathlib import Path

from vitgs import folders
from vitgs.errors import unknown
from vitgs.record import Kind

# What does the work of each kind of job. The ratios of a measure job depend on the anchor too.
_ROOTS: dict[Kind, tuple[str, ...]] = {
    "train": ("vitgs.train.loop", "vitgs.train.start", "vitgs.train.recipe"),
    "eval": ("vitgs.train.loop", "vitgs.train.start", "vitgs.train.recipe", "vitgs.train.evaluate"),
    "measure": ("vitgs.measure.harness", "vitgs.baselines.vit_mean"),
}
# Messages, places, the form of rows, what a machine is called, how public checkpoints (which no sweep starts from) are named: no row depends on them.
_WITHOUT_INFLUENCE = ("vitgs", "vitgs.errors", "vitgs.folders", "vitgs.numbers", "vitgs.record", "vitgs.measure.machine", "vitgs.backbone.layouts")

# Rows that joined a table after results were made, left out of the hash: no earlier job names them, and a row's name says all that it holds.
ADDED = ('( "64x12x4" , 64 , 12 , 4 , 3.0 ) , ',)


def code_version(system: str, kind: Kind) -> str:
    """Sixteen hex digits that change when a result of this kind for this system may change."""
    return version_with(system, _ROOTS[kind])


def version_with(system: str, roots: tuple[str, ...]) -> str:
    """The same for what only these modules work on, beside the system's own file."""
    return _version(system, roots, os.environ.get("VITGS_SYSTEMS", ""))


@functools.cache
def _version(system: str, roots: tuple[str, ...], extra_folders: str) -> str:
    start = _system_file(system, extra_folders)
    pending, seen = [start, *filter(None, map(_file_of, roots))], dict[Path, str]()
    while pending:
        file = pending.pop()
        if file not in seen:
            imported, seen[file] = _facts(file)
            pending += [found for name in imported if (found := _file_of(name))]
    # By name and content alone: a checkout elsewhere, or the installed package, has the same version.
    text = "\n".join(sorted(f"{file.parent.name}/{file.name} {content}" for file, content in seen.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _system_file(system: str, extra_folders: str) -> Path:
    extra = [Path(folder).expanduser() / f"{system}.py" for folder in extra_folders.split(os.pathsep) if folder]
    for file in (*extra, _file_of("vitgs.graphsampler.model") if system == "graphsampler" else _file_of(f"vitgs.baselines.{system}")):
        if file is not None and file.is_file():
            return file
    raise unknown("system", system, ["graphsampler", *(file.stem for file in _baselines().glob("*.py"))])


def _baselines() -> Path:
    root = folders.checkout()
    return root / "baselines" if root else folders.PACKAGE / "baselines"


def _file_of(module: str) -> Path | None:
    """The file of a module of this project that has influence, else None."""
    if not module.startswith("vitgs") or module in _WITHOUT_INFLUENCE:
        return None
    rest = module.split(".")[1:]
    base = _baselines() if rest[:1] == ["baselines"] and len(rest) > 1 else folders.PACKAGE
    path = base.joinpath(*(rest[1:] if base is not folders.PACKAGE else rest))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


@functools.cache
def _facts(file: Path) -> tuple[tuple[str, ...], str]:
    """The modules that a file imports, and its text without what has no influence."""
    text = file.read_text(encoding="utf-8")
    tree = ast.parse(text)
    return tuple(_imported(tree)), _bare(text, tree)


def _imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _bare(text: str, tree: ast.Module) -> str:
    """The text's tokens, one statement a line, without comments, docstrings, blank lines and what was `ADDED`."""
    docstrings = {position for node in ast.walk(tree) if (position := _docstring(node)) is not None}
    lines = text.splitlines(keepends=True)
    kept: list[str] = []
    inside_from: list[tuple[int, int]] = []  # of nested f-strings, which only newer versions take apart
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        kind = tokenize.tok_name[token.type]
        if kind in ("FSTRING_START", "TSTRING_START"):
            inside_from.append(token.start)
        elif kind in ("FSTRING_END", "TSTRING_END"):
            begin = inside_from.pop()
            kept += [] if inside_from else [_cut(lines, begin, token.end)]
        elif inside_from or kind in ("COMMENT", "NL") or token.start in docstrings:
            continue
        else:
            kept.append({"NEWLINE": "\n", "INDENT": "{", "DEDENT": "}", "ENDMARKER": ""}.get(kind, token.string))
    return functools.reduce(lambda bare, row: bare.replace(row, ""), ADDED, " ".join(kept))


def _docstring(node: ast.AST) -> tuple[int, int] | None:
    """Where the docstring of a module, class or function begins."""
    if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) or ast.get_docstring(node, clean=False) is None:
        return None
    return node.body[0].lineno, node.body[0].col_offset


def _cut(lines: list[str], begin: tuple[int, int], end: tuple[int, int]) -> str:
    """The text between two places (line from 1, column)."""
    if begin[0] == end[0]:
        return lines[begin[0] - 1][begin[1] : end[1]]
    return "".join([lines[begin[0] - 1][begin[1] :], *lines[begin[0] : end[0] - 1], lines[end[0] - 1][: end[1]]])
