"""The theory's checks as figures, one a check: utility against leave-one-out and its price; the graph against full attention; submodularity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from vitgs.graphsampler.theory_gaps import Gap
from vitgs.graphsampler.theory_sets import GREEDY_SHARE
from vitgs.record import Estimate
from vitgs.report.figures import INK, QUIET, STYLE
from vitgs.report.theory import Found, share

OWN = "#c8430a"
COLOURS = {
    "graph": OWN,
    "random edges": "#8b9197",
    "heaviest edges": "#1f6aa5",
    "linformer, random projection": "#8f6400",
    "linformer, segment means": "#c79a2b",
    "performer": "#9b3f94",
    "nystrom": "#0b7a5c",
}
MARKS = dict(zip(COLOURS, "oXsDd^v", strict=True))
SHADES = (OWN, "#e58a5e", "#f3c3a9")


def draw(found: Found, scaling: Sequence[Mapping[str, Any]], folder: Path) -> list[Path]:
    """`theory-utility.png`, `theory-graph.png` (with a graph) and `theory-sets.png` in the folder."""
    with matplotlib.rc_context(STYLE):
        figures = {"theory-utility": _utility(found), "theory-sets": _sets(found)}
        if found.gaps is not None:
            figures["theory-graph"] = _graph(found, scaling)
        files = [folder / f"{name}.png" for name in sorted(figures)]
        for file in files:
            # Without dates inside, the same numbers give the same bytes.
            figures[file.stem].savefig(file, dpi=160, facecolor="white", metadata={"Software": None})
    return files


def _sheet(rows: int, columns: int, width: float, height: float, title: str) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, x=0.01, ha="left", fontsize=7, color=QUIET)
    return figure, figure.subplots(rows, columns, squeeze=False)


def _titled(ax: Axes, title: str) -> None:
    ax.set_title(title, loc="left", color=INK)
    ax.set_axisbelow(True)


def _levels(ax: Axes, rows: Sequence[tuple[str, Estimate, str]]) -> None:
    """Values with their intervals, one under the other; a gap where the name is empty."""
    for y, (_, value, colour) in enumerate(rows):
        if value.value is None:
            continue
        if value.low is not None and value.high is not None:
            ax.hlines(y, value.low, value.high, colors=colour, linewidth=2.2, alpha=0.45)
        ax.plot(value.value, y, "o", color=colour, markersize=4.5, markeredgecolor="white", markeredgewidth=0.5)
    ax.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.grid(True, axis="x", color="#e6e8ea", linewidth=0.6)
    ax.tick_params(axis="y", length=0)


def _utility(found: Found) -> Figure:
    instances = {**found.pairs, "frames": found.frames}
    wide = len(found.price) > 1
    title = f"Rank correlation of a score with the rise in cross-entropy when the pair (the frame) is left out. {found.data}, bars: 95 % over clips."
    figure, axes = _sheet(1, 2 if wide else 1, 10 if wide else 6.5, 0.21 * sum(map(len, instances.values())) + 1.4, title)
    rows: list[tuple[str, Estimate, str]] = []
    for name, scores in instances.items():
        label = name if name == "frames" else f"pairs, {name}"
        shown = [score for score in scores if not score.endswith("rise")]
        for score in shown:
            rows.append((f"{label}: {score}" if score == shown[0] else score, found.mean(scores[score]), OWN if "utility" in score else QUIET))
    ax = axes[0, 0]
    _levels(ax, rows)
    ax.axvline(0, color=INK, linewidth=0.8)
    _titled(ax, "Utility as marginal contribution")
    ax.set_xlabel("Spearman's rank correlation, mean over clips")
    if wide:
        _price(axes[0, 1], found)
    return figure


def _price(ax: Axes, found: Found) -> None:
    """Fractions and accuracy against lambda; the prices stand equally spaced, because 0 has no logarithm."""
    ranked = sorted(found.price, key=lambda one: one[0])
    lines = (("expected kept fraction", OWN, "o"), ("share above one half", "#1f6aa5", "s"), ("top-1", QUIET, "D"))
    for name, colour, mark in lines:
        values = [found.mean(numbers[name]) for _, numbers in ranked]
        some = [(x, v.value, v.low or v.value, v.high or v.value) for x, v in enumerate(values) if v.value]  # 0 has no place on the axis
        if some:
            x, value, low, high = zip(*some, strict=True)
            ax.plot(x, value, f"{mark}-", color=colour, markersize=4, linewidth=1.2, label=name)
            ax.vlines(x, low, high, colors=colour, linewidth=2.2, alpha=0.45)
    ax.axhline(found.budget, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label=f"budget {found.budget:g}")
    ax.set_xticks(range(len(ranked)), [f"{price:g}" for price, _ in ranked])
    ax.set_xlabel("price of utility, lambda")
    ax.set_yscale("log")
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.grid(True, axis="y", color="#e6e8ea", linewidth=0.6)
    ax.legend(frameon=False, fontsize=7)
    _titled(ax, "Price against kept fraction")


def _graph(found: Found, scaling: Sequence[Mapping[str, Any]]) -> Figure:
    assert found.gaps is not None
    title = f"Distance of propagation matrices to full attention, relative Frobenius norm. {found.data}, bands: 95 % over clips. Filled: own k."
    figure, axes = _sheet(len(found.gaps) + 1, 3, 10.5, 2.7 * (len(found.gaps) + 1), title)
    for row, pool in enumerate(found.gaps):
        gaps = found.gaps[pool]
        _by_k(axes[row, 0], found, gaps, pool)
        _by_macs(axes[row, 1], found, gaps, pool)
        _by_rounds(axes[row, 2], found, gaps, pool)
    timed = any(r["blocks_ms"] for r in scaling)
    for ax, axis in zip(axes[-1, :2], ("frames", "tokens a frame"), strict=True):
        _growth(ax, [r for r in scaling if r["axis"] == axis], axis, "macs")
    if timed:
        _growth(axes[-1, 2], [r for r in scaling if r["axis"] == "frames"], "frames", "ms")
    else:
        axes[-1, 2].set_visible(False)
    return figure


def _line(ax: Axes, found: Found, x: Sequence[float], gaps: Sequence[Gap], colour: str, label: str, mark: str = "o", dashes: Any = "-") -> None:
    values = [found.mean(g.frobenius) for g in gaps]
    ax.plot(
        x,
        [v.value or 0 for v in values],
        color=colour,
        linewidth=1.3,
        linestyle=dashes,
        label=label,
        marker=mark,
        markersize=3.8,
        markerfacecolor="white",
    )
    ax.fill_between(x, [v.low or 0 for v in values], [v.high or 0 for v in values], color=colour, alpha=0.15, linewidth=0)
    own = [i for i, g in enumerate(gaps) if g.k == found.own_k]
    ax.plot([x[i] for i in own], [values[i].value or 0 for i in own], linestyle="", marker=mark, markersize=4.2, color=colour)


def _places(gaps: Sequence[Gap]) -> tuple[dict[int | None, float], list[str]]:
    ks: list[int | None] = [*sorted({g.k for g in gaps if g.k is not None}), None]
    return {k: float(i) for i, k in enumerate(ks)}, ["all" if k is None else str(k) for k in ks]


def _by_k(ax: Axes, found: Found, gaps: Sequence[Gap], pool: str) -> None:
    at, names = _places(gaps)

    def wanted(matrix: str, against: str, window: int) -> list[Gap]:
        return [g for g in gaps if (g.matrix, g.logits, g.against, g.window) == (matrix, "own", against, window)]

    windows = sorted({g.window for g in gaps if g.matrix == "graph"}, key=lambda w: (w > 0, -w))
    for window, colour in zip(windows, SHADES, strict=False):
        of = wanted("graph", "full", window)
        _line(ax, found, [at[g.k] for g in of], of, colour, f"graph, window {window or 'whole clip'}")
    limit = wanted("graph", "limit", 0)
    _line(ax, found, [at[g.k] for g in limit], limit, OWN, "graph, to what it may reach", dashes=(0, (1, 1.5)))
    for matrix in ("random edges", "heaviest edges"):
        of = wanted(matrix, "full", 0)
        _line(ax, found, [at[g.k] for g in of], of, COLOURS[matrix], matrix, MARKS[matrix])
    ax.set_xticks(list(at.values()), names)
    _finish(ax, "k", f"{pool}: own logits, one round")


def _by_macs(ax: Axes, found: Found, gaps: Sequence[Gap], pool: str) -> None:
    plain = [g for g in gaps if g.logits == "plain"]
    if not plain:
        ax.set_visible(False)
        return
    (full,) = (g.macs or 1.0 for g in plain if g.matrix == "full")
    for matrix, colour in COLOURS.items():
        of = [g for g in plain if g.matrix == matrix]
        if of:
            _line(ax, found, [(g.macs or 0.0) / full for g in of], of, colour, matrix, MARKS[matrix])
    ax.axvline(1, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(FixedLocator([0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_locator(NullLocator())
    _finish(ax, "MACs over those of full attention, search included", f"{pool}: plain logits, one round")


def _by_rounds(ax: Axes, found: Found, gaps: Sequence[Gap], pool: str) -> None:
    of = [g for g in gaps if g.matrix == "graph, heads averaged"]
    at, names = _places(of)
    for against, dashes in (("full", "-"), ("one round", (0, (1, 1.5)))):
        for count, colour in zip(sorted({g.rounds for g in of}), reversed(SHADES), strict=False):
            some = [g for g in of if (g.rounds, g.against) == (count, against)]
            said = f"L = {count}, to {'as many rounds' if against == 'full' else 'one round'} of full"
            _line(ax, found, [at[g.k] for g in some], some, colour, said, dashes=dashes)
    ax.set_xticks(list(at.values()), names)
    _finish(ax, "k", f"{pool}: rounds, heads averaged")


def _growth(ax: Axes, rows: Sequence[Mapping[str, Any]], axis: str, what: str) -> None:
    names = list(dict.fromkeys(r["of"] for r in rows))
    for name, colour, mark in zip(names, (OWN, "#0b7a5c", QUIET), "osD", strict=False):
        of = [r for r in rows if r["of"] == name]
        y = [r["macs"] if what == "macs" else float(np.median(r["blocks_ms"])) for r in of]
        ax.plot([r["at"] for r in of], y, color=colour, marker=mark, markersize=3.8, linewidth=1.3, label=name)
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.set_xticks([r["at"] for r in rows], [str(r["at"]) for r in rows])
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.grid(True, axis="y", color="#e6e8ea", linewidth=0.6)
    ax.set_xlabel(axis)
    ax.set_ylabel("MACs" if what == "macs" else "ms, median")
    ax.legend(frameon=False, fontsize=6)
    _titled(ax, f"{'MACs' if what == 'macs' else 'time'} against {axis}")


def _finish(ax: Axes, x: str, title: str) -> None:
    ax.set_xlabel(x)
    ax.grid(True, axis="y", color="#e6e8ea", linewidth=0.6)
    # Room above the lines for the legend.
    low, high = ax.get_ylim()
    if ax.get_yscale() == "linear":
        ax.set_ylim(0, 1.5 * high)
    else:
        ax.set_ylim(low, high * (high / low) ** 0.55)
    ax.legend(frameon=False, fontsize=5.8, loc="upper right", ncols=2, columnspacing=1.0, handlelength=1.8)
    _titled(ax, title)


def _sets(found: Found) -> Figure:
    title = f"f: log probability of the true class; 4 of the 10 best pairs by utility, all choices enumerated. {found.data}, bars: 95 % over clips."
    figure, axes = _sheet(1, 1 + len(found.sets), 3.6 * (1 + len(found.sets)), 3.2, title)
    rows: list[tuple[str, Estimate, str]] = []
    for kind, functions in found.sets.items():
        numbers = functions["log probability"]
        rows += [
            (f"{kind}: gains diminish", share(numbers["first chain diminishes"]), OWN),
            ("gains diminish, all chains", found.mean(numbers["chains that diminish"]), OWN),
            ("f does not fall", share(numbers["first gain is not negative"]), "#1f6aa5"),
        ]
    _levels(axes[0, 0], rows)
    axes[0, 0].axvline(1, color=INK, linewidth=0.8)
    axes[0, 0].set_xlim(0, 1.03)
    axes[0, 0].set_xlabel("share")
    _titled(axes[0, 0], "Does f have the shape?")
    for ax, (kind, functions) in zip(axes[0, 1:], found.sets.items(), strict=True):
        for name, colour in (("greedy", OWN), ("best by utility", "#1f6aa5"), ("at random, mean", QUIET)):
            by_clip = functions["log probability"][f"{name} ratio" if "mean" in name else f"{name}, ratio"]
            ratios = np.sort(np.asarray(by_clip)[np.isfinite(by_clip)])
            ax.step(
                np.clip(ratios, -1, 1), np.arange(1, len(ratios) + 1) / max(1, len(ratios)), where="post", color=colour, linewidth=1.4, label=name
            )
        ax.axvline(GREEDY_SHARE, color=INK, linewidth=0.8, linestyle=(0, (4, 3)), label="1 - 1/e")
        ax.set(xlim=(-1.03, 1.03), xlabel="ratio to the best choice (below -1 drawn at -1)", ylabel="share of clips at or below")
        ax.legend(frameon=False, fontsize=7, loc="upper left")
        _titled(ax, f"{kind}: how good is a choice?")
    return figure
