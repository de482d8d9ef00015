"""One clip as the method saw it, as one picture: what was kept and how it scored, who listened to whom, what the memory took up, the answer.

All in one coordinate system, inches from the top left, so that an edge can go from any frame to any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, PathPatch, Rectangle
from matplotlib.path import Path as Curve
from numpy.typing import NDArray

from vitgs.graphsampler.explain import KINDS, Explanation, GraphTrace, MemoryTrace
from vitgs.report.figures import INK, QUIET, STYLE

SUFFIXES = (".png", ".svg", ".pdf")
RIGHT_COLOUR, WRONG_COLOUR = "#0b7a5c", "#b3261e"
UTILITY = LinearSegmentedColormap.from_list("utility", ("#fde3b8", "#f5a04c", "#d1490c", "#7d1f06"))
WRITES = LinearSegmentedColormap.from_list("writes", ("#faf6fb", "#d9b6dc", "#8f4393"))
NODE_COLOURS = ("#1f6aa5", "#0b7a5c", "#b3264c", "#8f6400", "#5b4ab0", "#3a3f45")
DASHES: dict[str, Any] = {"similar": "solid", "temporal": (0, (1, 1)), "both": (0, (5, 1.2, 1, 1.2))}
LEFT, MARGIN, GAP, FRAMES_WIDE = 1.1, 0.3, 0.11, 9.5
FADED = 0.8  # how far a dropped token goes towards white
ROOM = 0.3  # above the frames, for the edges
_FEW = 10  # frames that stand in one row


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What the picture says beside the explanation. `frame_THWC`: pixels from 0 to 1; `truth`: the true label, None when nobody knows."""

    title: str
    frame_THWC: NDArray[np.floating[Any]]
    class_names: tuple[str, ...]
    truth: int | None


def draw(found: Explanation, shown: Shown, nodes: Sequence[int], file: Path) -> None:
    """Writes the picture in the format of the file's suffix; `nodes`: kept nodes whose edges are drawn."""
    metadata: dict[str, dict[str, Any]] = {".pdf": {"CreationDate": None}, ".svg": {"Date": None}, ".png": {"Software": None}}
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": "vitgs"}):
        # Without dates inside, the same explanation gives the same bytes.
        figure(found, shown, nodes).savefig(file, dpi=150, facecolor="white", metadata=metadata[file.suffix])


def figure(found: Explanation, shown: Shown, nodes: Sequence[int]) -> Figure:
    """The picture as a figure."""
    return _Sheet(found, shown).drawn(nodes)


class _Sheet:
    """One picture being drawn, from the top downwards; `y` is how far it has come."""

    def __init__(self, found: Explanation, shown: Shown) -> None:
        self.found, self.shown = found, shown
        frames, height, width = shown.frame_THWC.shape[:3]
        self.columns = frames if frames <= _FEW else 8 if frames <= 32 else 16
        self.frame_rows = -(-frames // self.columns)
        self.wide = min(1.5, (FRAMES_WIDE - GAP * (self.columns - 1)) / self.columns)
        self.tall = self.wide * height / width
        self.cell_wide, self.cell_tall = self.wide / found.grid[2], self.tall / found.grid[1]
        self.width = LEFT + max(7.0, self.columns * (self.wide + GAP)) + MARGIN
        self.y = MARGIN
        self.axes: Axes
        self.kept_TN = np.zeros((frames, found.grid[1] * found.grid[2]), dtype=bool)
        self.kept_TN.reshape(-1)[found.index_S.numpy()] = True
        utility = None if found.utility_TN is None else found.utility_TN.numpy()
        self.shade_TN = utility

    def drawn(self, nodes: Sequence[int]) -> Figure:
        """All sections under each other."""
        figure = Figure(figsize=(1, 1))
        FigureCanvasAgg(figure)
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self._head()
        self._kept()
        if self.found.graph is not None and nodes:
            self._graph(self.found.graph, nodes)
        if self.found.memory is not None:
            self._memory(self.found.memory)
        self._answer()
        height = self.y + MARGIN
        figure.set_size_inches(self.width, height)
        self.axes.set(xlim=(0, self.width), ylim=(height, 0), aspect="auto")
        return figure

    def _text(self, x: float, y: float, text: str, **style: Any) -> None:
        self.axes.text(x, y, text, **{"fontsize": 8, "color": INK, "va": "center", **style})

    def _heading(self, title: str, says: str) -> None:
        self.y += 0.14
        self._text(MARGIN, self.y, title, fontsize=10, weight="bold")
        self._text(LEFT, self.y, says, color=QUIET)
        self.y += 0.2

    def _corner(self, frame: int) -> tuple[float, float]:
        """Top left of a frame, seen from the top left of all."""
        return LEFT + frame % self.columns * (self.wide + GAP), float(frame // self.columns)

    def _head(self) -> None:
        found, shown = self.found, self.shown
        best = int(found.logits_C.argmax())
        says, colour = f"answer: {_short(shown.class_names[best], 30)}", INK
        if shown.truth is not None:
            right = best == shown.truth
            says += " (correct)" if right else f" (wrong: it is {_short(shown.class_names[shown.truth], 30)})"
            colour = RIGHT_COLOUR if right else WRONG_COLOUR
        self._text(MARGIN, self.y, _short(shown.title, 60), fontsize=12, weight="bold")
        if len(shown.title) + len(says) > 70:
            self.y += 0.26
        self._text(self.width - MARGIN, self.y, says, fontsize=12, weight="bold", color=colour, ha="right")
        self.y += 0.22

    def _picture(self, frame: int, left: float, top: float, *, faded: float, kept_faded: float) -> None:
        """A frame, the tokens that were dropped moved towards white."""
        pixels = self.shown.frame_THWC[frame]
        rows, columns = self.found.grid[1:]
        kept = self.kept_TN[frame].reshape(rows, columns)
        size = (pixels.shape[0] // rows, pixels.shape[1] // columns)
        towards = np.where(np.kron(kept, np.ones(size, dtype=bool)), kept_faded, faded)[:, :, None]
        self.axes.imshow(
            pixels * (1 - towards) + towards,
            extent=(left, left + self.wide, top + self.tall, top),
            interpolation="nearest" if pixels.shape[0] < 100 else "antialiased",
            aspect="auto",
            zorder=1,
        )
        self._box(left, top, self.wide, self.tall, edgecolor="#d5d9dd", facecolor="none", linewidth=0.6, zorder=1.1)

    def _box(self, left: float, top: float, wide: float, tall: float, **style: Any) -> None:
        self.axes.add_patch(Rectangle((left, top), wide, tall, **style))

    def _token(self, left: float, top: float, place: int, inset: float, **style: Any) -> None:
        row, column = divmod(place, self.found.grid[2])
        dx, dy = inset * self.cell_wide, inset * self.cell_tall
        x, y = left + column * self.cell_wide + dx, top + row * self.cell_tall + dy
        self._box(x, y, self.cell_wide - 2 * dx, self.cell_tall - 2 * dy, **style)

    def _kept(self) -> None:
        found = self.found
        total = found.grid[0] * found.grid[1] * found.grid[2]
        count = len(found.position_S3)
        says = f"{count} of {total} tokens, budget {found.budget:g}. "
        says += "Dimmed: dropped." if self.shade_TN is None else "Dimmed: dropped. Bar: a frame's score, the sum of its tokens' utilities."
        self._heading("Kept", says)
        if self.shade_TN is not None:
            self._scale(self.width - MARGIN - 1.35, self.y - 0.2)
        line = float(np.clip(9 * self.cell_wide, 0.5, 1.5))
        score_T = found.score_T.numpy()
        band = self.tall + 0.52
        for frame in range(found.grid[0]):
            left, row = self._corner(frame)
            top = self.y + 0.12 + row * band
            self._text(left, top - 0.07, f"t = {frame}", fontsize=6.5, color=QUIET)
            self._picture(frame, left, top, faded=FADED, kept_faded=0.0)
            for place in np.flatnonzero(self.kept_TN[frame]):
                colour = "#d1490c" if self.shade_TN is None else UTILITY(float(self.shade_TN[frame, place]))
                self._token(left, top, int(place), 0.0, facecolor=colour, alpha=0.2, linewidth=0, zorder=2)
                self._token(left, top, int(place), 0.03, facecolor="none", edgecolor=colour, linewidth=line, zorder=2.1)
            below = top + self.tall + 0.07
            self._box(left, below, self.wide, 0.08, facecolor="#eceef0", linewidth=0, zorder=1)
            self._box(left, below, self.wide * float(score_T[frame] / max(score_T.max(), 1e-9)), 0.08, facecolor="#8b9197", linewidth=0, zorder=1.1)
            kept = int(found.kept_T[frame])
            says = f"{kept} kept" if self.wide > 0.7 else str(kept)
            self._text(left, below + 0.16, says, fontsize=6.5, color=INK if kept else QUIET)
            if self.shade_TN is not None and self.wide > 0.7:
                self._text(left + self.wide, below + 0.16, f"score {score_T[frame]:.1f}", fontsize=6.5, color=QUIET, ha="right")
        self.y += 0.12 + self.frame_rows * band

    def _graph(self, graph: GraphTrace, nodes: Sequence[int]) -> None:
        self._heading("Graph", "To whom the numbered nodes listen. Width: attention weight, the mean over rounds and heads.")
        band = self.tall + 0.12
        tops = self.y + ROOM
        for frame in range(self.found.grid[0]):
            left, row = self._corner(frame)
            self._picture(frame, left, tops + row * band, faded=0.92, kept_faded=0.4)
            for place in np.flatnonzero(self.kept_TN[frame]):
                self._token(left, tops + row * band, int(place), 0.02, facecolor="none", edgecolor="#c3c8cd", linewidth=0.5, zorder=2)

        def centre(node: int) -> tuple[float, float]:
            t, y, x = (int(v) for v in self.found.position_S3[node])
            left, row = self._corner(t)
            return left + (x + 0.5) * self.cell_wide, tops + row * band + (y + 0.5) * self.cell_tall

        weight_SE = graph.mean_weight_SE
        for number, node in enumerate(nodes):
            colour = NODE_COLOURS[number % len(NODE_COLOURS)]
            start = centre(node)
            for edge in range(weight_SE.shape[1]):
                kind = KINDS[int(graph.kind_SE[node, edge])]
                if kind not in DASHES:
                    continue
                end = centre(int(graph.neighbour_SE[node, edge]))
                self._edge(start, end, tops - ROOM, number, kind, float(weight_SE[node, edge]))
                self.axes.add_patch(Circle(end, 0.028, facecolor=colour, edgecolor="white", linewidth=0.5, zorder=4))
            self.axes.add_patch(Circle(start, 0.095 if self.wide > 0.7 else 0.075, facecolor=colour, edgecolor="white", linewidth=1.0, zorder=5))
            self._text(
                start[0],
                start[1] + 0.005,
                str(number + 1),
                fontsize=7.5 if self.wide > 0.7 else 6,
                weight="bold",
                color="white",
                ha="center",
                zorder=6,
            )
        self.y = tops + self.frame_rows * band + 0.04
        self._graph_legend()

    def _edge(self, start: tuple[float, float], end: tuple[float, float], ceiling: float, number: int, kind: str, weight: float) -> None:
        """A curve, thicker for more attention. To neighbours in time it hangs; else it rises, the more the farther it goes, each node's by its own
        measure so that they don't run into one another, and not above the ceiling."""
        (x0, y0), (x1, y1) = start, end
        level = (y0 + y1) / 2
        rise = (0.16 + 0.11 * abs(x1 - x0)) * (1 + 0.3 * (number % len(NODE_COLOURS)))
        bend = 0.16 if kind == "temporal" else -min(rise, 2 * (level - ceiling))
        curve = Curve([start, ((x0 + x1) / 2, level + bend), end], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])
        colour = NODE_COLOURS[number % len(NODE_COLOURS)]
        line: dict[str, Any] = {"linewidth": _thickness(weight), "linestyle": DASHES[kind], "capstyle": "butt", "alpha": 0.8}
        self.axes.add_patch(PathPatch(curve, facecolor="none", edgecolor=colour, zorder=3, **line))

    def _graph_legend(self) -> None:
        x, y = LEFT, self.y + 0.08
        for kind, says in (("similar", "similar looks"), ("temporal", "near in time and place"), ("both", "both")):
            self.axes.plot([x, x + 0.35], [y, y], color=INK, linewidth=1.6, linestyle=DASHES[kind])
            self._text(x + 0.42, y, says, fontsize=7)
            x += 0.66 + 0.06 * len(says)
        for weight in (0.05, 0.2, 0.5):
            self.axes.plot([x, x + 0.3], [y, y], color=INK, linewidth=_thickness(weight), solid_capstyle="butt")
            self._text(x + 0.36, y, f"{weight:g}", fontsize=7)
            x += 0.68
        self.y += 0.24

    def _memory(self, memory: MemoryTrace) -> None:
        gate = "how far the gate for writing opened, 0 to 1, and " if memory.gated else ""
        self._heading("Memory", f"By slot: {gate}how much the state changed, root mean square.{'' if memory.gated else ' A plain cell has no gate.'}")
        gate_TM, change_TM = memory.gate_TM.numpy(), memory.change_TM.numpy()
        frames, slots = gate_TM.shape
        aligned = self.frame_rows == 1
        step = self.wide + GAP if aligned else self.columns * (self.wide + GAP) / frames
        wide = self.wide if aligned else 0.94 * step
        strips = [("write", gate_TM, 1.0)] if memory.gated else []
        for name, value_TM, most in (*strips, ("change", change_TM, max(float(change_TM.max()), 1e-9))):
            for slot in range(slots):
                self._text(LEFT - 0.08, self.y + 0.085, f"{name} {slot + 1}", fontsize=7, ha="right")
                for frame in range(frames):
                    self._written(LEFT + frame * step, wide, float(value_TM[frame, slot]), most, held=bool(self.kept_TN[frame].any()))
                self.y += 0.2
            self.y += 0.05
        if not aligned:
            for frame in range(0, frames, max(1, frames // 16)):
                self._text(LEFT + frame * step, self.y + 0.03, f"t = {frame}", fontsize=6, color=QUIET)
            self.y += 0.12

    def _written(self, left: float, wide: float, value: float, most: float, *, held: bool) -> None:
        """One cell of the strip; a frame without nodes writes nothing."""
        colour = WRITES(value / most) if held else "white"
        self._box(left, self.y, wide, 0.17, facecolor=colour, edgecolor="#dcd3de", linewidth=0.5, linestyle="-" if held else ":")
        if wide > 0.3:
            ink = QUIET if not held else "white" if value > 0.6 * most else INK
            self._text(left + wide / 2, self.y + 0.09, f"{value:.2f}" if held else "–", fontsize=6.5, ha="center", color=ink)

    def _answer(self) -> None:
        """The best classes, and the true one wherever it stands."""
        self._heading("Answer", "Classes by probability.")
        probability_C = self.found.logits_C.softmax(dim=0)
        ranked = [int(c) for c in probability_C.argsort(descending=True, stable=True)]
        listed = ranked[:5]
        truth = self.shown.truth
        if truth is not None and truth not in listed:
            listed = [*listed[:4], truth]
        span = 5.0
        for c in listed:
            share, true = float(probability_C[c]), c == truth
            colour = RIGHT_COLOUR if true else "#9aa0a6"
            self._text(
                LEFT - 0.08, self.y + 0.08, _short(self.shown.class_names[c], 14), fontsize=7.5, ha="right", weight="bold" if true else "normal"
            )
            self._box(LEFT, self.y, max(0.012, span * share), 0.15, facecolor=colour, linewidth=0)
            says = f"{100 * share:.1f} %" + ("  true" if true else "")
            says += f", rank {ranked.index(c) + 1} of {len(ranked)}" if true and c not in ranked[:5] else ""
            self._text(LEFT + span * share + 0.07, self.y + 0.08, says, fontsize=7, color=RIGHT_COLOUR if true else INK)
            self.y += 0.2

    def _scale(self, left: float, level: float) -> None:
        """What the shades of the tokens mean."""
        self._text(left - 0.16, level, "utility", color=QUIET, ha="right")
        self._text(left - 0.05, level, "0", fontsize=7, color=QUIET, ha="right")
        self.axes.imshow(np.linspace(0, 1, 256)[None], cmap=UTILITY, extent=(left, left + 1.2, level + 0.055, level - 0.055), aspect="auto", zorder=1)
        self._text(left + 1.25, level, "1", fontsize=7, color=QUIET)


def _thickness(weight: float) -> float:
    return 0.5 + 9 * weight


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
