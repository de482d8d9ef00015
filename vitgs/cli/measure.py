"""`measure`: cost, time, memory and energy of one model, each with its interval or the reason why there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.errors import UsageError
from vitgs.numbers import interval, quantity
from vitgs.record import Clip, Estimate

if TYPE_CHECKING:
    from torch import Tensor

    from vitgs.measure.batches import BestBatch
    from vitgs.measure.harness import Measurement

EMBEDDED = "digits:appearance"


def measure(
    model: options.Model,
    size: options.SizeName = "B",
    style: options.StyleName = "in21k",
    frames: options.Frames = 8,
    resolution: options.Resolution = 224,
    classes: options.Classes = 400,
    given: options.Set = None,
    weights: options.Weights = None,
    batch: Annotated[int, typer.Option("--batch", help="Clips a batch for clips/s; latency is at batch 1.")] = 8,
    device: options.Device = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help="float32, bfloat16 or float16.")] = "float32",
    threads: Annotated[int | None, typer.Option("--threads", help="Threads inside an operator.")] = None,
    content: Annotated[str, typer.Option("--content", metavar="KIND|FOLDER", help="digits, noise, static, or a folder of videos.")] = "noise",
    seconds: Annotated[float, typer.Option("--seconds", help="Seconds of timing.")] = 10.0,
    target: Annotated[float, typer.Option("--target", help="Half-width of the intervals to stop at, as a share.")] = 0.02,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile with torch.compile, outside the timing.")] = False,
    cuda_graphs: Annotated[bool, typer.Option("--cuda-graphs", help="Capture the kernels once and replay them (CUDA only).")] = False,
    best_batch: Annotated[bool, typer.Option("--best-batch", help="Search the batch with the most clips/s too.")] = False,
    videos: Annotated[str | None, typer.Option("--end-to-end", metavar="FILE|FOLDER", help="Time from video files too, decoding and all.")] = None,
    anchored: Annotated[bool, typer.Option("--anchor/--no-anchor", help="Time vit_mean of the same size in the same rounds.")] = True,
    as_json: options.AsJson = False,
) -> None:
    """Measure cost, latency, clips/s, memory and energy of one model."""
    options.positive("--classes", classes)
    options.positive("--batch", batch)
    options.positive("--seconds", seconds)
    options.positive("--target", target)
    import torch

    from vitgs.cli import from_file
    from vitgs.cli.subject import build
    from vitgs.executor.machine_lock import machine_lock
    from vitgs.measure import energy, harness, setting
    from vitgs.measure import execution as executions

    setting.dtype_of(dtype)
    execution = executions.Execution(backend="inductor" if compiled else None, cuda_graphs=cuda_graphs)
    executions.check(execution, setting.device_of(device))
    clip = Clip(frames=frames, height=resolution, width=resolution, classes=classes)
    files, left_out = ([], []) if videos is None else from_file.readable(from_file.videos(videos), clip)
    torch.manual_seed(0)
    subject = build(model, size=size, style=style, clip=clip, given=options.settings(given), weights=weights)
    anchor = build("vit_mean", size=size, style=style, clip=clip, given={}).model if anchored else None
    source = _content(content, clip)
    with machine_lock(alone=True):
        found = harness.measure(
            subject.model, clip=clip, run=subject.run, anchor=anchor, batch=batch, device=device, dtype=dtype,
            seconds=seconds, target=target, content=source, threads=threads, energy_window_s=energy.WINDOW_S,
            execution=execution, best_batch=best_batch,
        )  # fmt: skip
        read = None
        if files:
            with setting.threads(threads):
                read = from_file.measure_files(subject.model, subject.run, files, clip, device=device, dtype=dtype, seconds=seconds)
    about = {"model": model, "size": size, "style": style, "clip": clip, "knobs": subject.knobs, "run": subject.run, "content": content}
    if as_json:
        output.document({**about, **_document(found), "end_to_end": read, "left_out": left_out})
        return
    output.columns([*_lines(found), *from_file.lines(read, left_out)])


def _content(kind: str, clip: Clip) -> Callable[[int], Tensor] | None:
    """What clips to measure on: None for noise."""
    if kind == "noise":
        return None
    from vitgs import data

    if kind not in ("digits", "static") and not Path(kind).expanduser().is_dir():
        raise UsageError("--content must be digits, noise, static or a folder of videos", given=repr(kind), remedy="name one of these")
    spec = EMBEDDED if kind in ("digits", "static") else kind
    source = data.open_data(spec if ":" in spec else str(Path(spec).expanduser()), "val", frames=clip.frames, height=clip.height, width=clip.width)

    def clips(count: int) -> Tensor:
        clip_BTCHW = source.batch(count, 0).clip_BTCHW
        return clip_BTCHW[:, :1].expand_as(clip_BTCHW).contiguous() if kind == "static" else clip_BTCHW

    return clips


def _document(found: Measurement) -> dict[str, Any]:
    """Flat, under the names that a measure row has."""
    cost, memory = found.cost, found.memory
    return {
        "params": cost.params,
        "params_trainable": cost.params_trainable,
        "macs": cost.macs,
        "flops": cost.flops,
        "macs_by_part": cost.macs_by_part,
        "counters": cost.counters,
        "uncounted": cost.uncounted,
        "macs_reason": cost.reason,
        "macs_spread": found.cost_spread,
        "latency_ms": found.latency_ms,
        "latency_percentiles_ms": found.latency_percentiles_ms,
        "clips_per_s": found.throughput_clips_per_s,
        "latency_ratio": found.latency_to_anchor,
        "throughput_ratio": found.throughput_to_anchor,
        "realised_share": found.realised_share,
        "ceiling_macs_per_s": found.ceiling_macs_per_s,
        "ceiling_share": found.ceiling_share,
        "stages": found.stages,
        "memory": memory,
        "energy": found.energy,
        "batch": found.batch,
        "best_batch": found.best_batch,
        "inputs": found.inputs,
        "foreign_cpu_share": found.foreign_cpu_share,
        "flags": found.flags,
        "settings": found.settings,
    }


def _lines(found: Measurement) -> list[tuple[str, str]]:
    cost, memory = found.cost, found.memory
    flags = ", ".join(found.flags)
    return [
        ("parameters", quantity(cost.params, "params")),
        ("MACs a view", quantity(cost.macs, "macs") if cost.macs is not None else f"not given: {cost.reason}"),
        ("latency in ms, batch 1", _text(found.latency_ms)),
        (f"clips/s, batch {found.batch}", _text(found.throughput_clips_per_s)),
        ("latency over vit_mean's", _text(found.latency_to_anchor)),
        ("speed-up over vit_mean in clips/s", _text(found.throughput_to_anchor)),
        ("share of this machine's ceiling", _ceiling(found)),
        ("peak live activations", quantity(memory.peak_live_bytes, "bytes")),
        ("energy a clip in J, gross", _text(found.energy.gross_j_per_clip)),
        *_batches(found.best_batch),
        *_execution(found.settings.get("execution", {})),
        ("valid", f"with doubt: {flags}" if flags else "yes"),
    ]


def _ceiling(found: Measurement) -> str:
    share, reached = found.ceiling_share, found.ceiling_macs_per_s.value
    if share.value is None or reached is None:
        return f"not given: {share.reason}"
    return f"{interval(share.value, share.low, share.high, scale=100)} % of {reached / 1e9:.0f} GMACs/s, batch {found.batch}"


def _batches(best: BestBatch | None) -> list[tuple[str, str]]:
    if best is None:
        return []
    if not best.batch:
        return [("clips/s at the best batch", f"not given: {best.clips_per_s.reason}")]
    curve = ", ".join(f"{point.batch}: {_text(point.clips_per_s)}" for point in best.tried)
    limit = " or more" if best.largest_batch >= best.limit else ""
    return [
        (f"clips/s at the best batch, {best.batch}", _text(best.clips_per_s)),
        ("clips/s by batch", f"{curve}; then {best.stopped}"),
        ("largest batch that fits", f"{best.largest_batch}{limit}"),
    ]


def _execution(ran: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What compiling and capturing took, apart from the first call; of the model alone, not of the anchor."""
    lines = {
        "compile_s": "compiling in s",
        "graph_breaks": "graph breaks",
        "capture_s": "capturing in s",
        "largest_difference": "difference from eager",
    }
    own = ran.get("subject", {})
    return [(title, ", ".join(f"batch {size}: {value:.3g}" for size, value in own[name].items())) for name, title in lines.items() if name in own]


def _text(estimate: Estimate) -> str:
    return interval(estimate.value, estimate.low, estimate.high) if estimate.value is not None else f"not measured: {estimate.reason}"
