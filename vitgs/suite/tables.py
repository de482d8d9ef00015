"""Suites and profiles: flat TOML read into frozen dataclasses. What a table may hold is what its class has; anything else is an error with its place.

A suite says what to compare: systems, the grids of their knobs, the objectives. A profile says on what and how hard: size, clip, data, recipe, seeds.
Importing this is cheap: no torch.
"""

from __future__ import annotations

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitgs import folders
from vitgs.backbone.sizes import SIZES, STYLES
from vitgs.errors import UsageError, unknown
from vitgs.train.recipe import Recipe

Rule = Literal["elastic", "paper", "none"]
OBJECTIVES: dict[str, Literal["maximize", "minimize"]] = {
    "top1": "maximize",
    "gmacs": "minimize",
    "latency_ms": "minimize",
    "clips_per_s": "maximize",
    "peak_memory_bytes": "minimize",
    "energy_j": "minimize",
}


@dataclass(frozen=True, kw_only=True)
class SystemEntry:
    """One line of systems: the grid of build knobs (each point is trained by itself), of run knobs (all from one training), and the training rules.

    `name` may be a pattern (`*`: every system). `label` tells entries of one system apart. `lever`: plain fewer frames or smaller pictures, which a
    short profile may leave out. `size`: another than the profile's, a lever too.
    """

    name: str
    label: str = ""
    size: str = ""
    build: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    run: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    rules: tuple[str, ...] = ("elastic",)
    lever: bool = False


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What to compare. `trials` and `seed` are for searching samplers; a grid takes all points. `profile`: used unless another is named."""

    name: str
    title: str = ""
    sampler: str = "grid"
    objectives: tuple[str, ...] = ("top1", "gmacs")
    trials: int = 0
    seed: int = 0
    profile: str = "embedded"
    systems: tuple[SystemEntry, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Tune:
    """Which learning rates each entry tries, on which data and for how long; no rates means the recipe's own, and rows say so."""

    lr: tuple[float, ...] = ()
    data: tuple[str, ...] = ()
    steps: int = 100
    seeds: int = 1


@dataclass(frozen=True, kw_only=True)
class Start:
    """`shared`: the image weights from still digits, trained for `steps`; `none`: random."""

    weights: str = "shared"
    steps: int = 1500


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Clips of val (for choosing) and of test (read once, for reporting); 0 for all there are."""

    val_clips: int = 1000
    test_clips: int = 1000


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One row's timing: clips a batch, seconds, half-width of the intervals as a share, number format; `energy_window_s` 0 for no energy."""

    batch: int = 8
    seconds: float = 3.0
    target: float = 0.02
    dtype: str = "float32"
    energy_window_s: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Seconds after which a job is ended and its row says so."""

    train_s: float = 3600.0
    eval_s: float = 1800.0
    measure_s: float = 600.0


@dataclass(frozen=True, kw_only=True)
class Profile:
    """On what and how hard. `equal`: for equal steps, and (on `equal_data` or all, `equal_seeds` seeds) for the core-seconds of `joint`.

    `readout` is that of all systems (none: each its own), but for those in `readouts`.
    A short form may leave out `rules` and `levers`, and name the `models` that it runs of a suite (none: all; `--models` overrides).
    """

    name: str
    title: str = ""
    size: str = "nano"
    style: str = "digits"
    frames: int = 8
    height: int = 32
    width: int = 32
    data: tuple[str, ...] = ()
    seeds: int = 1
    preliminary: bool = False
    readout: str = ""
    readouts: Mapping[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ()
    rules: tuple[str, ...] = ("elastic", "paper")
    levers: bool = True
    equal: tuple[str, ...] = ("steps",)
    equal_data: tuple[str, ...] = ()
    equal_seeds: int = 1
    train: Mapping[str, Any] = field(default_factory=dict)
    tune: Tune = field(default_factory=Tune)
    start: Start = field(default_factory=Start)
    evaluate: Evaluate = field(default_factory=Evaluate)
    measure: Measure = field(default_factory=Measure)
    limits: Limits = field(default_factory=Limits)


_CHOICES: dict[tuple[type, str], tuple[str, ...]] = {
    (Suite, "sampler"): ("grid", "tpe", "nsga2"),
    (Suite, "objectives"): tuple(OBJECTIVES),
    (SystemEntry, "rules"): ("elastic", "paper"),
    (Profile, "rules"): ("elastic", "paper"),
    (Profile, "equal"): ("steps", "core_seconds"),
    (Start, "weights"): ("shared", "none"),
    (Measure, "dtype"): ("float32", "bfloat16", "float16"),
}
_LEAST = {"frames": 1, "height": 1, "width": 1, "seeds": 1, "equal_seeds": 1, "steps": 1, "batch": 1, "trials": 0, "val_clips": 0, "test_clips": 0}
_ABOVE_ZERO = ("seconds", "target", "train_s", "eval_s", "measure_s")


def suite_names() -> list[str]:
    """The suites that lie in `suites/`."""
    return sorted(file.stem for file in folders.suites().glob("*.toml"))


def profile_names() -> list[str]:
    """The profiles that lie in `suites/profiles/`."""
    return sorted(file.stem for file in (folders.suites() / "profiles").glob("*.toml"))


def load_suite(name: str) -> Suite:
    """A suite by its name, or by the path of a TOML file."""
    file = _file(name, folders.suites(), "suite", suite_names())
    if file.stem == "gate":
        raise UsageError("a suite must not be called gate: that results file is the gate's", given=file.name, remedy="give the file another name")
    suite: Suite = _read(Suite, _toml(file), file.name, name=file.stem)
    if not suite.objectives:
        raise UsageError(f"{file.name} must name an objective", given="objectives = []", remedy=f"name some of {', '.join(OBJECTIVES)}")
    for entry in suite.systems:
        if entry.size and entry.size not in SIZES:
            raise unknown("size", entry.size, SIZES, where=file.name)
    if not suite.systems:
        raise UsageError(f"{file.name} must name at least one system", given="no [[systems]]", remedy='add [[systems]] with name = "vit_mean"')
    if suite.sampler != "grid" and suite.trials < 1:
        raise UsageError(
            f"{file.name}: a search must say how many trials it may take", given=f"trials = {suite.trials}", remedy="set trials to 1 or more"
        )
    return suite


def load_profile(name: str) -> Profile:
    """A profile by its name, or by the path of a TOML file."""
    file = _file(name, folders.suites() / "profiles", "profile", profile_names())
    profile: Profile = _read(Profile, _toml(file), file.name, name=file.stem)
    _read(Recipe, profile.train, f"{file.name}, train")
    for kind, name, known in (("size", profile.size, SIZES), ("style", profile.style, STYLES)):
        if name not in known:
            raise unknown(kind, name, known, where=file.name)
    return profile


def _file(name: str, folder: Path, kind: str, known: list[str]) -> Path:
    if name.endswith(".toml"):
        file = Path(name).expanduser()
        if not file.is_file():
            raise UsageError(f"a {kind}'s .toml file must exist", given=name, remedy=f"check the path, or name one of {', '.join(known)}")
        return file
    if name not in known:
        raise unknown(kind, name, known)
    return folder / f"{name}.toml"


def _toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file.name} must be TOML", given=error, remedy="correct that line") from error


def _read(kind: type, table: Mapping[str, Any], where: str, **fixed: str) -> Any:
    """An object of the dataclass `kind` from a TOML table."""
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.name not in fixed]
    values: dict[str, Any] = dict(fixed)
    for key, value in table.items():
        if key not in known:
            raise unknown("key", key, known, where=where)
        values[key] = _value(hints[key], value, f"{where}, {key}")
        if (allowed := _CHOICES.get((kind, key))) is not None:
            for one in values[key] if isinstance(values[key], tuple) else (values[key],):
                if one not in allowed:
                    raise UsageError(f"{key} in {where} must be one of {', '.join(allowed)}", given=repr(one), remedy="name one of these")
        if key in _LEAST and isinstance(value, int) and value < _LEAST[key]:
            raise UsageError(f"{key} in {where} must be at least {_LEAST[key]}", given=value, remedy=f"set it to {_LEAST[key]} or more")
        if key in _ABOVE_ZERO and isinstance(value, (int, float)) and value <= 0:
            raise UsageError(f"{key} in {where} must be above 0", given=value, remedy="set it to a positive number")
    missing = [f.name for f in dataclasses.fields(kind) if f.default is f.default_factory is dataclasses.MISSING and f.name not in values]
    if missing:
        raise UsageError(f"{where} must have {', '.join(missing)}", given=f"keys {', '.join(table) or 'none'}", remedy="add it")
    return kind(**values)


def _value(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _read(hint, value, where) if isinstance(value, dict) else _refuse("a table", value, where)
    origin = typing.get_origin(hint)
    if origin is tuple:
        inner = typing.get_args(hint)[0]
        return tuple(_value(inner, v, where) for v in value) if isinstance(value, list) else _refuse("a list", value, where)
    if origin is Mapping or origin is typing.get_origin(Mapping[str, Any]):
        inner = typing.get_args(hint)[1]
        return {k: _value(inner, v, f"{where}.{k}") for k, v in value.items()} if isinstance(value, dict) else _refuse("a table", value, where)
    if hint is Any:
        return value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    expected = hint if not isinstance(hint, types.UnionType) else object
    if isinstance(value, float) and not math.isfinite(value):
        _refuse("a finite number", value, where)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        _refuse({int: "a whole number", float: "a number", str: "a text", bool: "true or false"}[expected], value, where)
    return value


def _refuse(expected: str, value: Any, where: str) -> Any:
    raise UsageError(f"{where} must be {expected}", given=repr(value), remedy="correct its type")
