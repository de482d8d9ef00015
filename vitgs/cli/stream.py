"""`stream`: graphsampler chunk after chunk, in constant memory: what that costs in accuracy against selection over the whole clip, or one video's
answer as it comes in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.cli.checkpoint import about_checkpoint, data_for, sampler
from vitgs.cli.explain import EMBEDDED, _embedded
from vitgs.errors import NothingToWorkOn, UsageError
from vitgs.numbers import interval, quantity
from vitgs.record import Clip, Estimate, unpack_bits

if TYPE_CHECKING:
    from torch import Tensor

    from vitgs.graphsampler.model import GraphSampler
    from vitgs.graphsampler.stream import Streamer
    from vitgs.train.evaluate import EvalResult
    from vitgs.train.sources import Source


def stream(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file that `train graphsampler` wrote, with its .json beside it.")],
    clip: Annotated[
        str | None,
        typer.Argument(metavar="CLIP", help="Answer on digits:<task>:<number>, a clip of the test split, or a video file; else on --data."),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Accuracy on this, in place of the data that it was trained on.")] = None,
    split: Annotated[str, typer.Option("--split", help="val for choosing, test for reporting.")] = "val",
    clips: Annotated[int | None, typer.Option("--clips", help="Only the first so many.")] = None,
    chunk_frames: Annotated[int, typer.Option("--chunk-frames", help="Frames of a chunk.")] = 4,
    past_chunks: Annotated[
        int | None, typer.Option("--past-chunks", help="Earlier chunks whose nodes are heard; as many as hold the model's window if left out.")
    ] = None,
    budget: Annotated[float | None, typer.Option("--budget", help="Kept fraction of a chunk's pairs; the model's own if left out.")] = None,
    every: Annotated[int, typer.Option("--every", metavar="N", help="Of a video file, each Nth frame.")] = 1,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Stream graphsampler over clips, or over one."""
    options.positive("--clips", clips)
    options.positive("--every", every)
    if clip is not None and (data is not None or clips is not None):
        raise UsageError("stream takes one clip or a data set", given=f"{clip} and --data or --clips", remedy="leave one of them out")
    from vitgs.graphsampler.stream import Streamer
    from vitgs.measure.setting import device_of

    where = device_of(device)
    model, shape, trained_on = sampler_of(checkpoint, budget)
    streamer = Streamer(model.to(where), chunk_frames, budget, past_chunks=past_chunks)
    if clip is not None:
        _answers(streamer, clip, shape, every, checkpoint=checkpoint, as_json=as_json)
        return
    source = data_for(shape, data or trained_on, split)
    found = compare(model, source, chunk_frames, budget=streamer.grid.budget, past_chunks=past_chunks, clips=clips, device=device)
    if as_json:
        about = {"checkpoint": checkpoint.name, "data": source.name, "split": split, "clips": found.streamed.clips, "grid": streamer.grid}
        output.document({**about, "streamed_top1": found.streamed.top1, "global_top1": found.whole.top1, "lost_top1": found.lost})
        return
    grid = streamer.grid
    print(f"{found.streamed.clips} {split} clips of {source.name}, {shape.frames} frames, budget {grid.budget:g}; top-1 in %")
    for name, of in (
        (f"chunks of {chunk_frames} frames, {grid.past_chunks} earlier heard", found.streamed.top1),
        ("global selection", found.whole.top1),
        ("lost by streaming", found.lost),
    ):
        print(f"{name}: {interval(of.value, of.low, of.high, scale=100)}")


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Streaming and global selection on the same clips; `lost`: global less streaming, with the interval of the paired difference."""

    streamed: EvalResult
    whole: EvalResult
    lost: Estimate


def sampler_of(checkpoint: Path, budget: float | None) -> tuple[GraphSampler, Clip, str]:
    """The model of a checkpoint, the clips that it was trained on, and the data's name; an error in one line for a checkpoint of another system."""
    about = about_checkpoint(checkpoint)
    model = sampler(checkpoint, about, "stream needs graphsampler, whose memory and graph go on", budget)
    return model, Clip(**about["clip"]), about["data"]


def compare(
    model: GraphSampler, source: Source, chunk_frames: int, *, budget: float, past_chunks: int | None, clips: int | None, device: str = "cpu"
) -> Compared:
    """Both on the first `clips` fixed clips of the split."""
    import numpy as np

    from vitgs.graphsampler.stream import Streamed
    from vitgs.train.evaluate import RESAMPLES, evaluate, grouped_interval

    streamed, whole = (
        evaluate(module, source, run={"budget": budget}, clips=clips, device=device)
        for module in (Streamed(model, chunk_frames, past_chunks=past_chunks), model)
    )
    right_2C = np.array([unpack_bits(found.correct1[0], found.clips) for found in (whole, streamed)], dtype=float)
    difference_C = right_2C[0] - right_2C[1]
    low, high = grouped_interval(difference_C[:, None], np.array(whole.group_index))
    method = f"paired: percentile bootstrap over {len(set(whole.group_index))} groups, {RESAMPLES} resamples"
    return Compared(streamed=streamed, whole=whole, lost=Estimate(value=float(difference_C.mean()), low=low, high=high, method=method))


def _answers(streamer: Streamer, clip: str, shape: Clip, every: int, *, checkpoint: Path, as_json: bool) -> None:
    """The answer after each chunk of one clip."""
    import torch

    names = shape.class_names or tuple(str(c) for c in range(shape.class_count))
    where, state, rows = streamer.model.head.weight.device, None, []
    frames = streamer.grid.chunk_frames
    if clip.startswith(EMBEDDED):
        _, clip_TCHW, _, _ = _embedded(clip, shape)
        chunks: Iterable[Tensor] = torch.split(clip_TCHW.unsqueeze(0), frames, dim=1)
    else:
        chunks = _video(clip, shape, frames, every)
    for chunk_1TCHW in chunks:
        state, logits_1C = streamer.step(state, chunk_1TCHW.to(where))
        share_C = logits_1C[0].softmax(dim=0)
        answer, share = names[int(share_C.argmax())], float(share_C.max())
        rows.append({"frames": state.frames, "answer": answer, "probability": share, "carried_bytes": state.size_bytes})
        if not as_json:
            print(f"after {state.frames} frames: {answer} ({100 * share:.1f} %); {quantity(state.size_bytes, 'bytes')} carried", flush=True)
    if as_json:
        output.document({"checkpoint": checkpoint.name, "clip": clip, "grid": streamer.grid, "chunks": rows})


def _video(name: str, shape: Clip, chunk_frames: int, every: int) -> Iterator[Tensor]:
    """The chunks of a video file, decoded as they are asked for, scaled and cropped as `eval` does."""
    import numpy as np

    from vitgs.data import transforms
    from vitgs.data.video import Undecodable, _fitted, _open, _stream

    path = Path(name).expanduser()
    if not path.is_file():
        raise UsageError("a clip is digits:<task>[:number] or a video file", given=name, remedy="check the path")
    height, width = transforms.margin(shape.height), transforms.margin(shape.width)
    held: list[transforms.Bytes] = []

    def chunk() -> Tensor:
        return transforms.normalised([transforms.centre_crop(np.stack(held), shape.height, shape.width)], "imagenet")

    try:
        with _open(path) as container:
            for place, frame in enumerate(container.decode(_stream(container))):
                if place % every == 0:
                    held.append(_fitted(frame, height, width))
                if len(held) == chunk_frames:
                    yield chunk()
                    held.clear()
            if held:
                yield chunk()
    except (OSError, ValueError, Undecodable) as error:
        raise NothingToWorkOn("a video must be one that can be decoded", given=f"{path.name}: {error}", remedy="give another file") from error
