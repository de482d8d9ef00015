"""The fronts as PNG and PDF for papers: top-1 against each cost, one panel a data set, intervals drawn, the front as a line of steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from vitgs.report.families import METHOD_GROUP
from vitgs.report.palette import MATPLOTLIB, Look, looks
from vitgs.report.pareto import Axis, Front
from vitgs.report.placement import Box, place
from vitgs.report.points import ANCHOR, Point

STYLE: Any = {
    "font.size": 8,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#9aa0a6",
    "axes.labelcolor": "#33383d",
    "xtick.color": "#55595e",
    "ytick.color": "#55595e",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.linewidth": 0.6,
}
INK, QUIET = "#22262a", "#8b9197"
HALO = [withStroke(linewidth=2, foreground="white")]
_PER_ROW = 3
_CROWD = 12  # with more systems than this, those that matter least are drawn faintly and have no label


def draw(fronts: Mapping[str, Front], machine: str, stem: Path, formats: Sequence[str]) -> list[Path]:
    """One figure of one axis, a panel for each data set, written as `stem.<format>` for each of `formats`."""
    with matplotlib.rc_context(STYLE):
        figure, written = _figure(fronts, machine), []
        for suffix in formats:
            file = stem.with_suffix(f".{suffix}")
            # Without dates inside, the same results give the same bytes.
            figure.savefig(
                file, dpi=200, bbox_inches="tight", facecolor="white", metadata={"CreationDate": None} if suffix == "pdf" else {"Software": None}
            )
            written.append(file)
    return written


def _figure(fronts: Mapping[str, Front], machine: str) -> Figure:
    axis = next(iter(fronts.values())).axis
    columns = min(_PER_ROW, len(fronts))
    rows = math.ceil(len(fronts) / columns)
    points = [p for front in fronts.values() for p in front.points]
    look = looks((p.configuration.system, p.configuration.group) for p in points)
    legend_rows = math.ceil(len(look) / 6) + 1
    panel_height, wide = 2.9, max(columns, 2)
    figure = Figure(figsize=(3.5 * wide, panel_height * rows + 0.17 * legend_rows + 0.3), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for place_, (data, front) in zip(panels.flat, fronts.items(), strict=False):
        _panel(place_, data, front, look)
    for empty in list(panels.flat)[len(fronts) :]:
        empty.set_visible(False)
    figure.legend(
        handles=_legend(look), loc="outside lower center", ncols=min(6, 3 * wide), frameon=False, fontsize=7, handletextpad=0.3, columnspacing=1.4
    )
    figure.suptitle(
        f"Top-1 against {axis.title}, on {machine}. Bars: 95 % intervals. Grey steps: the front.", x=0.005, ha="left", fontsize=7, color=QUIET
    )
    figure.draw_without_rendering()
    for place_, front in zip(panels.flat, fronts.values(), strict=False):
        _labels(place_, front, look)
    return figure


def _panel(ax: Axes, data: str, front: Front, look: Mapping[str, Look]) -> None:
    axis = front.axis
    ax.set_title(data, loc="left", color=INK)
    ax.set_xscale("log")
    ax.grid(True, axis="y", color="#e6e8ea", linewidth=0.6)
    ax.set_axisbelow(True)
    foreground = {p.configuration.system for p in _ranked(front, look)}
    for point in front.points:
        _mark(ax, point, axis, look[point.configuration.system], faint=point.configuration.system not in foreground)
    for series in dict.fromkeys(p.name.series for p in front.points):
        own = _own_front([p for p in front.points if p.name.series == series], axis)
        style = look[own[0].configuration.system]
        ax.plot(
            *zip(*(_xy(p, axis) for p in own), strict=True),
            color=style.colour,
            linewidth=1.8 if style.group == METHOD_GROUP else 0.8,
            alpha=0.9 if own[0].configuration.system in foreground else 0.25,
            zorder=2.5,
        )
    steps = sorted((_xy(p, axis) for p, on in zip(front.points, front.on_front, strict=True) if on), reverse=axis.more)
    if steps:
        ax.step(*zip(*steps, strict=True), where="post", color="#b4b9be", linewidth=1.8, alpha=0.6, zorder=1.5, solid_capstyle="round")
    _lines(ax, front)
    ax.set_xlabel(f"{axis.title}, {axis.unit}" + (" (more is better)" if axis.more else ""))
    ax.set_ylabel("top-1, %")
    ax.xaxis.set_major_locator(LogLocator(base=10, subs=(1, 2, 5)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _lines(ax: Axes, front: Front) -> None:
    """Chance, and what a model that sees frames as an unordered bag can reach at most."""
    ceiling = next((p.ceiling for p in front.points if p.ceiling is not None), None)
    chance = next((p.chance for p in front.points if p.chance is not None), None)
    for value, style, text, x in (
        (ceiling, (0, (5, 3)), "frame-average ceiling", 0.01),
        (chance, (0, (1, 2)), "chance", 0.93),
    ):
        if value is not None:
            ax.axhline(100 * value, color=QUIET, linewidth=0.8, linestyle=style, zorder=1)
            ax.annotate(
                text,
                (x, 100 * value),
                xycoords=("axes fraction", "data"),
                xytext=(0, 2),
                textcoords="offset points",
                fontsize=6,
                color=QUIET,
                path_effects=HALO,
            )


def _mark(ax: Axes, point: Point, axis: Axis, look: Look, *, faint: bool) -> None:
    (x, y), e, c = _xy(point, axis), point.top1.estimate, axis.of(point)
    colour = look.colour
    if not faint and e.low is not None and e.high is not None:
        ax.plot([x, x], [100 * e.low, 100 * e.high], color=colour, linewidth=0.7, alpha=0.45, zorder=2)
    if not faint and c.low is not None and c.high is not None:
        ax.plot([c.low * axis.scale, c.high * axis.scale], [y, y], color=colour, linewidth=0.7, alpha=0.45, zorder=2)
    size = 5.4 if look.group == METHOD_GROUP else 2.8 if faint else 3.9
    ax.plot(
        x,
        y,
        MATPLOTLIB[look.shape],
        markersize=size,
        markerfacecolor="white" if look.hollow else colour,
        markeredgecolor=colour if look.hollow else "white",
        markeredgewidth=1.0 if look.hollow else 0.5,
        alpha=0.45 if faint else 1,
        zorder=3.5 if look.group == METHOD_GROUP else 3,
    )


def _xy(point: Point, axis: Axis) -> tuple[float, float]:
    return ((axis.of(point).value or 0.0) * axis.scale, 100 * (point.top1.estimate.value or 0.0))


def _own_front(points: Sequence[Point], axis: Axis) -> list[Point]:
    """The points of one system that no other of its own dominates, by cost: the line that is drawn through a system."""
    ranked = sorted(points, key=lambda p: (_xy(p, axis)[0] * (-1 if axis.more else 1), -_xy(p, axis)[1]))
    kept: list[Point] = []
    for p in ranked:
        if not kept or _xy(p, axis)[1] > _xy(kept[-1], axis)[1]:
            kept.append(p)
    return kept


def _ranked(front: Front, look: Mapping[str, Look]) -> list[Point]:
    """The foreground, each system at its best: the method, the anchor, those on the front, then the most accurate ones so far as there is room."""
    on = {p.configuration.system for p, is_on in zip(front.points, front.on_front, strict=True) if is_on}
    best = {p.configuration.system: p for p in sorted(front.points, key=lambda p: p.top1.estimate.value or 0.0)}

    def standing(p: Point) -> tuple[bool, bool, bool, float]:
        system = p.configuration.system
        return (look[system].group != METHOD_GROUP, system != ANCHOR, system not in on, -(p.top1.estimate.value or 0.0))

    return sorted(best.values(), key=standing)[: _CROWD if len(best) <= _CROWD else _CROWD // 2]


def _labels(ax: Axes, front: Front, look: Mapping[str, Look]) -> None:
    """Names of the systems in the foreground, each at the right end of its points, where lines are apart."""
    rightmost = {p.configuration.system: p for p in sorted(front.points, key=lambda p: _xy(p, front.axis))}
    ranked = [rightmost[p.configuration.system] for p in _ranked(front, look)]
    shown = {p.configuration.system for p in ranked}
    to_pixel = ax.transData.transform
    anchors = [(float(x), float(y)) for x, y in (to_pixel(_xy(p, front.axis)) for p in ranked)]
    scale = ax.get_figure(root=True).dpi / 72  # type: ignore[union-attr]
    sizes = [
        (len(p.configuration.system) * (4.9 if look[p.configuration.system].group == METHOD_GROUP else 4.2) * scale, 8.0 * scale) for p in ranked
    ]
    marks = [(float(x), float(y)) for x, y in (to_pixel(_xy(p, front.axis)) for p in front.points if p.configuration.system in shown)]
    taken = [Box(left=x - 3 * scale, bottom=y - 3 * scale, right=x + 3 * scale, top=y + 3 * scale) for x, y in marks]
    bounds = ax.get_window_extent()
    if (ceiling := next((p.ceiling for p in front.points if p.ceiling is not None), None)) is not None:
        _, height = to_pixel((1.0, 100 * ceiling))
        taken.append(Box(left=bounds.x0, bottom=float(height), right=bounds.x0 + 70 * scale, top=float(height) + 9 * scale))
    frame = Box(left=bounds.x0, bottom=bounds.y0, right=bounds.x1 + 26 * scale, top=bounds.y1 + 8 * scale)
    back = ax.transData.inverted().transform
    for point, box in zip(ranked, place(anchors, sizes, taken, frame, 5 * scale), strict=False):
        if box is None:
            continue
        style = look[point.configuration.system]
        x, y = back((box.left, (box.bottom + box.top) / 2))
        ax.text(
            x,
            y,
            point.configuration.system,
            fontsize=7,
            color=style.colour,
            va="center",
            path_effects=HALO,
            weight="bold" if style.group == METHOD_GROUP else "normal",
            zorder=4,
        )


def _legend(look: Mapping[str, Look]) -> list[Line2D]:
    return [
        Line2D(
            [],
            [],
            linestyle="",
            marker=MATPLOTLIB[style.shape],
            color=style.colour,
            markersize=4.5,
            label=system,
            markerfacecolor="white" if style.hollow else style.colour,
            markeredgecolor=style.colour,
        )
        for system, style in look.items()
    ]
