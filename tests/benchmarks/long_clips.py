"""How time and memory grow with the length of a clip, at a fixed number of kept tokens a frame: exponents over 8 to 128 frames, batch 1.

    .venv/bin/python -m tests.benchmarks.long_clips --size Ti --seconds 20 --out results/long-clips.ndjson --table reports/long-clips.md

The lengths of one system are interleaved in one run, so that each round gives an exponent of its own; systems come one after the other. Rows are kept
as they come, and the same command goes on where it was. Live tensor bytes are counted, the same each run. Not a test: it asserts no seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import rows
from tests.benchmarks.rows import GIB, Call, Row, missed, plain, shown
from vitgs import registry
from vitgs.backbone import sizes
from vitgs.errors import UsageError, VitgsError
from vitgs.graphsampler.model import GraphSampler
from vitgs.measure import clock, machine, memory, setting, soundness
from vitgs.measure.intervals import estimate, mapped, ratio
from vitgs.measure.stagetime import stage_times
from vitgs.numbers import significant
from vitgs.record import Clip, Estimate
from vitgs.store.code import code_version

CLASSES = 400
INPUTS = 2
TARGET_HALF_WIDTH = 0.02
MOST_EXPONENT = 1.1
CONNECTING = ("graph", "memory")
STAGE_REPEATS = 6  # the fewest that give an interval
SHORT = {"window": 2}  # in chunks, to either side


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A system with its knobs; `linear`: whether the target on growth is for it."""

    label: str
    system: str
    knobs: Mapping[str, Any]
    linear: bool = False


CONTENDERS = {
    contender.label: contender
    for contender in (
        Contender(label="graphsampler", system="graphsampler", knobs={}, linear=True),
        Contender(label="graphsampler, windows of 2", system="graphsampler", knobs=SHORT, linear=True),
        Contender(label="graphsampler, M x K, windows of 2", system="graphsampler", knobs=SHORT | {"decision": "dense"}, linear=True),
        Contender(label="graphsampler, every frame alike, windows of 2", system="graphsampler", knobs=SHORT | {"select": "token"}, linear=True),
        Contender(label="graphsampler, jointly", system="graphsampler", knobs={"attention": "joint"}),
        Contender(label="timesformer", system="timesformer", knobs={}),
        Contender(label="joint", system="joint", knobs={}),
    )
}


def exponent(frames: Sequence[float], values: Sequence[float]) -> float:
    """The slope of log value over log frames, by least squares."""
    if len(frames) < 2 or min(values) <= 0:
        raise UsageError("an exponent needs at least two lengths and positive values", given=f"{len(frames)} lengths", remedy="give more --frames")
    return statistics.linear_regression([math.log(t) for t in frames], [math.log(v) for v in values]).slope


def doublings(frames: Sequence[float], values: Sequence[float]) -> list[float]:
    """The exponent from each length to the next."""
    return [exponent(pair, ends) for pair, ends in zip(pairwise(frames), pairwise(values), strict=True)]


def fitted(rounds: Mapping[int, Sequence[float]]) -> Estimate:
    """The exponent with its interval, from the values of each length in the order of the rounds: the median over one fit a round."""
    return estimate([exponent(list(rounds), values) for values in zip(*rounds.values(), strict=True)])


def foreseen(peaks: Mapping[int, float], frames: int) -> float | None:
    """The peak at the next length from those before: grown as from the last to it, at least linearly; quadratically after one; None after none."""
    if not peaks:
        return None
    lengths = sorted(peaks)
    last = lengths[-1]
    grown = 2.0 if len(lengths) == 1 else max(1.0, exponent(lengths[-2:], [peaks[t] for t in lengths[-2:]]))
    return float(peaks[last] * (frames / last) ** grown)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One length that is timed."""

    model: nn.Module
    call: Call
    live_bytes: int
    kept_a_frame: float | None


def point(contender: Contender, size: str, frames: int, resolution: int, budget: float, device: torch.device) -> Point:
    """The system for clips of that length, its exact peak of live tensors counted."""
    clip = Clip(frames=frames, height=resolution, width=resolution, classes=CLASSES)
    torch.manual_seed(0)
    knobs = dict(contender.knobs) | ({"budget": budget} if contender.system == "graphsampler" else {})
    model = registry.get(contender.system).build(size, clip, "in21k", **knobs).eval().to(device)
    clips = [torch.randn(1, *clip.shape, generator=torch.Generator().manual_seed(seed)).to(device) for seed in range(INPUTS)]
    with torch.no_grad():  # not inference mode: composite operators are taken apart, and what they make inside is counted too
        live = memory.peak_live_bytes(lambda: soundness.check(model(clips[0]), 1, clip), (*model.parameters(), *model.buffers(), clips[0]))
    turns = cycle(clips)

    def call() -> Tensor:
        logits: Tensor = model(next(turns))
        return logits

    kept = None if not isinstance(model, GraphSampler) else math.prod(model._shape(budget)) / frames
    return Point(model=model, call=call, live_bytes=live, kept_a_frame=kept)


def grow(contender: Contender, given: argparse.Namespace, device: torch.device) -> tuple[dict[int, Point], dict[int, str]]:
    """The lengths that fit, and the others with the reason."""
    points: dict[int, Point] = {}
    left_out: dict[int, str] = {}
    for frames in sorted(set(given.frames)):
        expected = foreseen({t: float(p.live_bytes) for t, p in points.items()}, frames)
        if left_out or (expected is not None and expected / GIB > given.max_gb):
            left_out[frames] = f"foreseen to need {(expected or 0.0) / GIB:.3g} GiB, more than --max-gb {given.max_gb:g}"
            continue
        try:
            with soundness.known_failures():
                points[frames] = point(contender, given.size, frames, given.resolution, given.budget, device)
        except soundness.OutOfMemory as error:
            left_out[frames] = str(error)
    return points, left_out


def connecting(points: Mapping[int, Point], median_ms: Mapping[int, float], device: torch.device) -> dict[int, list[float]]:
    """The ms of graph and memory at each length, so many times, all lengths in each repeat: their share of the pass times its median."""
    taken: dict[int, list[float]] = {frames: [] for frames in points}
    for _ in range(STAGE_REPEATS):
        for frames, at in points.items():
            share = stage_times(at.call, seconds=0.0, device=device).share
            taken[frames].append(median_ms[frames] * sum(share.get(name, 0.0) for name in CONNECTING))
    return taken


def measure(contender: Contender, given: argparse.Namespace, device: torch.device) -> Row:
    """What a row says of one system."""
    points, left_out = grow(contender, given, device)
    if len(points) < 2:
        return {"status": "skipped", "reason": "; ".join(left_out.values()) or "one length has no exponent", "left_out": _by_text(left_out)}
    with torch.inference_mode():
        before = machine.cpu_times()
        calls = {str(frames): at.call for frames, at in points.items()}
        timed = rows.interleaved(calls, seconds=given.seconds, target=TARGET_HALF_WIDTH, device=device)
        foreign = machine.foreign_share(before, machine.cpu_times())
        blocks = {frames: timed[str(frames)].blocks_ms for frames in points}
        ms = {frames: clock.estimate(taken) for frames, taken in blocks.items()}
        graph_ms = connecting(points, {frames: of.value or 0.0 for frames, of in ms.items()}, device) if contender.system == "graphsampler" else {}
    lengths = list(points)
    live = [float(at.live_bytes) for at in points.values()]
    last, step = ratio(blocks[lengths[-1]], blocks[lengths[-2]]), math.log(lengths[-1] / lengths[-2])
    flags = {"unstable": any(t.unstable for t in timed.values()), "contaminated": (foreign or 0.0) > machine.FOREIGN_LIMIT}
    return {
        "status": "measured", "reason": "", "left_out": _by_text(left_out),
        "kept_a_frame": _by_text({frames: at.kept_a_frame for frames, at in points.items()}),
        "ms": _by_text({frames: plain(of) for frames, of in ms.items()}),
        "time_exponent": plain(fitted(blocks)),
        "last_time_exponent": plain(mapped(last, lambda r: math.log(r) / step, "log-ratio of the last two lengths over that of their frames")),
        "live_bytes": _by_text({frames: at.live_bytes for frames, at in points.items()}),
        "weights_bytes": memory.weights_bytes(points[lengths[-1]].model),
        "bytes_exponent": exponent(lengths, live), "bytes_doublings": doublings(lengths, live),
        "graph_memory_ms": _by_text({frames: plain(estimate(taken)) for frames, taken in graph_ms.items()}),
        "graph_memory_exponent": plain(fitted(graph_ms)) if graph_ms else None,
        "blocks_ms": _by_text(blocks), "graph_memory_samples_ms": _by_text(graph_ms),
        "flags": [name for name, raised in flags.items() if raised], "foreign_cpu_share": foreign,
    }  # fmt: skip


def _by_text(of: Mapping[int, Any]) -> dict[str, Any]:
    return {str(frames): value for frames, value in of.items()}


def misses(contender: Contender, row: Row) -> str:
    """Which exponent of a measured row is above the target; a dash where there is none for it."""
    if not contender.linear:
        return "–"
    exact = {"value": row["bytes_exponent"], "low": None, "high": None}
    told = {"time": missed(row["time_exponent"], at_most=MOST_EXPONENT), "bytes": missed(exact, at_most=MOST_EXPONENT)}
    return "; ".join(f"{what} {how}" for what, how in told.items() if how) or "no"


def table(found: list[Row], settings: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    frames = sorted({int(t) for row in found if row["status"] == "measured" for t in row["ms"]} | {int(t) for row in found for t in row["left_out"]})
    lines = [
        "# Long clips",
        "",
        f"Size {settings['size']}, {settings['resolution']} px, batch 1, budget {settings['budget']:g}, {settings['device']}, "
        f"{settings['threads']} threads, float32, {settings['machine']}; {settings['seconds']:g} s a system, its lengths interleaved. Exponents are "
        "slopes of log over log frames; of time with a 95 % interval over rounds, of live tensor bytes (counted: weights, input and kernels' scratch "
        f"apart) with the range over single steps. Target: at most {MOST_EXPONENT} for time and bytes of the method a frame at a time. "
        f"Again: `python -m tests.benchmarks.long_clips --size {settings['size']}`.",
        "",
        _head(["system", *(f"ms, {t} frames" for t in frames), "exponent of time", "at the last step", "of graph and memory", "misses", ""]),
        *(_time_line(row, frames) for row in found),
        "",
        _head(["system", *(f"MiB live, {t} frames" for t in frames), "exponent of bytes", "tokens kept a frame", "left out"]),
        *(_bytes_line(row, frames) for row in found),
    ]
    return "\n".join(lines) + "\n"


def _head(columns: list[str]) -> str:
    return "| " + " | ".join(columns) + " |\n|" + "---|" * len(columns)


def _time_line(row: Row, frames: list[int]) -> str:
    label = row["cell"]["system"]
    if row["status"] != "measured":
        return "| " + " | ".join([label, *["–"] * (len(frames) + 4), f"{row['status']}: {row['reason']}"]) + " |"
    times = [shown(row["ms"][str(t)]) if str(t) in row["ms"] else "–" for t in frames]
    graph = "–" if row["graph_memory_exponent"] is None else shown(row["graph_memory_exponent"])
    exponents = [shown(row["time_exponent"]), shown(row["last_time_exponent"]), graph]
    return "| " + " | ".join([label, *times, *exponents, misses(CONTENDERS[label], row), ", ".join(row["flags"])]) + " |"


def _bytes_line(row: Row, frames: list[int]) -> str:
    label, left_out = row["cell"]["system"], "; ".join(f"{t} frames: {why}" for t, why in row["left_out"].items())
    if row["status"] != "measured":
        return "| " + " | ".join([label, *["–"] * (len(frames) + 2), left_out]) + " |"
    sizes_mib = [significant(row["live_bytes"][str(t)] / 2**20) if str(t) in row["live_bytes"] else "–" for t in frames]
    steps, kept = row["bytes_doublings"], [k for k in row["kept_a_frame"].values() if k is not None]
    tokens = f"{min(kept):.3g}–{max(kept):.3g}" if kept else "all"
    return "| " + " | ".join([label, *sizes_mib, f"{row['bytes_exponent']:.3g} ({min(steps):.3g}–{max(steps):.3g})", tokens, left_out]) + " |"


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="How time and memory grow with the length of a clip.")
    parser.add_argument("--size", default="Ti", choices=tuple(sizes.SIZES))
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 16, 32, 64, 128])
    parser.add_argument("--systems", nargs="+", default=list(CONTENDERS), choices=tuple(CONTENDERS))
    parser.add_argument("--budget", type=rows.budget_of, default=0.125, help="kept share of the tokens, at every length; 1/8 or 0.125")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing a system; at least six rounds are run, whatever they take")
    parser.add_argument("--max-gb", type=float, default=12.0, help="GiB of live tensors that a length may be foreseen to need")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("long-clips.ndjson"), help="one row a line; rows that are there are not run again")
    parser.add_argument("--table", type=Path, default=Path("long-clips.md"))
    return parser.parse_args()


def run(given: argparse.Namespace) -> None:
    """Runs the systems that have no row yet, and writes the table of all."""
    device = setting.device_of(given.device)
    settings = {
        "machine": machine.slug(), "device": device.type, "threads": given.threads, "dtype": "float32", "size": given.size, "budget": given.budget,
        "resolution": given.resolution, "seconds": given.seconds, "max_gb": given.max_gb,
    }  # fmt: skip
    environment = machine.describe()
    done = rows.measured(rows.read(given.out))
    names = {}
    for label in given.systems:
        contender = CONTENDERS[label]
        cell = {"system": label, "frames": sorted(set(given.frames)), "knobs": dict(contender.knobs)}
        cell["code_version"] = code_version(contender.system, "measure")
        names[label] = rows.name_of(cell, settings)
        if names[label] in done:
            continue
        try:
            with setting.threads(given.threads), soundness.known_failures():
                found = measure(contender, given, device)
        except soundness.NotMeasurable as error:
            found = {"status": "failed", "reason": str(error), "left_out": {}}
        row = {"name": names[label], "cell": cell, "settings": settings, **found, "environment": environment}
        rows.append(given.out, row)
        print(_time_line(row, sorted(set(given.frames))), flush=True)
        _write(given, settings, names)
    _write(given, settings, names)


def _write(given: argparse.Namespace, settings: Mapping[str, Any], names: Mapping[str, str]) -> None:
    by_name = {row["name"]: row for row in rows.latest(rows.read(given.out), settings)}
    given.table.write_text(table([by_name[name] for name in names.values() if name in by_name], settings), encoding="utf-8")


def main() -> int:
    """The program; its exit code."""
    try:
        run(arguments())
    except VitgsError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
