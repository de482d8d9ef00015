"""One table of all configurations; CSV, Markdown, LaTeX and the page are printed from it. Rows without a number are rows too, with their reason."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from vitgs.numbers import interval, quantity, significant
from vitgs.record import Estimate
from vitgs.report.families import rank
from vitgs.report.naming import knobs_text
from vitgs.report.points import Book, Configuration, Lost, Point

NONE = "–"


@dataclass(frozen=True, kw_only=True)
class Column:
    """`key` names it in the CSV, with its unit; `title` for people; `paper`: it is in the LaTeX table; `interval`: the CSV adds its two ends."""

    key: str
    title: str
    group: str = ""
    paper: bool = False
    interval: bool = False
    text: bool = False
    help: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """`text` is what is printed, `value` what is sorted and exported, `reason` why there is none."""

    text: str = NONE
    value: float | str | None = None
    low: float | None = None
    high: float | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One configuration on all data sets, or one row without a number."""

    cells: tuple[Cell, ...]
    system: str
    group: str
    rule: str
    machine: str
    lost: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


def table(book: Book) -> Table:
    """The table of a book: configurations by group, system and cost, then the rows without a number."""
    data_sets = [data for data in book.data_sets if data]
    together: dict[Configuration, dict[str, Point]] = {}
    for point in book.points:
        together.setdefault(point.configuration, {})[point.data] = point
    ordered = sorted(together.items(), key=lambda item: _order(item[0], item[1]))
    rows = [_row(configuration, points, data_sets, book.lost) for configuration, points in ordered]
    sizes = sorted({point.cost.batch for point in book.points if point.cost.batch})
    batch = " or ".join(map(str, sizes)) or "not stated"
    return Table(columns=_columns(data_sets, batch), rows=(*rows, *(_lost_row(lost, data_sets) for lost in book.lost if not lost.later)))


def _columns(data_sets: Sequence[str], batch: str = "") -> tuple[Column, ...]:
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
            key="peak_live_bytes",
            title=f"peak live bytes (batch {batch})",
            group="memory and energy",
            paper=True,
            help="most bytes of activations alive at once, weights not counted",
        ),
        Column(key="energy_j_per_clip", title="energy a clip", group="memory and energy", interval=True),
        Column(key="train_core_seconds", title="training, core-seconds", group="training", help="mean over data sets and seeds"),
        Column(key="params_trainable", title="trainable", group="training"),
        *(
            Column(key=f"top1_equal_core_seconds_{data}", title=f"top-1 {data} at equal core-seconds, %", group="training", interval=True)
            for data in data_sets
        ),
        Column(key="flags", title="flags", text=True),
        Column(key="replay", title="replay", text=True),
    )


def _order(configuration: Configuration, points: dict[str, Point]) -> tuple[object, ...]:
    first = next(iter(points.values()))
    macs = first.cost.macs
    return (configuration.machine, rank(configuration.group), configuration.system, first.name.series, macs is None, macs or 0.0, first.name.setting)


def _row(configuration: Configuration, points: dict[str, Point], data_sets: Sequence[str], lost: Sequence[Lost]) -> Row:
    first = next(iter(points.values()))
    cost = first.cost
    trainings = [p.training for p in points.values()]
    accuracy = []
    for data in data_sets:
        point = points.get(data)
        accuracy += [_accuracy(point.top1.estimate), _accuracy(point.top5.estimate)] if point else [_missing(configuration, data, lost), Cell()]
    flags = sorted({flag for p in points.values() for flag in p.flags})
    seeds = sorted({len(p.top1.seeds) for p in points.values() if p.top1.seeds})
    flags += [f"{seeds[0]} seed" + ("s" if seeds[0] > 1 else "")] if seeds else ["not evaluated"]
    cells = (
        Cell(text=first.name.series, value=first.name.series),
        Cell(text=first.name.setting or NONE, value=first.name.setting, reason=knobs_text(configuration)),
        Cell(text=configuration.rule, value=configuration.rule),
        _number(cost.macs, significant(cost.macs * 1e-9) if cost.macs is not None else NONE, cost.uncounted or "not counted"),
        _number(cost.params, quantity(cost.params, "params")),
        *accuracy,
        _estimate(cost.clips_per_s),
        _estimate(cost.latency_ms),
        _estimate(cost.latency_ratio),
        _estimate(cost.throughput_ratio),
        _number(cost.flop_speedup, _plain(cost.flop_speedup), "no anchor row of this size and clip"),
        _number(cost.conversion, _plain(cost.conversion)),
        _number(cost.peak_live_bytes, quantity(cost.peak_live_bytes, "bytes")),
        _energy(cost.energy_j_per_clip),
        _mean([t.core_seconds for t in trainings], ""),
        _mean([t.params_trainable for t in trainings], "params"),
        *(_accuracy(points[data].equal_seconds.estimate) if data in points else Cell() for data in data_sets),
        Cell(text=", ".join(flags), value=", ".join(flags)),
        Cell(text=first.replay or NONE, value=first.replay),
    )
    return Row(cells=cells, system=configuration.system, group=configuration.group, rule=configuration.rule, machine=configuration.machine)


def _missing(configuration: Configuration, data: str, lost: Sequence[Lost]) -> Cell:
    """Why a data set has no accuracy: the row that was lost, or that there is none."""
    why = next(
        (row for row in lost if row.system == configuration.system and row.data == data and row.machine == configuration.machine and not row.later),
        None,
    )
    return Cell(text=why.status, reason=why.reason) if why else Cell(reason="no row")


def _lost_row(lost: Lost, data_sets: Sequence[str]) -> Row:
    flags = ", ".join((lost.status, *lost.flags)) + f": {lost.reason}"
    before = (
        Cell(text=lost.system, value=lost.system),
        Cell(text=lost.setting or NONE, value=lost.setting),
        Cell(text=f"{lost.kind} {lost.data}".strip()),
    )
    empty = len(_columns(data_sets)) - len(before) - 2
    cells = (*before, *[Cell(reason=lost.reason)] * empty, Cell(text=flags, value=flags), Cell(text=lost.replay or NONE, value=lost.replay))
    return Row(cells=cells, system=lost.system, group="", rule="", machine=lost.machine, lost=True)


def _accuracy(e: Estimate) -> Cell:
    return Cell(text=interval(e.value, e.low, e.high, scale=100), value=e.value, low=e.low, high=e.high, reason=e.reason)


def _estimate(e: Estimate) -> Cell:
    return Cell(text=interval(e.value, e.low, e.high), value=e.value, low=e.low, high=e.high, reason=e.reason)


def _energy(e: Estimate) -> Cell:
    return Cell(text=quantity(e.value, "j"), value=e.value, low=e.low, high=e.high, reason=e.reason)


def _number(value: float | None, text: str, reason: str = "not measured") -> Cell:
    return Cell(text=text, value=value, reason="" if value is not None else reason)


def _plain(value: float | None) -> str:
    return NONE if value is None else significant(value)


def _mean(values: Sequence[float | None], unit: str) -> Cell:
    known = [v for v in values if v is not None]
    if not known:
        return Cell(reason="no train row")
    mean = sum(known) / len(known)
    return Cell(text=quantity(mean, unit).strip(), value=mean)


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
    lines = ["| " + " | ".join(_markdown(c.title) for c in of.columns) + " |", "|" + "|".join("---" if c.text else "---:" for c in of.columns) + "|"]
    lines += ["| " + " | ".join(_markdown(_with_reason(c, cell)) for c, cell in zip(of.columns, row.cells, strict=True)) + " |" for row in of.rows]
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
