"""`eval`: top-1 and top-5 of a checkpoint that `train` wrote, and what a video costs in the views it is seen in.

val unless told otherwise, because test is for the final word.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.cli.checkpoint import about_checkpoint, data_for, rebuilt
from vitgs.errors import UsageError
from vitgs.numbers import interval, quantity
from vitgs.record import Clip, Views

AUTO = "auto"


def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="A .safetensors file that `train` wrote, with its .json beside it.")],
    data: Annotated[str | None, typer.Option("--data", help="In place of the data that it was trained on; same classes.")] = None,
    split: Annotated[str, typer.Option("--split", help="val for choosing, test for reporting.")] = "val",
    views: Annotated[
        str,
        typer.Option(
            "--views",
            metavar="CLIPSxCROPS|auto",
            help="Views of a video whose probabilities are averaged. auto: 1x3 at a budget of 1/3 or less, else 1x1.",
        ),
    ] = "1x1",
    clips: Annotated[int | None, typer.Option("--clips", help="Only the first so many.")] = None,
    given: options.Set = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a checkpoint."""
    options.positive("--clips", clips)
    asked = None if views == AUTO else options.views(views)
    about = about_checkpoint(checkpoint)
    run = options.settings(given)
    from vitgs.backbone.weights import read_weights
    from vitgs.measure.cost import count
    from vitgs.measure.setting import device_of
    from vitgs.record import to_json
    from vitgs.train.views import evaluate_in_views

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
    seen = asked or affordable({**subject.knobs, **run}.get("budget"), source.most_views)
    source.seen(seen)  # what the data can't give is said before any work
    one = count(subject.model, next(iter(source.evaluation(1))).clip_BTCHW, run)
    subject.model.to(where)
    result = evaluate_in_views(subject.model, source, seen, run=run, repeat=subject.system.repeat, clips=clips, device=device)
    found = {name: value for name, value in to_json(result).items() if name != "group_index"}
    if as_json:
        video = None if one.macs is None else one.macs * seen.count
        cost = {"views_a_video": seen.count, "macs_a_view": one.macs, "macs_a_video": video, "macs_reason": one.reason}
        output.document({"checkpoint": checkpoint.name, "model": about["model"], "data": source.name, "run": run, **found, **cost})
        return
    for name, value in (("top-1", result.top1), ("top-5", result.top5)):
        print(f"{name} {interval(value.value, value.low, value.high, scale=100)} % on {result.clips} {split} clips of {source.name}")
    times = f"{seen.count} views: {seen.count} x " if seen.count > 1 else "1 view: "
    print(f"{times}{quantity(one.macs, 'macs')}" if one.macs is not None else f"MACs of a view not given: {one.reason}")


def affordable(budget: float | None, most: Views) -> Views:
    """The views of `auto`: three crops where the budget, the kept share of the tokens, is so low that they cost no more than one view of all tokens.

    A system without a budget pays for all tokens of each view, and has one.
    """
    three = Views(crops=3)
    return three if budget is not None and budget * three.count <= 1 and most.crops >= three.crops else Views()
