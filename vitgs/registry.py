"""The folder is the registry: every file of `baselines/` (and of `$VITGS_SYSTEMS`) that defines SYSTEM, and the method. No list to keep by hand."""

from __future__ import annotations

import fnmatch
import importlib
import importlib.util
import os
import pkgutil
import sys
from pathlib import Path
from types import ModuleType

import vitgs.baselines
from vitgs.errors import UsageError, unknown
from vitgs.spec import System

METHOD = "graphsampler"


def _extra_files() -> dict[str, Path]:
    folders = [Path(f).expanduser().resolve() for f in os.environ.get("VITGS_SYSTEMS", "").split(os.pathsep) if f]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError("every folder of VITGS_SYSTEMS must exist", given=folder, remedy="correct or unset VITGS_SYSTEMS")
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.py")) if not path.stem.startswith("_")}


def names() -> list[str]:
    """All systems, the method first, without importing any of them."""
    found = {module.name for module in pkgutil.iter_modules(vitgs.baselines.__path__)} | set(_extra_files())
    return [METHOD, *sorted(found - {METHOD})]


def module_of(name: str) -> ModuleType:
    """The module that defines a system."""
    if name not in names():
        raise unknown("system", name, names())
    if name == METHOD:
        return importlib.import_module("vitgs.graphsampler.model")
    if extra := _extra_files().get(name):
        return _load_file(f"vitgs_extra_{name}", extra)
    return importlib.import_module(f"vitgs.baselines.{name}")


def _load_file(module_name: str, path: Path) -> ModuleType:
    """A module from a file outside the package; known to `sys.modules`, since pickle looks its classes up there."""
    loaded = sys.modules.get(module_name)
    if loaded is not None and loaded.__file__ == str(path):
        return loaded
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        # A half-run module must not be taken for the system at the next call.
        del sys.modules[module_name]
        raise
    return module


def get(name: str) -> System:
    """The system of that name; an unknown one is an error that lists the near names and all."""
    system = getattr(module_of(name), "SYSTEM", None)
    if not isinstance(system, System) or system.name != name:
        raise UsageError(
            f"the file of system {name} must define SYSTEM = System(name={name!r}, ...)", given=repr(system), remedy="see CONTRIBUTING.md"
        )
    return system


def select(patterns: list[str]) -> list[str]:
    """The names that match any of the shell patterns, in the order of the patterns; a pattern that matches nothing is an error."""
    chosen: list[str] = []
    for pattern in patterns:
        matches = fnmatch.filter(names(), pattern)
        if not matches:
            raise unknown("system", pattern, names())
        chosen += [name for name in matches if name not in chosen]
    return chosen
