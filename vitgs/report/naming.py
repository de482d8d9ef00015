"""What configurations are called: an entry of a suite by its label, and what differs inside it. Words split curves, numbers are places on one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from vitgs.report.points import Configuration, Name

RULES = {"elastic": "", "paper": "paper rule", "none": ""}


def name_all(configurations: Iterable[Configuration]) -> dict[Configuration, Name]:
    """A name for each; unique within a machine unless two differ in nothing that a reader could see."""
    by_system: dict[str, list[Configuration]] = {}
    for configuration in configurations:
        by_system.setdefault(configuration.system, []).append(configuration)
    profiles = {c.profile for several in by_system.values() for c in several}
    return {c: _name(c, several, profile=len(profiles) > 1) for several in by_system.values() for c in several}


def _name(configuration: Configuration, siblings: Sequence[Configuration], *, profile: bool) -> Name:
    words, places = [], []
    siblings = [sibling for sibling in siblings if sibling.label == configuration.label]
    for knob in sorted(_knob_names(siblings)):
        values = {_value(sibling, knob) for sibling in siblings}
        value = _value(configuration, knob)
        if value is None or (len(values) == 1 and not any(k == knob for k, _ in configuration.run)):
            continue
        if isinstance(value, (str, bool)):
            if len(values) > 1:
                words.append(f"{knob} {value}")
        else:
            places.append(_place(knob, value))
    if len({s.rule for s in siblings}) > 1 and RULES.get(configuration.rule, configuration.rule):
        words.append(RULES.get(configuration.rule, configuration.rule))
    if len({s.size for s in siblings}) > 1:
        words.append(f"size {configuration.size}")
    if len({s.style for s in siblings}) > 1:
        words.append(configuration.style)
    words += [configuration.profile] if profile else []
    if len({s.frames for s in siblings}) > 1:
        places.append(f"{configuration.frames} frames")
    if len({(s.height, s.width) for s in siblings}) > 1:
        places.append(f"{configuration.height} px")
    label = configuration.label or configuration.system
    called = label if label.startswith(configuration.system) else f"{configuration.system} · {label}"
    return Name(series=", ".join((f"{called} · {words[0]}" if words else called, *words[1:])), setting=", ".join(places))


def _knob_names(configurations: Sequence[Configuration]) -> set[str]:
    return {name for c in configurations for name, _ in (*c.knobs, *c.run)}


def _value(configuration: Configuration, knob: str) -> Any:
    return {**dict(configuration.knobs), **dict(configuration.run)}.get(knob)


def _place(knob: str, value: Any) -> str:
    """`budget 0.25`; frames read as words do, and 0 of them stands for all."""
    if knob == "frames":
        return f"{value} frames" if value else "all frames"
    return f"{knob} {_text(value)}"


def _text(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def knobs_text(configuration: Configuration) -> str:
    """All knobs, written out, for the tables and for hovering."""
    return ", ".join(f"{k}={v}" for k, v in (*configuration.knobs, *configuration.run))
