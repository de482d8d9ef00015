"""A picture of the embedded tasks for readers: one clip of each, frame by frame."""

from __future__ import annotations

from pathlib import Path

from vitgs.data.digits import Digits, pixels
from vitgs.data.task import TASKS

_QUESTIONS = {
    "appearance": "which digit moves?",
    "direction": "which way does it go?",
    "moment": "which digit flashes?",
    "order": "which digits flash, in which order?",
    "link": "which digit went away, and to which side?",
}


def sample_sheet(path: Path, *, seed: int = 20) -> None:
    """Draws one training clip of every task into an image file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    frames = max(task.frames for task in TASKS.values())
    figure = Figure(figsize=(1.05 * frames + 0.3, 1.42 * len(TASKS)), facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subfigures(len(TASKS), 1, squeeze=False)[:, 0]
    for row_index, (row, name) in enumerate(zip(rows, TASKS, strict=True)):
        source = Digits(name, "train")
        sample = source.batch(1, seed + row_index)
        label = source.task.class_names[int(sample.label_B[0])]
        row.suptitle(f"{name}: {_QUESTIONS[name]}  \N{RIGHTWARDS ARROW} {label}", x=0.01, ha="left", fontsize=10)
        shown_THW = pixels(sample.clip_BTCHW)[0, :, 0].numpy()
        for t, axes in enumerate(row.subplots(1, frames, squeeze=False)[0]):
            axes.axis("off")
            if t < len(shown_THW):
                axes.imshow(-shown_THW[t], cmap="gray", vmin=-1.0, vmax=0.0, interpolation="nearest")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
