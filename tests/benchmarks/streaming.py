"""Streaming on a long video and what it costs in accuracy: live bytes and time of each chunk, the one pass beside it, global selection beside it.

    .venv/bin/python -m tests.benchmarks.streaming order.safetensors moment.safetensors --out results/streaming.json --table reports/streaming.md

A made clip of 1,024 frames is streamed by a model with random weights and by each checkpoint (of `vitgs-bench train graphsampler`), and must agree
with the one pass to 1e-4. Bytes are counted exactly (what a step makes, and what is carried); times count only when alone on the machine. Accuracy is
on the fixed clips that `eval` has, streaming and global selection on the same ones. Not a test: it asserts no seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitgs import data, registry
from vitgs.cli.checkpoint import about_checkpoint
from vitgs.cli.stream import compare, sampler_of
from vitgs.graphsampler.model import GraphSampler
from vitgs.graphsampler.onepass import whole
from vitgs.graphsampler.stream import State, Streamer
from vitgs.measure import machine, setting
from vitgs.measure.intervals import estimate
from vitgs.measure.memory import LiveBytes, peak_live_bytes
from vitgs.numbers import interval, quantity
from vitgs.record import Clip, to_json

Row = dict[str, Any]
AGREE = 1e-4


def random_model(size: str) -> GraphSampler:
    """A model at its defaults whose zero-initialised parts do something too."""
    torch.manual_seed(0)
    model = registry.get("graphsampler").build(size, Clip(frames=8, height=32, width=32, classes=10), "digits")
    assert isinstance(model, GraphSampler)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def long_video(name: str, model: GraphSampler, clip_BTCHW: Tensor, chunk_frames: int, budget: float) -> Row:
    """Live bytes, carried bytes and time of each chunk, and the largest difference of the logits to the one pass."""
    streamer = Streamer(model, chunk_frames, budget)
    chunks = torch.split(clip_BTCHW, chunk_frames, dim=1)
    known = (*model.parameters(), *model.buffers(), clip_BTCHW)
    state: State | None = None
    live, carried, times_ms = [], [], []
    with LiveBytes(known) as counter:
        for chunk in chunks:
            counter.peak_bytes = counter.live_bytes
            state, logits = streamer.step(state, chunk)
            live.append(counter.peak_bytes)
            carried.append(state.size_bytes)
    with torch.inference_mode():
        streamer.step(state, chunks[-1])
        state, cpu = None, machine.cpu_times()
        for chunk in chunks:
            before = time.perf_counter()
            state, _ = streamer.step(state, chunk)
            times_ms.append(1000 * (time.perf_counter() - before))
    foreign = machine.foreign_share(cpu, machine.cpu_times())
    passed: list[Tensor] = []
    whole_bytes = peak_live_bytes(lambda: passed.append(whole(model, clip_BTCHW, chunk_frames, budget)), known)
    difference = float((logits - passed[0]).abs().max())
    if not difference <= AGREE:
        raise SystemExit(f"streaming and the one pass must agree to {AGREE:g} on {name}; given: {difference:.2g}")
    quarter = max(1, len(times_ms) // 4)
    full = 1 + streamer.grid.past_chunks
    steady = live[full : -1 if len(chunks) > full + 1 else None]
    return {
        "model": name, "frames": clip_BTCHW.shape[1], "height": clip_BTCHW.shape[3], "grid": to_json(streamer.grid), "chunks": len(chunks),
        "logits_difference": difference, "logits_largest": float(passed[0].abs().max()), "one_pass_peak_live_bytes": whole_bytes,
        "peak_live_bytes_by_chunk": live, "carried_bytes_by_chunk": carried, "flat": len(set(steady)) == 1 and live[-1] <= steady[0],
        "first_quarter_ms": to_json(estimate(times_ms[:quarter])), "last_quarter_ms": to_json(estimate(times_ms[-quarter:])),
        "chunk_ms": to_json(estimate(times_ms)), "times_ms": times_ms, "foreign_cpu_share": foreign,
        "contaminated": (foreign or 0.0) > machine.FOREIGN_LIMIT,
    }  # fmt: skip


def accuracy(checkpoint: Path, chunk_frames: Sequence[int], budgets: Sequence[float], split: str, clips: int) -> list[Row]:
    """Streaming and global selection of one checkpoint on the data that it was trained on."""
    model, shape, name = sampler_of(checkpoint, None)
    source = data.open_data(name, split, frames=shape.frames, height=shape.height, width=shape.width)
    about = about_checkpoint(checkpoint)
    trained = {key: about.get(key) for key in ("recipe", "seed", "start", "rule", "data_digest", "result")}
    found = []
    for budget in budgets:
        for frames in chunk_frames:
            both = compare(model, source, frames, budget=budget, past_chunks=None, clips=clips)
            found.append(
                {
                    "checkpoint": checkpoint.name,
                    "trained": trained,
                    "data": name,
                    "split": split,
                    "clips": both.whole.clips,
                    "frames": shape.frames,
                    "grid": to_json(Streamer(model, frames, budget).grid),
                    "streamed_top1": to_json(both.streamed.top1),
                    "global_top1": to_json(both.whole.top1),
                    "lost_top1": to_json(both.lost),
                    "streamed_correct": both.streamed.correct1[0],
                    "global_correct": both.whole.correct1[0],
                    "groups": both.whole.groups,
                }
            )
            print(_accuracy_line(found[-1]), flush=True)
    return found


def _with_interval(of: Row, *, scale: float = 1.0, digits: int = 3) -> str:
    return interval(of["value"], of["low"], of["high"], scale=scale, digits=digits)


def _accuracy_line(row: Row) -> str:
    grid = row["grid"]
    streamed, whole_clip, lost = (_with_interval(row[f"{name}_top1"], scale=100) for name in ("streamed", "global", "lost"))
    about = (row["data"], row["trained"]["seed"], f"{grid['budget']:g}", grid["chunk_frames"], grid["past_chunks"])
    return f"| {' | '.join(map(str, (*about, streamed, whole_clip, lost)))} |"


def _long_line(row: Row) -> str:
    live, carried = row["peak_live_bytes_by_chunk"], row["carried_bytes_by_chunk"]
    times = [_with_interval(row[f"{part}_quarter_ms"]) for part in ("first", "last")]
    size = [quantity(value, "bytes", 4) for value in (live[0], live[1], live[-1], carried[-1], row["one_pass_peak_live_bytes"])]
    note = "contaminated" if row["contaminated"] else ""
    flat = "yes" if row["flat"] else "no"
    return f"| {row['model']} | {' | '.join(size)} | {flat} | {' | '.join(times)} | {row['logits_difference']:.1g} | {note} |"


def table(record: Row) -> str:
    """The record as Markdown."""
    video, first = record["long_video"], record["long_video"][0]
    grid = first["grid"]
    lines = [
        "# Streaming",
        "",
        "Chunk after chunk in constant memory (`vitgs/graphsampler/stream.py`): each chunk has a budget of its own, and what time needs is carried.",
        "",
        f"## A video of {first['frames']:,} frames",
        "",
        f"{first['height']} px, chunks of {grid['chunk_frames']} frames, budget {grid['budget']:g}, earlier chunks heard: {grid['past_chunks']}; "
        f"{record['machine']['cpu']}, threads: {record['threads']}, torch {record['machine']['versions']['torch']}. Live bytes are the peak of what "
        "a step makes and what is carried, without weights and video; flat: equal from the chunk on whose past is full. Time of a chunk: median "
        "with 95 % interval over the first and the last quarter of the video; contaminated: others used the machine meanwhile. Difference: the "
        "largest of the last logits to those of one pass over all chunks.",
        "",
        "| model | live, chunk 1 | chunk 2 | last | carried | one pass, live | flat | first quarter, ms | last quarter, ms | difference | |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *map(_long_line, video),
    ]
    if record["accuracy"]:
        rows = record["accuracy"]
        lines += [
            "",
            "## Accuracy lost against global selection",
            "",
            f"Top-1 in % with 95 % intervals on the first {rows[0]['clips']:,} {rows[0]['split']} clips of {rows[0]['frames']} frames; lost: global "
            f"less streaming on the same clips, points, paired. Trained for {rows[0]['trained']['recipe']['steps']} steps of "
            f"{rows[0]['trained']['recipe']['batch']} clips at {rows[0]['trained']['recipe']['lr']:g}, start {rows[0]['trained']['start']}.",
            "",
            "| data | seed | budget | frames a chunk | earlier chunks heard | streaming | global selection | lost |",
            "|---|---|---|---|---|---|---|---|",
            *map(_accuracy_line, rows),
        ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Streams the long video, evaluates the checkpoints, and writes record and table."""
    parser = argparse.ArgumentParser(description="Streaming: bytes, time, agreement and accuracy.")
    parser.add_argument("checkpoints", nargs="*", type=Path, help=".safetensors files that `train graphsampler` wrote")
    parser.add_argument("--size", default="nano", help="of the model with random weights")
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--chunk-frames", type=int, default=8, help="of the long video")
    parser.add_argument("--accuracy-chunks", type=int, nargs="+", default=[4, 2])
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.25, 0.125])
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--clips", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("streaming.json"))
    parser.add_argument("--table", type=Path, default=Path("streaming.md"))
    given = parser.parse_args()
    clip = data.open_data("digits:moment", "val", frames=given.frames).batch(1, seed=0).clip_BTCHW
    models = {f"{given.size}, random weights": random_model(given.size)}
    for checkpoint in given.checkpoints:
        model, _, name = sampler_of(checkpoint, None)
        models[f"{name}, seed {about_checkpoint(checkpoint).get('seed')}"] = model
    record: Row = {"threads": given.threads, "machine": machine.describe(), "long_video": [], "accuracy": []}
    with setting.threads(given.threads):
        for name, model in models.items():
            record["long_video"].append(long_video(name, model, clip, given.chunk_frames, given.budgets[0]))
            print(_long_line(record["long_video"][-1]), flush=True)
        for checkpoint in given.checkpoints:
            record["accuracy"] += accuracy(checkpoint, given.accuracy_chunks, given.budgets, given.split, given.clips)
    for file, text in ((given.out, json.dumps(record, indent=1) + "\n"), (given.table, table(record))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
