"""How fast ours are beside the public implementations: same weights, same clips, same threads, interleaved in one run.

    .venv/bin/python -m tests.benchmarks.reference_speed --size S --seconds 40 --out results/reference-speed.json --table reports/reference-speed.md

Each reference runs at its fastest stock setting (fused attention where it has it, evaluation, inference mode). Its weights are random and loaded into
ours by the layout that its checkpoints have, and the two must agree in their logits before anything is timed. Not a test: it asserts no seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from itertools import chain, cycle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks import reference_attention
from tests.benchmarks.pair import Pair
from vitgs import registry
from vitgs.backbone import sizes
from vitgs.measure import clock, machine, setting
from vitgs.measure.intervals import mapped, ratio
from vitgs.record import Clip, Estimate, to_json

CLASSES = 400
FUSED: dict[str, Any] = {"attn_implementation": "sdpa"}


def _random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.03 + float("norm" in name and name.endswith("weight")))
    return model.eval()


def _loaded(system: str, size: str, clip: Clip, other: nn.Module, **knobs: Any) -> nn.Module:
    ours = registry.get(system).build(size, clip, "in21k", **knobs).eval()
    registry.get(system).load(ours, other.state_dict())
    return ours


def pairs(size: str, resolution: int) -> Iterator[Pair]:
    """The systems whose reference pip installs, one at a time."""
    import transformers
    from torchvision.models.video import swin3d_b, swin3d_s, swin3d_t

    row = sizes.size(size)
    common: dict[str, Any] = {
        "image_size": resolution, "hidden_size": row.width, "num_hidden_layers": row.depth, "num_attention_heads": row.heads,
        "intermediate_size": int(row.width * row.mlp_ratio), "num_labels": CLASSES,
    }  # fmt: skip
    eight, sixteen = (Clip(frames=frames, height=resolution, width=resolution, classes=CLASSES) for frames in (8, 16))

    for ours, theirs in (("divided", "divided_space_time"), ("joint", "joint_space_time")):
        config = transformers.TimesformerConfig(patch_size=16, num_frames=8, attention_type=theirs, **common)
        model = _random(transformers.TimesformerForVideoClassification(config))
        built = _loaded("timesformer", size, eight, model, attention=ours)
        name = f"transformers Timesformer, {theirs}, its only attention"
        yield Pair(system=f"timesformer ({ours})", reference=name, shape=eight.shape, ours=built, theirs=_logits(model))

    vivit: Any = transformers.VivitConfig(num_frames=16, tubelet_size=(2, 16, 16), **(common | FUSED))
    model = _random(transformers.VivitForVideoClassification(vivit))
    built = _loaded("vivit", size, sixteen, model)
    yield Pair(system="vivit (model 1)", reference="transformers Vivit, sdpa", shape=sixteen.shape, ours=built, theirs=_logits(model))

    videomae: Any = transformers.VideoMAEConfig(num_frames=16, patch_size=16, tubelet_size=2, use_mean_pooling=True, **(common | FUSED))
    model = _random(transformers.VideoMAEForVideoClassification(videomae))
    built = _loaded("videomae", size, sixteen, model)
    yield Pair(system="videomae", reference="transformers VideoMAE, sdpa", shape=sixteen.shape, ours=built, theirs=_logits(model))

    swin = {"Ti": swin3d_t, "S": swin3d_s, "B": swin3d_b}[size]
    model = _random(swin(num_classes=CLASSES))
    built = _loaded("video_swin", size, sixteen, model)
    yield Pair(system="video_swin", reference=f"torchvision {swin.__name__}", shape=sixteen.shape, ours=built, theirs=_channels_first(model))

    import timm

    model = _random(
        timm.create_model({"Ti": "vit_tiny", "S": "vit_small", "B": "vit_base"}[size] + "_patch16_224", num_classes=CLASSES, img_size=resolution)
    )
    built = registry.get("vit_mean").build(size, eight, "in21k").eval()
    registry.get("vit_mean").load(built, model.state_dict())
    yield Pair(system="vit_mean", reference="timm ViT on each frame, logits averaged", shape=eight.shape, ours=built, theirs=_frames(model))


def _logits(model: Any) -> Callable[[Tensor], Tensor]:
    return lambda clip: model(clip).logits


def _channels_first(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda clip: model(clip.transpose(1, 2))


def _frames(model: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda clip: torch.unflatten(model(clip.flatten(0, 1)), 0, clip.shape[:2]).mean(dim=1)


def compare(pair: Pair, *, batch: int, seconds: float) -> dict[str, Any]:
    """Clips/s of both and ours over theirs, with 95 % intervals, and the largest difference of their logits."""
    clips = [torch.randn(batch, *pair.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    with torch.inference_mode():
        difference = float((pair.ours(clips[0]) - pair.theirs(clips[0])).abs().max())
        if difference > 1e-4:
            raise SystemExit(f"{pair.system} and {pair.reference} must agree to 1e-4 before they are timed; given: {difference:.2g}")
        turns = {"ours": cycle(clips), "theirs": cycle(clips)}
        calls = {"ours": lambda: pair.ours(next(turns["ours"])), "theirs": lambda: pair.theirs(next(turns["theirs"]))}
        before = machine.cpu_times()
        timed = clock.time_interleaved(calls, target_half_width=0.01, min_blocks=12, max_seconds=seconds, rng_seed=0, anchor="theirs")

    def speed(name: str) -> Estimate:
        return mapped(clock.estimate(timed[name].blocks_ms), lambda ms: 1000 * batch / ms, "clips over a block's time")

    faster = mapped(ratio(timed["ours"].blocks_ms, timed["theirs"].blocks_ms), lambda r: 1 / r, "inverse of the ratio of times")
    return {
        "system": pair.system, "reference": pair.reference, "clip": list(pair.shape), "batch": batch, "logits_difference": difference,
        "ours_clips_per_s": to_json(speed("ours")), "theirs_clips_per_s": to_json(speed("theirs")), "ours_over_theirs": to_json(faster),
        "blocks_ms": {name: timing.blocks_ms for name, timing in timed.items()},
        "unstable": any(timing.unstable for timing in timed.values()),
        "foreign_cpu_share": machine.foreign_share(before, machine.cpu_times()),
    }  # fmt: skip


def table(rows: list[dict[str, Any]], about: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = [
        "# Ours against the public implementations",
        "",
        f"Same weights, same clips, interleaved; size {about['size']}, batch {about['batch']}, {about['threads']} threads, float32, "
        f"{about['machine']['cpu']}, torch {about['machine']['versions']['torch']}. 95 % intervals. By: `python -m tests.benchmarks.reference_speed "
        f"--size {about['size']} --batch {about['batch']}`.",
        "",
        "| system | reference | input | ours, clips/s | theirs, clips/s | ours / theirs | largest difference of outputs | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        one, other, share = (_with_interval(row[key]) for key in ("ours_clips_per_s", "theirs_clips_per_s", "ours_over_theirs"))
        clip, note = "x".join(map(str, row["clip"])), "unstable" if row["unstable"] else ""
        lines.append(f"| {row['system']} | {row['reference']} | {clip} | {one} | {other} | {share} | {row['logits_difference']:.1g} | {note} |")
    return "\n".join(lines) + "\n"


def _with_interval(estimate: dict[str, Any]) -> str:
    return f"{estimate['value']:.3g} ({estimate['low']:.3g}–{estimate['high']:.3g})"


def _of_others(file: Path, about: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows that a file has already; they must have been taken as those that join them."""
    if not file.exists():
        return []
    known = json.loads(file.read_text(encoding="utf-8"))

    def taken(how: dict[str, Any]) -> tuple[Any, ...]:
        return how["size"], how["batch"], how["threads"], how["machine"]["machine"], how["machine"]["versions"]["torch"]

    if taken(known) != taken(about):
        raise SystemExit(f"rows of one table must be of one size, batch, threads, machine and torch; given: {taken(about)} beside {taken(known)}")
    rows: list[dict[str, Any]] = known["rows"]
    return rows


def main() -> None:
    """Compares all pairs, and writes records and table."""
    parser = argparse.ArgumentParser(description="How fast ours are beside the public implementations.")
    parser.add_argument("--size", default="S", choices=("Ti", "S", "B"))
    parser.add_argument("--resolution", type=int, default=224)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=40.0, help="of timing a pair")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", metavar="SYSTEM", help="these alone; the rows of others stay as they are in --out")
    parser.add_argument("--out", type=Path, default=Path("reference-speed.json"))
    parser.add_argument("--table", type=Path, default=Path("reference-speed.md"))
    given = parser.parse_args()
    about = {"size": given.size, "batch": given.batch, "threads": given.threads, "machine": machine.describe()}
    rows = _of_others(given.out, about) if given.only else []
    done = 0
    with setting.threads(given.threads):
        for pair in chain(pairs(given.size, given.resolution), reference_attention.pairs(given.size, given.resolution)):
            if given.only and not any(pair.system.startswith(name) for name in given.only):
                continue
            done += 1
            rows = [row for row in rows if row["system"] != pair.system]
            rows.append(compare(pair, batch=given.batch, seconds=given.seconds))
            print(table(rows[-1:], about).splitlines()[-1], flush=True)
    if not done:
        raise SystemExit(f"--only names systems that are timed here; given: {', '.join(given.only)}; see the first column of the table")
    given.out.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    given.table.write_text(table(rows, about), encoding="utf-8")


if __name__ == "__main__":
    main()
