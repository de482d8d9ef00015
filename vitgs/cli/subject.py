"""From what a user calls a model to the module: a system of the registry, or a model of the user's own.

A model of one's own is `package.module:factory`, or a .py file, `path.py:factory`; `factory` is a function `factory(clip) -> nn.Module`, or a
`System` (then its knobs can be set). A file without `:factory` is asked for `SYSTEM`, then for `factory`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from vitgs import registry
from vitgs.backbone.sizes import Style
from vitgs.cli.loading import load_and_tell
from vitgs.errors import UsageError, VitgsError
from vitgs.record import Clip, Size
from vitgs.spec import System


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A built model and what it was built from; `run` are the run knobs that the user set."""

    system: System
    model: nn.Module
    clip: Clip
    size: str
    style: str
    knobs: Mapping[str, Any]
    run: Mapping[str, Any]


def system_of(reference: str) -> System:
    """The system of a name, or one made around a factory."""
    path, colon, attribute = reference.rpartition(":")
    if not colon:
        path, attribute = reference, ""
    if path.endswith(".py"):
        return _from_module(_file_module(Path(path).expanduser()), attribute, reference)
    if colon:
        return _from_module(_named_module(path, reference), attribute, reference)
    return registry.get(reference)


def build(reference: str, *, size: str, style: str, clip: Clip, given: Mapping[str, Any], weights: str | None = None) -> Subject:
    """The model in evaluation mode; `given` holds build and run knobs alike. `weights`: a file in any layout known for the system, or `timm:NAME`."""
    system = system_of(reference)
    model = system.build(size, clip, style, **given)
    if weights is not None:
        load_and_tell(system, model, weights)
    run = {name: value for name, value in given.items() if system.space[name].when == "run"}
    return Subject(system=system, model=model.eval(), clip=clip, size=size, style=style, knobs=system.check(given), run=run)


def _file_module(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError("a model's .py file must exist", given=path, remedy="check the path")
    name = f"vitgs_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError("a model's file must be Python", given=path, remedy="give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise UsageError("a model's file must import", given=f"{path}: {_told(error)}", remedy="repair the file") from error
    return module


def _named_module(name: str, reference: str) -> ModuleType:
    if "" not in sys.path:
        sys.path.insert(0, "")  # as `python -m` has it: packages of the working directory
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        remedy = "install the package, check the name, or repair the module"
        raise UsageError("package.module:factory must import", given=f"{reference}: {_told(error)}", remedy=remedy) from error


def _told(error: BaseException) -> str:
    """What a user's own code raised, and where in it."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename not in (__file__, "<frozen importlib._bootstrap>")]
    frames = [f for f in frames if "site-packages" not in f.filename] or frames
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames and not isinstance(error, ImportError | SyntaxError) else ""
    return f"{type(error).__name__}: {error}{place}"


def _from_module(module: ModuleType, attribute: str, reference: str) -> System:
    wanted = [attribute] if attribute else ["SYSTEM", "factory"]
    found = next((getattr(module, name) for name in wanted if hasattr(module, name)), None)
    if isinstance(found, System):
        return found
    if not callable(found):
        remedy = "define factory(clip) -> nn.Module, or name one as file.py:function"
        raise UsageError(f"a model of one's own has {' or '.join(wanted)}", given=reference, remedy=remedy)

    def construct(size: Size, clip: Clip, style: Style) -> nn.Module:
        del size, style
        try:
            model = found(clip)
        except VitgsError:
            raise
        except TypeError as error:
            remedy = "write def factory(clip): ..."
            raise UsageError("a factory takes one argument, the clip's shape", given=f"{reference}: {error}", remedy=remedy) from error
        except Exception as error:
            raise UsageError("a factory must build its model", given=f"{reference}: {_told(error)}", remedy="repair the factory") from error
        if not isinstance(model, nn.Module):
            raise UsageError("a factory must return an nn.Module", given=f"{reference}: {type(model).__name__}", remedy="return the model")
        return model

    return System(name=reference, group="own", paper="", construct=construct)
