"""Transformer sizes and checkpoint styles as two tables: a size says how big, a style says how an image checkpoint was built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from vitgs.errors import unknown
from vitgs.record import Size

_ROWS = (
    ("Ti", 192, 12, 3, 4.0),
    ("S", 384, 12, 6, 4.0),
    ("B", 768, 12, 12, 4.0),
    ("L", 1024, 24, 16, 4.0),
    ("H", 1280, 32, 16, 4.0),
    # The embedded profile: small enough to train in a minute on one core.
    ("nano", 64, 4, 4, 3.0),
    ("pico", 48, 3, 3, 3.0),
    ("64x12x4", 64, 12, 4, 3.0),  # width, depth and heads
    # Tests only need something that runs.
    ("test", 32, 2, 2, 2.0),
)
SIZES: dict[str, Size] = {row[0]: Size(name=row[0], width=row[1], depth=row[2], heads=row[3], mlp_ratio=row[4]) for row in _ROWS}


@dataclass(frozen=True, kw_only=True)
class Style:
    """How an image model is built. The spreads of new position and time tables were found on the embedded data (DECISIONS.md)."""

    name: str
    patch: int = 16
    layer_scale: float | None = None
    pre_norm: bool = False
    patch_bias: bool = True
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    eps: float = 1e-6
    position_init_std: float = 0.02
    time_init_std: float = 0.0


STYLES: dict[str, Style] = {
    style.name: style
    for style in (
        Style(name="in21k"),
        Style(name="deit"),
        Style(name="dinov2", patch=14, layer_scale=1e-5),
        Style(name="clip", pre_norm=True, patch_bias=False, activation="quick_gelu", eps=1e-5),
        Style(name="digits", patch=8, position_init_std=0.3, time_init_std=0.3),
    )
}


def size(name: str) -> Size:
    """The row of that name."""
    if name not in SIZES:
        raise unknown("size", name, SIZES)
    return SIZES[name]


def style(name: str) -> Style:
    """The style of that name."""
    if name not in STYLES:
        raise unknown("style", name, STYLES)
    return STYLES[name]
