"""The one place where a number becomes text: value, unit and interval, so that no table invents its own rounding."""

from __future__ import annotations

import math

_SCALES = {
    "macs": ((1e12, "TMACs"), (1e9, "GMACs"), (1e6, "MMACs"), (1e3, "kMACs"), (1, "MACs")),
    "flops": ((1e12, "TFLOPs"), (1e9, "GFLOPs"), (1e6, "MFLOPs"), (1, "FLOPs")),
    "params": ((1e9, "B"), (1e6, "M"), (1e3, "k"), (1, "")),
    "bytes": ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")),
    "j": ((1, "J"), (1e-3, "mJ"), (1e-6, "uJ")),
    "s": ((60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "us")),
}


def significant(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits, without an exponent for everyday sizes."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, places):,.{max(places, 0)}f}"


def quantity(value: float | None, unit: str, digits: int = 3) -> str:
    """`1.76e10, "macs"` -> `17.6 GMACs`; a missing value is a dash."""
    if value is None:
        return "–"
    for scale, name in _SCALES.get(unit, ((1, unit),)):
        if abs(value) >= scale:
            return f"{significant(value / scale, digits)} {name}".strip()
    return f"{significant(value, digits)} {_SCALES.get(unit, ((1, unit),))[-1][1]}".strip()


def percent(value: float | None, digits: int = 1) -> str:
    """A share as percent, without the sign."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def interval(value: float | None, low: float | None, high: float | None, *, scale: float = 1.0, digits: int = 3) -> str:
    """`value [low, high]`, both ends rounded like the value."""
    if value is None:
        return "–"
    text = significant(value * scale, digits)
    if low is None or high is None:
        return text
    places = len(text.partition(".")[2])
    return f"{text} [{low * scale:,.{places}f}, {high * scale:,.{places}f}]"
