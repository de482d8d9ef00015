"""`eval`: top-1 and top-5 of a checkpoint that `train` wrote. val unless told otherwise, because test is for the final word."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.cli.checkpoint import about_checkpoint, data_for, rebuilt
from vitgs.errors import UsageError
from vitgs.numbers import interval
from vitgs.record import Clip


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file that `train` wrote, with its .json beside it.")],
    data: Annotated[str | None, typer.Option("--data", help="In place of the data that it was trained on; same classes.")] = None,
    split: Annotated[str, typer.Option("--split", help="val for choosing, test for reporting.")] = "val",
    views: Annotated[str, typer.Option("--views", metavar="CLIPSxCROPS", help="Views of a video whose logits are averaged.")] = "1x1",
    clips: Annotated[int | None, typer.Option("--clips", help="Only the first so many.")] = None,
    given: options.Set = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a checkpoint."""
    options.positive("--clips", clips)
    if views != "1x1":
        raise UsageError("--views must be one that the data can give", given=views, remedy="use --views 1x1")
    about = about_checkpoint(checkpoint)
    run = options.settings(given)
    from vitgs.backbone.weights import read_weights
    from vitgs.measure.setting import device_of
    from vitgs.record import to_json
    from vitgs.train import evaluate as evaluation

    where = device_of(device)
    subject = rebuilt(about)
    for name, value in run.items():
        knob = subject.system.space.get(name)
        if knob is None or knob.when != "run":
            allowed = ", ".join(subject.system.run_knobs) or "none"
            raise UsageError("eval can set a run knob alone, the rest is in the weights", given=name, remedy=f"set one of: {allowed}")
        knob.check(subject.system.name, name, value)
    subject.system.load(subject.model, read_weights(checkpoint))
    source = data_for(Clip(**about["clip"]), data or about["data"], split)
    subject.model.to(where)
    result = evaluation.evaluate(subject.model, source, run=run, repeat=subject.system.repeat, clips=clips, device=device)
    found = {name: value for name, value in to_json(result).items() if name != "group_index"}
    if as_json:
        output.document({"checkpoint": checkpoint.name, "model": about["model"], "data": source.name, "run": run, **found})
        return
    for name, value in (("top-1", result.top1), ("top-5", result.top5)):
        print(f"{name} {interval(value.value, value.low, value.high, scale=100)} % on {result.clips} {split} clips of {source.name}")
