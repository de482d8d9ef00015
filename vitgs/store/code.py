"""Which version of the code a row stands for: a hash of the system's file, of what it imports inside the project, and of the part that did the work.

Files are hashed as syntax trees without docstrings, so that comments, docstrings and layout don't make results stale. Nothing is imported.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
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
# Messages, places, the form of rows, what a machine is called: no result depends on them.
_WITHOUT_INFLUENCE = ("vitgs", "vitgs.errors", "vitgs.folders", "vitgs.numbers", "vitgs.record", "vitgs.measure.machine")


def code_version(system: str, kind: Kind) -> str:
    """Sixteen hex digits that change when a result of this kind for this system may change."""
    return _version(system, kind, os.environ.get("VITGS_SYSTEMS", ""))


@functools.cache
def _version(system: str, kind: Kind, extra_folders: str) -> str:
    start = _system_file(system, extra_folders)
    pending, seen = [start, *filter(None, map(_file_of, _ROOTS[kind]))], dict[Path, str]()
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
    tree = ast.parse(file.read_bytes())
    return tuple(_imported(tree)), _bare(tree)


def _imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names


def _bare(tree: ast.Module) -> str:
    """The tree without docstrings and positions."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.unparse(tree)  # not ast.dump: its form changes with the version of Python
