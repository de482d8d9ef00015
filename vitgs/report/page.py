"""The web page: one file that holds everything, opens without a network and can be sent to a co-author."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vitgs.numbers import percent, quantity, significant
from vitgs.report import systems, training
from vitgs.report.answer import Answer, answers, findings, level_macs_text
from vitgs.report.cells import NOT_RUN, Table
from vitgs.report.compare import Verdict, better_rule
from vitgs.report.families import group_of, rank
from vitgs.report.palette import COLOURS, STAGE_COLOURS, looks
from vitgs.report.pareto import AXES, SURE
from vitgs.report.payload import Fronts, payload
from vitgs.report.points import ANCHOR, METHOD, Book, Lost, Point

WORDS = ("above", "tie", "below", "no point that cheap", "not comparable")
HERE = Path(__file__).parent
SCRIPTS = ("page-draw.js", "page-filter.js", "page-chart.js", "page-tables.js", "page.js")


def page(book: Book, fronts: Fronts, of: Table) -> str:
    """The page's HTML. `fronts` by (machine, data set, axis key); `of`: the table of all configurations."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found = answers(book)
    # A system that only has lost rows is a system too.
    groups = {lost.system: group_of(lost.system) for lost in book.lost} | {p.configuration.system: p.configuration.group for p in book.points}
    marks = looks(groups.items())
    rows = {row.configuration: i for i, row in enumerate(of.rows) if row.configuration is not None}
    context = {
        "book": book,
        "answers": found,
        "findings": findings(found),
        "table": of,
        "systems": systems.table(book),
        "absent": systems.absent(book),
        "training": training.table(book),
        "lost_together": _lost_together(book),
        "method": METHOD,
        "anchor": ANCHOR,
        "sure": SURE,
        "not_run": NOT_RUN,
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup("\n".join((HERE / name).read_text(encoding="utf-8") for name in SCRIPTS)),
        "colours": list(COLOURS.values()),
        "stage_colours": STAGE_COLOURS,
        "looks": marks,
        "payload": payload(book, fronts, marks, rows),
        "matched": [_matched(answer) for answer in found],
        "equal_seconds": _equal_seconds(book, found),
        "reached": training.reached,
        "stages": _stages(book),
        "machines": [_machine(book, name) for name in book.machines],
        "level_macs": level_macs_text,
        "hypervolume": _hypervolume(fronts, book),
        "draws": next((p.top1.draws.size for p in book.points if p.top1.draws is not None), 0),
        "clips": sorted({p.top1.clips for p in book.points if p.top1.clips}),
        "energy_reasons": sorted({p.cost.energy_j_per_clip.reason for p in book.points} - {"", "no row"}),
        "percent": percent,
        "significant": significant,
        "quantity": quantity,
    }
    return environment.get_template("page.html.j2").render(context)


def _matched(answer: Answer) -> dict[str, Any]:
    """Equal compute, rival by rival: how many of its points we are above, and its best point against ours."""
    rivals: dict[str, list[Verdict]] = {}
    for verdict in answer.verdicts:
        rivals.setdefault(verdict.rival.configuration.system, []).append(verdict)
    if not any(v.ours for v in answer.verdicts):
        return {"answer": answer, "rows": []}
    rows: list[dict[str, Any]] = []
    for system, verdicts in rivals.items():
        words = [v.word for v in verdicts]
        comparable = [v for v in verdicts if v.ours and v.difference and v.difference.estimate.value is not None]
        closest = max(comparable, key=lambda v: v.rival.choosing or 0.0, default=None)
        rows.append({"system": system, "words": {word: words.count(word) for word in WORDS}, "closest": _against(closest)})
    groups = {v.rival.configuration.system: v.rival.configuration.group for v in answer.verdicts}
    return {"answer": answer, "rows": sorted(rows, key=lambda row: (rank(groups[row["system"]]), row["system"]))}


def _against(verdict: Verdict | None) -> dict[str, str] | None:
    if verdict is None or verdict.ours is None or verdict.difference is None:
        return None
    e = verdict.difference.estimate
    sign = "+" if (e.value or 0) >= 0 else "−"
    ends = f" [{100 * (e.low or 0):+.1f}, {100 * (e.high or 0):+.1f}]".replace("-", "−")
    return {
        "rival": verdict.rival.name.full,
        "rival_macs": quantity(verdict.rival.cost.macs, "macs"),
        "ours": verdict.ours.name.setting or verdict.ours.name.series,
        "ours_macs": quantity(verdict.ours.cost.macs, "macs"),
        "difference": f"{sign}{abs(100 * (e.value or 0)):.1f}",
        "ends": ends,
        "alone": "–" if verdict.difference.clips_alone is None else f"±{100 * verdict.difference.clips_alone:.1f}",
        "p": "–" if verdict.p_holm is None else "< 0.001" if verdict.p_holm < 0.001 else f"{verdict.p_holm:.3f}",
        "word": verdict.word,
    }


def _lost_together(book: Book) -> list[list[Lost]]:
    """Rows that gave no number, those with the same reason together."""
    found: dict[tuple[object, ...], list[Lost]] = {}
    for row in book.lost:
        found.setdefault((row.machine, row.kind, row.system, row.status, row.flags, row.reason, row.later), []).append(row)
    return list(found.values())


def _equal_seconds(book: Book, found: Sequence[Answer]) -> list[dict[str, Any]]:
    """For each machine and data set the series at their best points at equal core-seconds, and what ours at no more compute has over each."""
    groups = []
    for answer in found:
        against = {v.rival.name.full: _against(v) for v in answer.at_equal_seconds}
        points = training.equal_seconds(better_rule(book.of(answer.machine, answer.data)))
        groups.append({"machine": answer.machine, "data": answer.data, "rows": [(p, against.get(p.name.full)) for p in points]})
    return [group for group in groups if group["rows"]]


def _stages(book: Book) -> list[tuple[Point, list[tuple[str, float]]]]:
    """Each series at its cheapest point, with the shares of the stages; what no stage covers is the rest."""
    cheapest: dict[tuple[str, str], Point] = {}
    for p in sorted(book.points, key=lambda p: p.cost.macs or float("inf")):
        if p.cost.macs is not None and (p.cost.stage_share or p.cost.conversion is not None):
            cheapest.setdefault((p.configuration.machine, p.configuration.system), p)
    ordered = sorted(cheapest.values(), key=lambda p: (rank(p.configuration.group), p.configuration.system))
    return [(p, _with_rest(p.cost.stage_share)) for p in ordered]


def _with_rest(shares: Mapping[str, float]) -> list[tuple[str, float]]:
    known = [(name, shares[name]) for name in STAGE_COLOURS if shares.get(name)]
    rest = sum(v for name, v in shares.items() if name not in STAGE_COLOURS) + max(0.0, 1 - sum(shares.values())) if shares else 0.0
    return known + ([("rest", rest)] if rest > 0.005 else [])


def _machine(book: Book, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "description": _flat(book.machines[name]),
        "environments": [_flat(e) for e in book.environments.get(name, ())[:4]],
        "more": max(0, len(book.environments.get(name, ())) - 4),
    }


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, Mapping):
            found += _flat(value, f"{prefix}{key} ")
        else:
            found.append((prefix + str(key).replace("_", " "), _plain(value)))
    return found


def _plain(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def _hypervolume(fronts: Fronts, book: Book) -> dict[str, Any]:
    """Each series' share of the area of accuracy against log MACs, data set by data set; the largest on average first."""
    columns: dict[str, Mapping[str, float]] = {}
    owners: dict[str, str] = {}
    for (machine, data, key), front in fronts.items():
        if key == AXES[0].key and front.hypervolume:
            columns[data if len(book.machines) == 1 else f"{data}, {machine}"] = front.hypervolume
            owners |= {p.name.series: p.configuration.system for p in front.points}
    rows = [(owners[series], series, [values.get(series) for values in columns.values()]) for series in owners]
    return {"columns": list(columns), "rows": sorted(rows, key=lambda row: -sum(v or 0.0 for v in row[2]))}
