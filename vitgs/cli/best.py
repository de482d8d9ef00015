"""`best`: the most accurate configuration under the limits given, how sure that is, and the command that measures it again."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitgs import folders
from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.errors import NothingToWorkOn
from vitgs.numbers import interval, percent, quantity

if TYPE_CHECKING:
    from vitgs.report.best import Best
    from vitgs.report.points import Point


def best(
    max_latency_ms: Annotated[float | None, typer.Option("--max-latency-ms", help="Milliseconds of one clip.")] = None,
    max_gmacs: Annotated[float | None, typer.Option("--max-gmacs", help="Giga-MACs a view.")] = None,
    max_memory_gib: Annotated[float | None, typer.Option("--max-memory-gib", help="Peak GiB of activations, or of the GPU.")] = None,
    max_energy_j: Annotated[float | None, typer.Option("--max-energy-j", help="Joules a clip.")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", metavar="A,B", help="Only these data sets.")] = None,
    results: Annotated[list[Path] | None, typer.Option("--results", metavar="DIR", help="Where the results lie; may be repeated.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Name the most accurate configuration under the limits, on each data set and machine."""
    for option, value in (("latency-ms", max_latency_ms), ("gmacs", max_gmacs), ("memory-gib", max_memory_gib), ("energy-j", max_energy_j)):
        options.positive(f"--max-{option}", value)
    from vitgs.report import best as choice
    from vitgs.report.render import load_book

    points = load_book(results or [folders.results()]).points
    wanted = options.names(data)
    known = sorted({point.data for point in points if point.data})
    if missing := [name for name in wanted or () if name not in known]:
        raise NothingToWorkOn("the results must hold the data asked for", given=", ".join(missing), remedy=f"known: {', '.join(known) or 'none'}")
    beside = "".join(f" --results {shlex.quote(str(place))}" for place in results or ())
    points = tuple(replace(point, replay=point.replay and point.replay + beside) for point in points if not wanted or point.data in wanted)
    found = choice.best(points, max_latency_ms, max_gmacs, max_memory_gib, max_energy_j)
    if not any(answer.point for answer in found):
        reasons = "; ".join(dict.fromkeys(f"{answer.data}: {answer.reason}" for answer in found)) or "no row has an accuracy"
        remedy = "raise a limit, leave out one that nothing was measured for, or sweep more configurations"
        raise NothingToWorkOn("a configuration must be within the limits", given=reasons, remedy=remedy)
    if as_json:
        output.document([_answer(answer) for answer in found])
        return
    for answer in found:
        _print(answer)


def _describe(point: Point) -> dict[str, Any]:
    configuration, cost = point.configuration, point.cost
    return {
        "name": point.name.full,
        "system": configuration.system,
        "size": configuration.size,
        "style": configuration.style,
        "frames": configuration.frames,
        "knobs": dict(configuration.knobs),
        "run": dict(configuration.run),
        "rule": configuration.rule,
        "split": point.split,
        "top1": point.top1.estimate,
        "macs": cost.macs,
        "latency_ms": cost.latency_ms,
        "peak_live_bytes": cost.peak_live_bytes,
        "energy_j_per_clip": cost.energy_j_per_clip,
        "flags": list(point.flags),
        "replay": point.replay,
    }


def _answer(answer: Best) -> dict[str, Any]:
    return {
        "machine": answer.machine,
        "data": answer.data,
        "best": _describe(answer.point) if answer.point else None,
        "probability": answer.probability,
        "ties": [_describe(point) for point in answer.ties],
        "over_a_limit": answer.excluded,
        "not_measured_for_a_limit": answer.unmeasured,
        "reason": answer.reason,
    }


def _print(answer: Best) -> None:
    print(f"{answer.data} on {answer.machine}")
    if answer.point is None:
        print(f"  none: {answer.reason}")
        return
    point, cost = answer.point, answer.point.cost
    top1 = point.top1.estimate
    lines = [
        ("configuration", point.name.full),
        (f"{point.split} top-1 in %", interval(top1.value, top1.low, top1.high, scale=100)),
        ("compute a view", quantity(cost.macs, "macs")),
        ("latency in ms", interval(cost.latency_ms.value, cost.latency_ms.low, cost.latency_ms.high)),
        ("doubts about its rows", ", ".join(point.flags) or "none"),
        ("most accurate with probability in %", percent(answer.probability, 0)),
        ("can't be told from", ", ".join(tie.name.full for tie in answer.ties) or "no other system"),
        ("left out", f"{answer.excluded} over a limit, {answer.unmeasured} without a value for one"),
        ("again", answer.replay and shlex.join(shlex.split(answer.replay))),
    ]
    output.columns((f"  {name}", text) for name, text in lines)
