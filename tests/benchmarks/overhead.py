"""What the method costs beyond its ViT: beside the same ViT on the same kept tokens given free, and beside `vit_mean` in its best chunks of frames.

    .venv/bin/python -m tests.benchmarks.overhead --seconds 20 --out results/overhead.ndjson --table reports/overhead.md

The subjects of a cell are interleaved. Rows are kept as they come, the most telling cells first, and the same command goes on where it was.
Overhead is the time of `graphsampler` over that of its ViT without the utility's bias; what the bias in attention alone costs is told beside it.
Not a test: it asserts no seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from itertools import cycle, groupby, product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.benchmarks import rows
from tests.benchmarks.rows import GIB, Call, Row, missed, plain, shown
from tests.benchmarks.twins import chunkings, extra_ms, given_tokens, kept_by, mean_in_chunks
from vitgs import registry
from vitgs.backbone import sizes
from vitgs.baselines.vit_mean import VitMean
from vitgs.errors import VitgsError
from vitgs.graphsampler.model import GraphSampler
from vitgs.measure import clock, cost, machine, memory, setting, soundness
from vitgs.measure.formula import FormulaCounter
from vitgs.measure.intervals import mapped, ratio
from vitgs.measure.stagetime import stage_times
from vitgs.record import Clip
from vitgs.store.code import code_version

CLASSES = 400
INPUTS = 4
TARGET_HALF_WIDTH = 0.01
MOST_OVERHEAD, LEAST_SHARE, MOST_GRAPH = 1.15, 0.9, 0.10
SHARE_BATCH, GRAPH_SIZE = 8, "S"
OURS, GIVEN, BIASED, MEAN = "graphsampler", "given", "given_biased", "vit_mean"
STAGES = ("select", "backbone", "graph", "memory", "head")
COLUMNS = (
    "size", "frames", "batch", "budget", "tokens", "ms", "given, ms", "overhead", "bias", "vit_mean, ms (frames at once)", "faster", "fewer MACs",
    "realised share", " / ".join(STAGES) + ", %", "(graph + memory) / backbone, %", "falls short", "",
)  # fmt: skip
STAGE_WORDS = {"backbone": "backbone (the bias in attention)"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One comparison."""

    size: str
    frames: int
    batch: int
    budget: float

    @property
    def rank(self) -> tuple[float, ...]:
        """The most telling first, which are also the shortest: small sizes, then few frames, then small batches, then small budgets."""
        row = sizes.size(self.size)
        return row.width, row.depth, self.frames, self.batch, self.budget


@dataclass(frozen=True, kw_only=True)
class Subjects:
    """The models of one size and clip, and what a view costs `vit_mean`."""

    model: GraphSampler
    mean: VitMean
    clip: Clip
    mean_macs: int | None


def ordered(size_names: Iterable[str], frames: Iterable[int], batches: Iterable[int], budgets: Iterable[float]) -> list[Cell]:
    """The cells of the grid by their rank, each once."""
    grid = {Cell(size=size, frames=t, batch=b, budget=share) for size, t, b, share in product(size_names, frames, batches, budgets)}
    return sorted(grid, key=lambda cell: cell.rank)


def build(size: str, frames: int, resolution: int, device: torch.device) -> Subjects:
    """Both models with random weights; what is timed doesn't depend on them. In chunks `vit_mean` must give its own logits."""
    clip = Clip(frames=frames, height=resolution, width=resolution, classes=CLASSES)
    torch.manual_seed(0)
    model, mean = (registry.get(name).build(size, clip, "in21k").eval() for name in (OURS, MEAN))
    assert isinstance(model, GraphSampler) and isinstance(mean, VitMean)
    one = torch.randn(1, *clip.shape, generator=torch.Generator().manual_seed(0))
    macs = cost.count(mean, one, {}).macs
    model, mean, one = model.to(device), mean.to(device), one.to(device)
    with torch.inference_mode():
        difference = float((mean(one) - mean_in_chunks(mean, one, 2)).abs().max())
    if difference > 1e-4:
        raise SystemExit(f"vit_mean must give the same logits in chunks before it is timed; given: a difference of {difference:.2g}")
    return Subjects(model=model, mean=mean, clip=clip, mean_macs=macs)


def needed_gib(subjects: Subjects, batch: int, budget: float, device: torch.device) -> float:
    """Live tensors of one clip, counted, times the batch; weights and inputs. Kernels' scratch space is not seen."""
    one = torch.randn(1, *subjects.clip.shape, device=device)
    with torch.no_grad():
        live = memory.peak_live_bytes(lambda: subjects.model(one, budget=budget), (*subjects.model.parameters(), one))
    fixed = memory.weights_bytes(subjects.model) + memory.weights_bytes(subjects.mean)
    return (batch * (live + INPUTS * one.nbytes) + fixed) / GIB


def done_macs(model: GraphSampler, clip_BTCHW: Tensor, budget: float) -> int:
    """MACs of a view as they are done on these clips where they lie: fewer than are counted on shapes where frames' lengths are read."""
    with torch.no_grad(), FormulaCounter() as counter:
        model(clip_BTCHW, budget=budget)
    return counter.macs // len(clip_BTCHW)


def best_chunk(subjects: Subjects, clips: list[Tensor], seconds: float, device: torch.device) -> dict[str, float]:
    """The median ms of `vit_mean` for each number of frames at once, the fastest first."""
    turns = cycle(clips)

    def with_chunk(at_once: int) -> Call:
        return lambda: mean_in_chunks(subjects.mean, next(turns), at_once)

    calls = {str(n): with_chunk(n) for n in chunkings(subjects.clip.frames, clips[0].shape[0])}
    timed = clock.time_interleaved(calls, target_half_width=0.02, min_blocks=6, max_seconds=seconds / 4, rng_seed=0, device=device)
    medians = {name: clock.estimate(timing.blocks_ms).value or 0.0 for name, timing in timed.items()}
    return dict(sorted(medians.items(), key=lambda item: item[1]))


def compare(
    subjects: Subjects,
    cell: Cell,
    chunks_ms: Mapping[str, float],
    clips: list[Tensor],
    macs: int,
    seconds: float,
    device: torch.device,
) -> Row:
    """What a row says of one cell; `macs`: of one view of ours."""
    model, budget, at_once = subjects.model, cell.budget, int(next(iter(chunks_ms)))
    chosen = [(clip, kept_by(model, clip, budget)) for clip in clips]
    turns = {name: cycle(chosen) for name in (OURS, GIVEN, BIASED, MEAN)}

    def given(name: str, biased: bool) -> Call:
        def call() -> Tensor:
            clip, kept = next(turns[name])
            return given_tokens(model, clip, kept, budget, biased=biased)

        return call

    calls: dict[str, Call] = {
        OURS: lambda: model(next(turns[OURS])[0], budget=budget),
        GIVEN: given(GIVEN, False),
        BIASED: given(BIASED, True),
        MEAN: lambda: mean_in_chunks(subjects.mean, next(turns[MEAN])[0], at_once),
    }
    before = machine.cpu_times()
    timed = rows.interleaved(calls, seconds=seconds, target=TARGET_HALF_WIDTH, device=device, anchor=OURS)
    foreign = machine.foreign_share(before, machine.cpu_times())
    blocks = {name: timing.blocks_ms for name, timing in timed.items()}
    stages = {name: stage_times(calls[name], seconds=seconds / 4, device=device) for name in (OURS, GIVEN)}
    median_ms = {name: clock.estimate(taken).value or 0.0 for name, taken in blocks.items()}
    extra = extra_ms(median_ms[OURS], stages[OURS].share, median_ms[GIVEN], stages[GIVEN].share)
    fewer = None if subjects.mean_macs is None else subjects.mean_macs / macs
    faster = ratio(blocks[MEAN], blocks[OURS])
    share = stages[OURS].share
    return {
        "kept": chosen[0][1].index_BS.shape[1],
        "ms": {name: plain(clock.estimate(taken)) for name, taken in blocks.items()},
        "overhead": plain(ratio(blocks[OURS], blocks[GIVEN])),
        "bias": plain(ratio(blocks[BIASED], blocks[GIVEN])),
        "speed_up": plain(faster),
        "macs": macs,
        "vit_mean_macs": subjects.mean_macs,
        "realised_share": None if fewer is None else plain(mapped(faster, lambda x: x / fewer, "speed-up over the ratio of MACs")),
        "chunks_ms": dict(chunks_ms),
        "stage_share": dict(share),
        "stage_coverage": stages[OURS].coverage,
        "stage_extra_ms": extra,
        "graph_to_backbone": (share.get("graph", 0.0) + share.get("memory", 0.0)) / share["backbone"],
        "blocks_ms": blocks,
        "unstable": any(timing.unstable for timing in timed.values()),
        "foreign_cpu_share": foreign,
    }


def shortfalls(cell: Mapping[str, Any], row: Row) -> list[str]:
    """Where a measured row falls short of the targets, with its largest extra stage."""
    found = []
    if over := missed(row["overhead"], at_most=MOST_OVERHEAD):
        found.append(f"overhead {over}")
    if cell["batch"] == SHARE_BATCH and row["realised_share"] is not None and (under := missed(row["realised_share"], at_least=LEAST_SHARE)):
        found.append(f"realised share {under}")
    if cell["size"] == GRAPH_SIZE and row["graph_to_backbone"] > MOST_GRAPH:
        found.append(f"graph and memory {100 * row['graph_to_backbone']:.0f} % of the backbone")
    if found:
        stage, ms = max(row["stage_extra_ms"].items(), key=lambda item: float(item[1]))
        found.append(f"largest extra: {STAGE_WORDS.get(stage, stage)} +{ms:.3g} ms, {100 * ms / row['ms'][GIVEN]['value']:.0f} % of the given ViT")
    return found


def table(found: list[Row], settings: Mapping[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# What the method costs beyond its ViT",
        "",
        f"Interleaved in one run; {settings['resolution']} px, patch 16, {settings['device']}, {settings['threads']} threads, float32, "
        f"{settings['machine']}; {settings['seconds']:g} s a cell. 95 % intervals. Overhead: time over that of the same ViT, without bias, on the "
        f"same tokens given free (target at most {MOST_OVERHEAD}); bias: what the utility's bias in attention alone makes of that ViT's time. "
        "Realised share: speed-up over `vit_mean` in its best chunks, over the ratio of MACs as they are done on these clips "
        f"(target at least {LEAST_SHARE}, batch {SHARE_BATCH}). Graph and memory over backbone: target at most {100 * MOST_GRAPH:.0f} % at "
        f"{GRAPH_SIZE}. Select holds the glance, the scorer and the embedding of what is kept. Again: `python -m tests.benchmarks.overhead`.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
    ]
    return "\n".join([*lines, *map(_line, found)]) + "\n"


def _line(row: Row) -> str:
    cell = row["cell"]
    start = [cell["size"], str(cell["frames"]), str(cell["batch"]), f"{cell['budget']:g}"]
    if row["status"] != "measured":
        return "| " + " | ".join([*start, *["–"] * (len(COLUMNS) - 5), f"{row['status']}: {row['reason']}"]) + " |"
    share, macs = row["stage_share"], row["macs"]
    cells = [
        *start,
        str(row["kept"]),
        *(shown(row["ms"][name]) for name in (OURS, GIVEN)),
        shown(row["overhead"]),
        shown(row["bias"]),
        f"{shown(row['ms'][MEAN])} ({next(iter(row['chunks_ms']))})",
        shown(row["speed_up"]),
        "–" if not macs or not row["vit_mean_macs"] else f"{row['vit_mean_macs'] / macs:.3g}",
        "–" if row["realised_share"] is None else shown(row["realised_share"]),
        " / ".join(f"{100 * share.get(name, 0.0):.1f}" for name in STAGES),
        f"{100 * row['graph_to_backbone']:.1f}",
        "; ".join(row["falls_short"]) or "no",
        ", ".join(row["flags"]),
    ]
    return "| " + " | ".join(cells) + " |"


def row_of(subjects: Subjects, cell: Cell, known: list[Row], given: argparse.Namespace, device: torch.device) -> Row:
    """The outcome of one cell, whatever it is: measured, left out for want of memory, or failed. `known`: the rows so far, whose chunking holds."""
    try:
        with soundness.known_failures():
            needed = needed_gib(subjects, cell.batch, cell.budget, device)
            if needed > given.max_gb:
                reason = f"needs about {needed:.3g} GiB at this batch, more than --max-gb {given.max_gb:g}"
                return {"status": "skipped", "reason": reason, "needed_gib": needed}
            with torch.inference_mode():
                clips = [
                    torch.randn(cell.batch, *subjects.clip.shape, generator=torch.Generator().manual_seed(seed)).to(device) for seed in range(INPUTS)
                ]
                same = [row["chunks_ms"] for row in known if row["status"] == "measured" and _same_mean(row["cell"], cell)]
                chunks = same[-1] if same else best_chunk(subjects, clips, given.seconds, device)
                found = compare(subjects, cell, chunks, clips, done_macs(subjects.model, clips[0], cell.budget), given.seconds, device)
    except soundness.NotMeasurable as error:
        return {"status": "failed", "reason": str(error)}
    flags = {"unstable": found["unstable"], "contaminated": (found["foreign_cpu_share"] or 0.0) > machine.FOREIGN_LIMIT}
    falls_short = shortfalls(asdict(cell), found)
    return {
        "status": "measured", "reason": "", "needed_gib": needed, **found,
        "flags": [name for name, raised in flags.items() if raised], "falls_short": falls_short,
    }  # fmt: skip


def _same_mean(known: Mapping[str, Any], cell: Cell) -> bool:
    return all(known[name] == getattr(cell, name) for name in ("size", "frames", "batch"))


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="What the method costs beyond its ViT.")
    parser.add_argument("--sizes", nargs="+", default=["S", "B"], choices=tuple(sizes.SIZES))
    parser.add_argument("--frames", nargs="+", type=int, default=[8, 16])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--budgets", nargs="+", type=rows.budget_of, default=[0.125, 0.25, 0.5, 1.0], help="1/8 or 0.125")
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--seconds", type=float, default=20.0, help="of timing a cell; at least six rounds are run, whatever they take")
    parser.add_argument("--max-gb", type=float, default=20.0, help="GiB that a cell may need; one that needs more is left out and says so")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=Path("overhead.ndjson"), help="one row a line; rows that are there are not run again")
    parser.add_argument("--table", type=Path, default=Path("overhead.md"))
    return parser.parse_args()


def run(given: argparse.Namespace) -> None:
    """Runs the cells that have no row yet, and writes the table of all."""
    device = setting.device_of(given.device)
    settings = {
        "machine": machine.slug(), "device": device.type, "threads": given.threads, "dtype": "float32", "resolution": given.resolution,
        "seconds": given.seconds, "code_version": code_version(OURS, "measure"),
    }  # fmt: skip
    known = rows.latest(rows.read(given.out), settings)
    done = rows.measured(known)
    cells = [cell for cell in ordered(given.sizes, given.frames, given.batches, given.budgets) if rows.name_of(asdict(cell), settings) not in done]
    environment = machine.describe()
    try:
        with setting.threads(given.threads):
            for (size, frames), group in groupby(cells, key=lambda cell: (cell.size, cell.frames)):
                subjects = build(size, frames, given.resolution, device)
                for cell in group:
                    row = {"name": rows.name_of(asdict(cell), settings), "cell": asdict(cell), "settings": settings}
                    row |= row_of(subjects, cell, known, given, device) | {"environment": environment}
                    rows.append(given.out, row)
                    known.append(row)
                    print(_line(row), flush=True)
    finally:
        found = rows.latest(rows.read(given.out), settings)
        found.sort(key=lambda row: Cell(**row["cell"]).rank)
        given.table.write_text(table(found, settings), encoding="utf-8")


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
