"""The web page: one file that holds everything, opens without a network and can be sent to a co-author."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vitgs.numbers import interval, percent, quantity, significant
from vitgs.record import Estimate
from vitgs.report.answer import Answer, answers, level_macs_text, paragraph
from vitgs.report.compare import Verdict, better_rule
from vitgs.report.families import rank
from vitgs.report.naming import knobs_text
from vitgs.report.palette import COLOURS, STAGE_COLOURS, looks
from vitgs.report.pareto import AXES, SURE, Axis, Front
from vitgs.report.points import ANCHOR, METHOD, Book, Point
from vitgs.report.tables import Table
from vitgs.report.training import equal_seconds, mean_curve, reached

WORDS = ("above", "tie", "below", "no point that cheap", "not comparable")
HERE = Path(__file__).parent
Fronts = Mapping[tuple[str, str, str], Front]


def page(book: Book, fronts: Fronts, of: Table) -> str:
    """The page's HTML. `fronts` by (machine, data set, axis key)."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    found = answers(book)
    marks = looks((p.configuration.system, p.configuration.group) for p in book.points)
    context = {
        "book": book,
        "answers": found,
        "paragraph": paragraph(found),
        "table": of,
        "method": METHOD,
        "anchor": ANCHOR,
        "sure": SURE,
        "style": Markup((HERE / "page.css").read_text(encoding="utf-8")),
        "script": Markup((HERE / "page.js").read_text(encoding="utf-8")),
        "colours": list(COLOURS.values()),
        "stage_colours": STAGE_COLOURS,
        "looks": marks,
        "groups": _groups(book),
        "payload": _payload(book, fronts),
        "matched": [_matched(answer) for answer in found],
        "equal_seconds": _equal_seconds(book),
        "reached": reached,
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


def _groups(book: Book) -> list[str]:
    return sorted({p.configuration.group for p in book.points}, key=rank)


def _payload(book: Book, fronts: Fronts) -> dict[str, Any]:
    """What the charts draw: numbers only; all text is set as text by the script, never as markup."""
    look = looks((p.configuration.system, p.configuration.group) for p in book.points)
    drawn_points = {id(p) for front in fronts.values() for p in front.points}
    points = []
    for p in book.points:
        if p.top1.estimate.value is None:
            continue
        key = (p.configuration.machine, p.data)
        drawn = {axis.key: (fronts[(*key, axis.key)]) for axis in AXES if (*key, axis.key) in fronts}
        index = {name: next((i for i, q in enumerate(front.points) if q is p), None) for name, front in drawn.items()}
        points.append(
            {
                "machine": key[0],
                "data": key[1],
                "system": p.configuration.system,
                "series": p.name.series,
                "setting": p.name.setting,
                "rule": p.configuration.rule,
                "shown": id(p) in drawn_points,
                "top1": _triple(p.top1.estimate, 100),
                "text": _accuracy_text(p),
                "cost": {axis.key: _triple(axis.of(p), axis.scale) for axis in AXES if axis.of(p).value is not None},
                "front": [name for name, i in index.items() if i is not None and drawn[name].on_front[i]],
                "sure": {name: chance for name, i in index.items() if i is not None and (chance := drawn[name].probability[i]) is not None},
                "knobs": knobs_text(p.configuration),
                "flags": ", ".join(p.flags),
            }
        )
    return {
        "method": METHOD,
        "anchor": ANCHOR,
        "machines": list(dict.fromkeys(p["machine"] for p in points)),
        "data": [data for data in book.data_sets if any(p["data"] == data for p in points)],
        "axes": [_axis(axis) for axis in AXES],
        "systems": {name: {"group": o.group, "colour": o.group_index, "shape": o.shape, "hollow": o.hollow} for name, o in look.items()},
        "groups": _groups(book),
        "points": points,
        "lines": _lines(book),
        "curves": _curves(book),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    return {"key": axis.key, "title": axis.title, "unit": axis.unit, "more": axis.more}


def _triple(e: Estimate, scale: float) -> list[float | None]:
    return [None if v is None else float(f"{v * scale:.5g}") for v in (e.value, e.low, e.high)]


def _accuracy_text(p: Point) -> str:
    e = p.top1.estimate
    return interval(e.value, e.low, e.high, scale=100)


def _lines(book: Book) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for p in book.points:
        for name, value in (("chance", p.chance), ("frame-average ceiling", p.ceiling)):
            if value is not None:
                found.setdefault(p.data, {})[name] = 100 * value
    return found


def _curves(book: Book) -> list[dict[str, Any]]:
    """One curve a trained model; the models of a configuration's run knobs are one and the same."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for machine in book.machines:
        for data in book.data_sets:
            for p in better_rule(book.of(machine, data)):
                if (
                    p.training.curves
                    and (key := (machine, data, p.configuration.system, p.name.series, p.configuration.knobs, p.configuration.shape)) not in found
                ):
                    values = [[round(x, 2), round(100 * y, 2)] for x, y in mean_curve(p.training.curves)]
                    title = p.name.full if not p.configuration.run else p.name.series
                    found[key] = {"machine": machine, "data": data, "system": p.configuration.system, "title": title, "values": values}
    return list(found.values())


def _matched(answer: Answer) -> dict[str, Any]:
    """Equal compute, rival by rival: how many of its points we are above, and its best point against ours."""
    rivals: dict[str, list[Verdict]] = {}
    for verdict in answer.verdicts:
        rivals.setdefault(verdict.rival.configuration.system, []).append(verdict)
    if not any(v.ours for v in answer.verdicts):
        return {"answer": answer, "rows": []}
    rows = []
    for system, verdicts in rivals.items():
        words = [v.word for v in verdicts]
        comparable = [v for v in verdicts if v.ours and v.difference and v.difference.estimate.value is not None]
        closest = max(comparable, key=lambda v: v.rival.choosing or 0.0, default=None)
        rows.append({"system": system, "words": {word: words.count(word) for word in WORDS}, "closest": _against(closest)})
    return {"answer": answer, "rows": rows}


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
        "p": "–" if verdict.p_holm is None else "< 0.001" if verdict.p_holm < 0.001 else f"{verdict.p_holm:.3f}",
        "word": verdict.word,
    }


def _equal_seconds(book: Book) -> list[tuple[str, str, list[Point]]]:
    found = [(machine, data, equal_seconds(better_rule(book.of(machine, data)))) for machine in book.machines for data in book.data_sets]
    return [(machine, data, points) for machine, data, points in found if points]


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


def _hypervolume(fronts: Fronts, book: Book) -> list[tuple[str, list[tuple[str, float]]]]:
    """By data set, each series' share of the area of accuracy against log MACs, the largest first."""
    found = []
    for (machine, data, key), front in fronts.items():
        if key == AXES[0].key and front.hypervolume:
            title = data if len(book.machines) == 1 else f"{data}, {machine}"
            found.append((title, sorted(front.hypervolume.items(), key=lambda item: -item[1])))
    return found
