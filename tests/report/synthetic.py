"""Made-up results with the shape of real ones: systems of different worth, seeds that differ, clips that share an image, rows that failed."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vitgs.record import Clip, Estimate, Job, Record, Status, digest, pack_bits, record_line, to_json
from vitgs.record import Kind as JobKind

Rule = Literal["elastic", "paper", "none"]
CLIPS, GROUPS = 500, 250
LEVELS = (0.125, 0.25, 0.5, 1.0)
FULL_MACS = 1.62e8
STAGES = ("select", "backbone", "merge", "graph", "memory", "head")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A made-up system: its top knob and values, how accurate it is with all compute, its loss with each halving, how well MACs become time, which
    share of its parameters is trained, and how many bytes training takes."""

    name: str
    group: str
    knob: str
    values: tuple[Any, ...]
    run: bool
    ability: float
    loss: float
    conversion: float
    trained: float = 1.0
    train_bytes: float = 3e8


BASE = (
    Kind(name="graphsampler", group="ours", knob="budget", values=LEVELS, run=True, ability=1.15, loss=0.12, conversion=0.85),
    Kind(name="vit_mean", group="full space-time", knob="frames", values=(2, 4, 8, 0), run=False, ability=0.55, loss=0.5, conversion=1.0),
    Kind(name="joint", group="full space-time", knob="frames", values=(2, 4, 8, 0), run=False, ability=0.9, loss=0.55, conversion=0.9),
    Kind(name="timesformer", group="full space-time", knob="frames", values=(2, 4, 8, 0), run=False, ability=1.0, loss=0.5, conversion=0.8),
    Kind(name="uniform_frames", group="frame selection", knob="budget", values=LEVELS, run=True, ability=0.8, loss=0.7, conversion=1.0),
    Kind(name="random_drop", group="token reduction", knob="budget", values=LEVELS, run=True, ability=0.85, loss=0.6, conversion=0.95),
    Kind(name="tome", group="token reduction", knob="r", values=(8, 4, 2, 0), run=True, ability=0.9, loss=0.35, conversion=0.6),
    Kind(
        name="st_adapter",
        group="image-to-video adaptation",
        knob="width",
        values=(4, 8, 16, 32),
        run=False,
        ability=1.2,
        loss=0.3,
        conversion=0.7,
        trained=0.1,
        train_bytes=1.8e8,
    ),
)
# The rest of the zoo by group, with the share of parameters that each one trains.
MORE = {
    "full space-time": {"vivit": 1.0, "video_swin": 1.0, "videomae": 1.0, "mtv": 1.0, "tubevit": 1.0},
    "frame selection": {"adaframe": 1.0},
    "token reduction": {"dynamicvit": 1.0, "tokenlearner": 1.0, "vtm": 1.0, "evit": 1.0, "rlt": 1.0},
    "image-to-video adaptation": {
        "linear_probe": 0.004,
        "efficient_prompt": 0.06,
        "vpt": 0.01,
        "adaptformer": 0.014,
        "pro_tuning": 0.05,
        "aim": 0.13,
        "dualpath": 0.12,
    },
    "cheap attention": {"linformer": 1.0, "performer": 1.0, "nystrom": 1.0},
    "other": {"own_model": 1.0},
}
NEVER_MEASURED, NEVER_TRAINED = "tubevit", "mtv"


def many() -> tuple[Kind, ...]:
    """Thirty systems."""
    rng = np.random.default_rng(7)
    extra = tuple(
        Kind(
            name=name,
            group=group,
            knob="budget" if group in ("token reduction", "frame selection") else "width",
            values=LEVELS if group in ("token reduction", "frame selection") else (48, 96, 144, 192),
            run=group in ("token reduction", "frame selection"),
            ability=float(rng.uniform(0.3, 1.3)) - 0.4 * (trained < 0.01),
            loss=float(rng.uniform(0.2, 0.7)),
            conversion=float(rng.uniform(0.5, 1.0)),
            trained=trained,
            train_bytes=float(rng.uniform(2.5e8, 6e8)) * (0.4 + 0.6 * trained),
        )
        for group, systems in MORE.items()
        for name, trained in systems.items()
    )
    return BASE + extra


def zoo(data: tuple[str, ...] = ("appearance", "direction", "moment", "order", "link"), seeds: int = 2) -> list[Record]:
    """Thirty systems as a sweep leaves them: one that was never measured, one whose trainings ran out of memory, data sets that were not run, an
    entry with a label of its own."""
    found = []
    for row in records(many(), data, seeds):
        job = row.job
        gone = job.system == NEVER_MEASURED and job.kind == "measure"
        gone |= job.system in ("video_swin", "own_model", "efficient_prompt") and job.data in data[-2:]
        gone |= job.system == NEVER_TRAINED and job.kind == "eval"
        if job.system == NEVER_TRAINED and job.kind == "train":
            row = dataclasses.replace(row, status="failed", reason="out of memory: 11.2 GiB asked, 7.8 GiB there", flags=("oom",), result={})
        if not gone:
            found.append(row)
        if job.system == "joint" and job.kind == "eval":
            # A second entry of the suite, whose costs are those of the first.
            labelled = dataclasses.replace(job, options={**job.options, "label": "joint, twice the steps"})
            found.append(dataclasses.replace(row, job=labelled))
    return found


def records(kinds: tuple[Kind, ...] = BASE, data: tuple[str, ...] = ("moment", "order"), seeds: int = 2) -> list[Record]:
    """All rows, a failed, an out-of-memory, a skipped and a stale one among them."""
    found = [record for kind in kinds for record in _of(kind, data, seeds)]
    loss = _job("train", "joint", {"frames": 0}, {}, "none", 7, data[0], {})
    oom = _job("measure", "timesformer", {"frames": 64}, {}, "none", 0, "", {"batch": 8})
    found.append(_row(loss, {}, status="failed", reason="the loss was not finite at step 212 <script>alert(1)</script>"))
    found.append(_row(oom, {}, status="failed", reason="out of memory: 9.1 GiB asked, 7.8 GiB there", flags=("oom",)))
    found.append(_row(_job("measure", "tome", {}, {"r": 64}, "none", 0, "", {}), {}, status="skipped", reason="torch.compile needs a C++ compiler"))
    return found


def write(folder: Path, rows: list[Record], machine: str = "epyc-2core-1f0c") -> Path:
    """The results folder of one machine; gives back the folder above it."""
    place = folder / machine
    place.mkdir(parents=True, exist_ok=True)
    (place / "budget.jsonl").write_text("".join(record_line(row) + "\n" for row in rows), encoding="utf-8")
    description = {"cpu": "AMD EPYC", "cores": 2, "memory_gib": 7.8, "gpu": None, "container_quota_cores": 2.0}
    (place / "machine.json").write_text(json.dumps(description), encoding="utf-8")
    (place / f"groups-{digest('groups')}.json").write_text(json.dumps({"groups": [i % GROUPS for i in range(CLIPS)]}), encoding="utf-8")
    return folder


def _of(kind: Kind, data: tuple[str, ...], seeds: int) -> Iterator[Record]:
    rules: tuple[Rule, ...] = ("elastic", "paper") if kind.run and kind.name != "graphsampler" else ("elastic" if kind.run else "none",)
    for level, value in zip(LEVELS, kind.values, strict=True):
        knobs = {"readout": "class"} | ({} if kind.run else {kind.knob: value})
        run = {kind.knob: value} if kind.run else {}
        yield _row(_job("measure", kind.name, knobs, run, "none", 0, "", {"batch": 8}, kind.group), _measured(kind, level))
        for rule in rules:
            for which, name in enumerate(data):
                for seed in range(seeds):
                    train = _job("train", kind.name, knobs, {}, rule, seed, name, {}, kind.group)
                    ability = kind.ability + kind.loss * math.log2(level) / 3 * 2 - 0.4 * which - (0.2 if rule == "paper" else 0)
                    if not kind.run or level == 1.0:
                        yield _row(train, _trained(kind, level, ability, seed))
                    for split in ("val", "test"):
                        options = {
                            "train_job": train.id,
                            "split": split,
                            "data_info": {"chance": 0.1, "frame_average_ceiling": 0.5 if which else None},
                        }
                        job = _job("eval", kind.name, knobs, run, rule, seed, name, options, kind.group)
                        yield _row(job, _evaluated(f"{name} {split}", kind.name, ability, seed, split))


def _job(
    kind: JobKind, system: str, knobs: dict[str, Any], run: dict[str, Any], rule: Rule, seed: int, data: str, options: dict[str, Any], group: str = ""
) -> Job:
    return Job(
        kind=kind,
        suite="budget",
        profile="embedded",
        system=system,
        size="mini",
        style="in21k",
        clip=Clip(frames=16, height=32, width=32, classes=10),
        knobs=knobs,
        run=run,
        rule=rule,
        seed=seed,
        start="random",
        data=data,
        options=options | ({"group": group} if group else {}),
    )


def _row(job: Job, result: dict[str, Any], *, status: Status = "measured", reason: str = "", flags: tuple[str, ...] = ()) -> Record:
    environment = {"torch": "2.15.0", "python": "3.13.1", "commit": "0123abc", "dirty": False, "threads": 1}
    return Record(
        job=job,
        attempt=1,
        status=status,
        reason=reason,
        flags=flags,
        code_version="c0de",
        result=to_json(result),
        environment=environment,
        replay=f"vitgs-bench replay {job.id}",
        started_utc="2026-01-02T03:04:05Z",
        seconds=12.0,
    )


def _evaluated(clips: str, system: str, ability: float, seed: int, split: str) -> dict[str, Any]:
    shared = np.random.default_rng(sum(map(ord, clips)))
    difficulty = shared.normal(size=GROUPS)[np.arange(CLIPS) % GROUPS] + 0.7 * shared.normal(size=CLIPS)
    own = np.random.default_rng([sum(map(ord, system + clips)), seed])
    score = ability + own.normal(scale=0.06) + own.normal(scale=0.5, size=CLIPS) - difficulty
    first, five = score > 0, score > -1.2
    return {
        "split": split,
        "clips": CLIPS,
        "top1": Estimate(value=float(first.mean())),
        "top5": Estimate(value=float(five.mean())),
        "correct1": [pack_bits(first.tolist())],
        "correct5": [pack_bits(five.tolist())],
        "labels_digest": digest(clips),
        "groups": digest("groups"),
        "seconds": 1.0,
    }


def _measured(kind: Kind, level: float) -> dict[str, Any]:
    own = np.random.default_rng([sum(map(ord, kind.name)), int(8 * level)])
    share = level * (1.0 + (0.12 if kind.name == "graphsampler" else 0.0)) * float(own.uniform(0.9, 1.15)) if kind.name != "vit_mean" else level
    macs = FULL_MACS * share
    rate = 400 / share**kind.conversion
    spread = float(own.uniform(0.01, 0.05))

    def around(value: float) -> Estimate:
        return Estimate(value=value, low=value * (1 - spread), high=value * (1 + spread), method="median")

    stages = own.dirichlet([1, 12, 0.6, 0.8, 0.5, 0.3] if kind.name == "graphsampler" else [0.5, 14, 0.8, 0.01, 0.01, 0.3])
    return {
        "params": 210_000 + 40_000 * (kind.name == "graphsampler"),
        "params_trainable": 210_000,
        "macs": int(macs),
        "flops": int(2 * macs),
        "anchor_macs": int(FULL_MACS),
        "macs_by_part": {"backbone": int(macs)},
        "counters": {"torch": int(macs)},
        "latency_ms": around(1000 / rate * 1.4),
        "clips_per_s": around(rate),
        "latency_ratio": around(400 / rate),
        "throughput_ratio": around(rate / 400),
        "stage_share": dict(zip(STAGES, map(float, stages), strict=True)),
        "peak_live_bytes": int(3.1e6 * share + 4e5),
        "weights_bytes": 840_000,
        "energy_j_per_clip": Estimate.missing("no energy counter on this machine"),
        "batch": 8,
        "threads": 1,
        "dtype": "float32",
        "device": "cpu",
        "content": "digits",
    }


def _trained(kind: Kind, level: float, ability: float, seed: int) -> dict[str, Any]:
    end = 1 / (1 + math.exp(-1.3 * ability))
    seconds = 60 * level**0.8 * (0.6 if kind.run else 1) * (0.4 + 0.6 * kind.trained)
    curve = [
        {"step": 100 * i, "core_seconds": seconds * i / 4, "loss": 2.0 - i / 4, "val_top1": end * (1 - math.exp(-0.9 * i)) + 0.01 * seed}
        for i in range(1, 5)
    ]
    return {
        "checkpoint": {"file": "x.safetensors", "digest": "0"},
        "curve": curve,
        "params": 210_000,
        "params_trainable": int(210_000 * kind.trained),
        "steps": 400,
        "clips_seen": 12_800,
        "train_clips_per_s": 12_800 / seconds,
        "core_seconds": seconds,
        "device_seconds": 1.02 * seconds,
        "peak_resident_growth_bytes": kind.train_bytes * (0.5 + 0.5 * level),
        "energy_j": None,
        "energy_reason": "no energy counter on this machine",
        "lr": 1e-3,
    }
