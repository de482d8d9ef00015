"""One table of all configurations; CSV, Markdown, LaTeX and the page are printed from it. Rows without a number are rows too, with their reason."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import replace

from vitgs.numbers import quantity, significant
from vitgs.report import cells
from vitgs.report.cells import NONE, Cell, Column, Row, Table
from vitgs.report.families import group_of, rank
from vitgs.report.naming import knobs_text
from vitgs.report.points import Book, Configuration, Cost, Lost, Point, Training

# The columns of the brief table, beside the top-1 of each data set.
BRIEF = ("system", "setting", "rule", "macs", "latency_ratio", "realised_speedup")


def table(book: Book) -> Table:
    """The table of a book: configurations by group, system and cost, then the rows without a number."""
    data_sets = [data for data in book.data_sets if data]
    together: dict[Configuration, dict[str, Point]] = {}
    for point in book.points:
        together.setdefault(point.configuration, {})[point.data] = point
    ordered = sorted(together.items(), key=lambda item: _order(item[0], item[1]))
    columns = _columns(data_sets, _batch(book), equal=any(point.equal_seconds.estimate.value is not None for point in book.points))
    rows = [_row(configuration, points, data_sets, columns, book.lost) for configuration, points in ordered]
    return Table(columns=columns, rows=(*rows, *(_lost_row(lost, columns) for lost in book.lost if not lost.later)))


def _batch(book: Book) -> str:
    sizes = sorted({point.cost.batch for point in book.points if point.cost.batch})
    return " or ".join(map(str, sizes)) or "not stated"


def _columns(data_sets: Sequence[str], batch: str, *, equal: bool) -> tuple[Column, ...]:
    """`equal`: some models were trained for equal core-seconds."""
    accuracy = [
        column
        for data in data_sets
        for column in (
            Column(key=f"top1_{data}", title=f"top-1 {data}, % [95 %]", group="accuracy", paper=True, interval=True),
            Column(key=f"top5_{data}", title=f"top-5 {data}, %", group="top-5"),
        )
    ]
    return (
        Column(key="system", title="system", paper=True, text=True),
        Column(key="setting", title="setting", paper=True, text=True),
        Column(
            key="rule",
            title="trained by",
            text=True,
            help="elastic: run knobs drawn for each batch; paper: fixed, as the paper trains; none: no run knobs",
        ),
        Column(key="macs", title="GMACs", group="cost", paper=True, help="giga multiply-adds a view; what papers often call GFLOPs"),
        Column(key="params", title="parameters", group="cost"),
        *accuracy,
        Column(key="clips_per_s", title=f"clips/s (batch {batch})", group="speed", paper=True, interval=True),
        Column(key="latency_ms", title="latency, ms (batch 1)", group="speed", paper=True, interval=True),
        Column(
            key="latency_ratio",
            title="latency × anchor",
            group="speed",
            interval=True,
            help="latency over that of vit_mean in the same rounds; below 1 is faster",
        ),
        Column(
            key="realised_speedup", title="speed-up realised", group="speed", interval=True, help="clips/s over those of vit_mean in the same rounds"
        ),
        Column(key="flop_speedup", title="speed-up by FLOPs", group="speed", help="vit_mean's multiply-adds over this system's"),
        Column(key="conversion", title="realised / FLOP", group="speed", help="1: every operation saved is time saved"),
        Column(
            key="ceiling_share",
            title="of the ceiling, %",
            group="speed",
            interval=True,
            help="its multiply-adds a second over those of a square product there",
        ),
        Column(
            key="peak_live_bytes",
            title=f"peak live bytes (batch {batch})",
            group="memory and energy",
            paper=True,
            help="most bytes of activations alive at once, weights not counted",
        ),
        Column(key="energy_j_per_clip", title="energy a clip", group="memory and energy", interval=True),
        Column(key="train_core_seconds", title="training, core-seconds", group="training", help="mean over data sets and seeds"),
        Column(key="train_device_seconds", title="training, device-seconds", group="training", help="wall clock of the training steps, likewise"),
        Column(key="train_clips_per_s", title="training clips/s", group="training"),
        Column(key="train_peak_resident_growth_bytes", title="peak memory growth in training", group="training"),
        Column(key="params_trainable", title="trainable", group="training"),
        *(
            Column(key=f"top1_equal_core_seconds_{data}", title=f"top-1 {data} at equal core-seconds, %", group="training", interval=True)
            for data in (data_sets if equal else ())
        ),
        Column(key="flags", title="flags", text=True),
        Column(key="replay", title="replay", text=True),
    )


def _order(configuration: Configuration, points: dict[str, Point]) -> tuple[object, ...]:
    first = next(iter(points.values()))
    macs = first.cost.macs
    return (configuration.machine, rank(configuration.group), configuration.system, first.name.series, macs is None, macs or 0.0, first.name.setting)


def _row(configuration: Configuration, points: dict[str, Point], data_sets: Sequence[str], columns: Sequence[Column], lost: Sequence[Lost]) -> Row:
    first = next(iter(points.values()))
    cost = first.cost
    run = cost != Cost()
    trainings = [p.training for p in points.values()]
    trained = any(t != Training() for t in trainings)
    flags = sorted({flag for p in points.values() for flag in p.flags})
    seeds = sorted({len(p.top1.seeds) for p in points.values() if p.top1.seeds})
    flags += [f"{seeds[0]} seed" + ("s" if seeds[0] > 1 else "")] if seeds else ["not evaluated"]
    found = {
        "system": cells.text(first.name.series),
        "setting": cells.text(first.name.setting, knobs_text(configuration)),
        "rule": cells.text(configuration.rule),
        "macs": cells.number(cost.macs, _gmacs(cost.macs), cost.uncounted or "not counted", run=run),
        "params": cells.number(cost.params, quantity(cost.params, "params"), run=run),
        "clips_per_s": cells.estimate(cost.clips_per_s),
        "latency_ms": cells.estimate(cost.latency_ms),
        "latency_ratio": cells.estimate(cost.latency_ratio),
        "realised_speedup": cells.estimate(cost.throughput_ratio),
        "flop_speedup": cells.number(cost.flop_speedup, cells.plain(cost.flop_speedup), "timed beside no anchor", run=run),
        "conversion": cells.number(cost.conversion, cells.plain(cost.conversion), run=run),
        "ceiling_share": cells.estimate(cost.ceiling_share, scale=100),
        "peak_live_bytes": cells.number(cost.peak_live_bytes, quantity(cost.peak_live_bytes, "bytes"), run=run),
        "energy_j_per_clip": cells.energy(cost.energy_j_per_clip),
        "train_core_seconds": cells.mean([t.core_seconds for t in trainings], "", run=trained),
        "train_device_seconds": cells.mean([t.device_seconds for t in trainings], "", run=trained),
        "train_clips_per_s": cells.mean([t.clips_per_s for t in trainings], "", run=trained),
        "train_peak_resident_growth_bytes": cells.mean([t.peak_resident_growth_bytes for t in trainings], "bytes", run=trained),
        "params_trainable": cells.mean([t.params_trainable for t in trainings], "params", run=trained),
        "flags": cells.text(", ".join(flags)),
        "replay": cells.text(first.replay),
    }
    for data in data_sets:
        point = points.get(data)
        gone = cells.missing(configuration, data, lost)
        found[f"top1_{data}"] = cells.accuracy(point.top1.estimate) if point else gone
        found[f"top5_{data}"] = cells.accuracy(point.top5.estimate) if point else gone
        found[f"top1_equal_core_seconds_{data}"] = cells.accuracy(point.equal_seconds.estimate) if point else gone
    return Row(
        cells=tuple(found[column.key] for column in columns),
        system=configuration.system,
        group=configuration.group,
        rule=configuration.rule,
        machine=configuration.machine,
        configuration=configuration,
    )


def _gmacs(macs: float | None) -> str:
    return NONE if macs is None else significant(macs * 1e-9)


def _lost_row(lost: Lost, columns: Sequence[Column]) -> Row:
    found = {
        "system": cells.text(lost.system),
        "setting": cells.text(lost.setting),
        "rule": Cell(text=f"{lost.status}: {lost.kind} {lost.data}".strip()),
        "flags": cells.text(", ".join((lost.status, *lost.flags)) + f": {lost.reason}"),
        "replay": cells.text(lost.replay),
    }
    empty = Cell(reason=lost.reason)
    row = tuple(found.get(column.key, empty) for column in columns)
    return Row(cells=row, system=lost.system, group=group_of(lost.system), rule="", machine=lost.machine, lost=True)


def to_csv(of: Table) -> str:
    """Full precision, one line a row; a value's interval ends follow it. Accuracies are shares, not percent."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["machine", *(name for c in of.columns for name in ((c.key, f"{c.key}_low", f"{c.key}_high") if c.interval else (c.key,)))])
    for row in of.rows:
        values: list[object] = [row.machine]
        for column, cell in zip(of.columns, row.cells, strict=True):
            shown = cell.value if cell.value is not None or not column.text else cell.text
            values += ["" if v is None else v for v in ((shown, cell.low, cell.high) if column.interval else (shown,))]
        writer.writerow(values)
    return out.getvalue()


def to_markdown(of: Table) -> str:
    """A pipe table with every column."""
    return _pipes(of.columns, of.rows)


def to_brief_markdown(of: Table) -> str:
    """A pipe table that fits a page: cost beside the top-1 of every data set, with its interval, and at equal core-seconds where there is any such.

    Rows without a number are in the full one.
    """
    told = [row for row in of.rows if not row.lost]
    keep = [
        i
        for i, c in enumerate(of.columns)
        if c.key in BRIEF or (c.key.startswith("top1_") and ("equal" not in c.key or any(row.cells[i].value is not None for row in told)))
    ]
    rows = [replace(row, cells=tuple(row.cells[i] for i in keep)) for row in told]
    return _pipes([of.columns[i] for i in keep], rows)


def _pipes(columns: Sequence[Column], rows: Sequence[Row]) -> str:
    lines = ["| " + " | ".join(_markdown(c.title) for c in columns) + " |", "|" + "|".join("---" if c.text else "---:" for c in columns) + "|"]
    lines += ["| " + " | ".join(_markdown(_with_reason(c, cell)) for c, cell in zip(columns, row.cells, strict=True)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _with_reason(column: Column, cell: Cell) -> str:
    return f"{cell.text} ({cell.reason})" if cell.text == NONE and column.key.startswith("energy") and cell.reason else cell.text


def _markdown(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())


def to_latex(of: Table) -> str:
    """A booktabs table of the columns that a paper has room for; needs \\usepackage{booktabs}. Rows without a number are comments below it."""
    columns = [i for i, c in enumerate(of.columns) if c.paper]
    alignment = "".join("l" if of.columns[i].text else "r" for i in columns)
    lines = ["% needs \\usepackage{booktabs}; GMACs are giga multiply-adds a view", f"\\begin{{tabular}}{{{alignment}}}"]
    lines += ["\\toprule", " & ".join(latex(of.columns[i].title) for i in columns) + " \\\\", "\\midrule"]
    last = ""
    for row in (r for r in of.rows if not r.lost):
        lines += ["\\addlinespace"] if last and row.group != last else []
        last = row.group
        lines.append(" & ".join(latex(row.cells[i].text) for i in columns) + " \\\\")
    lines += ["\\bottomrule", "\\end{tabular}"]
    for row in (r for r in of.rows if r.lost):
        lines.append("% no number: " + " ".join(" ".join(cell.text for cell in (*row.cells[:3], row.cells[-2])).split()))
    return "\n".join(lines) + "\n"


_LATEX = {
    "\\": "\\textbackslash{}",
    "{": "\\{",
    "}": "\\}",
    "$": "\\$",
    "&": "\\&",
    "#": "\\#",
    "%": "\\%",
    "_": "\\_",
    "~": "\\textasciitilde{}",
    "^": "\\textasciicircum{}",
    "–": "--",
    "×": "$\\times$",
    "·": "$\\cdot$",
    "≤": "$\\leq$",
    "<": "\\textless{}",
    ">": "\\textgreater{}",
}


def latex(text: str) -> str:
    """Text with every character that LaTeX would take for a command written out."""
    return "".join(_LATEX.get(character, character) for character in text)
