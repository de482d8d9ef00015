"""The report: results folders in, a page, figures and tables out. Needs neither torch nor a network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from vitgs.errors import UsageError
from vitgs.report import figures, tables, training
from vitgs.report.compare import better_rule
from vitgs.report.join import join
from vitgs.report.page import page
from vitgs.report.pareto import AXES, Axis, Front, front
from vitgs.report.points import Book
from vitgs.report.reading import CurrentVersion, present_version
from vitgs.report.sources import load

ALL_AXES = (*AXES, *training.TRAINING_AXES)
FORMATS = ("html", "md", "csv", "latex", "png", "pdf")


def load_book(results: Sequence[Path], *, current: CurrentVersion | None = present_version) -> Book:
    """The joined rows of these folders; `NothingToWorkOn` when there are none."""
    return join(load(results), current)


def render(results: Sequence[Path], out: Path, formats: Sequence[str] = FORMATS, *, current: CurrentVersion | None = present_version) -> list[Path]:
    """Writes the report into `out`, and gives back the files written, the page first."""
    for name in formats:
        if name not in FORMATS:
            raise UsageError(f"a report's format must be one of {', '.join(FORMATS)}", given=name, remedy="name one of these with --format")
    book = load_book(results, current=current)
    fronts = _fronts(book)
    table = tables.table(book)
    out.mkdir(parents=True, exist_ok=True)
    texts: list[tuple[str, str, Callable[[], str]]] = [
        ("html", "index.html", lambda: page(book, fronts, table)),
        ("csv", "results.csv", lambda: tables.to_csv(table)),
        ("md", "results.md", lambda: tables.to_markdown(table)),
        ("md", "accuracy.md", lambda: tables.to_brief_markdown(table)),
        ("latex", "results.tex", lambda: tables.to_latex(table)),
    ]
    written = []
    for name, file, text in texts:
        if name in formats:
            (out / file).write_text(text(), encoding="utf-8")
            written.append(out / file)
    return written + _figures(book, fronts, out, [name for name in ("png", "pdf") if name in formats])


def _fronts(book: Book) -> dict[tuple[str, str, str], Front]:
    """By machine, data set and axis, of each system's better rule; those that have points. On the axes of training one point a trained model."""
    found = {}
    for machine in book.machines:
        for data in book.data_sets:
            points = better_rule(book.of(machine, data))
            models = training.trained(points)
            for axis in ALL_AXES:
                if (of := front(points if axis in AXES else models, axis)).points:
                    found[machine, data, axis.key] = of
    return found


def _figures(book: Book, fronts: dict[tuple[str, str, str], Front], out: Path, formats: Sequence[str]) -> list[Path]:
    """One figure for each axis; with several machines, one each."""
    written = []
    for machine in book.machines if formats else ():
        for axis in ALL_AXES:
            panels = {data: fronts[machine, data, axis.key] for data in book.data_sets if (machine, data, axis.key) in fronts}
            if panels:
                stem = _stem(axis) if len(book.machines) == 1 else f"{_stem(axis)}-{machine}"
                written += figures.draw(panels, machine, out / stem, formats)
    return written


def _stem(axis: Axis) -> str:
    return f"pareto-{axis.key}" if axis in AXES else axis.key.replace("train_", "training-").replace("trainable", "training-parameters")
