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
            help="Views of a video whose probabilities are averaged. auto: 1x3 where the data has crops and three views cost no more than one of all "
            "tokens (a budget of about 1/3 or less), else 1x1.",
        ),
    ] = "1x1",
    clips: Annotated[int | None, typer.Option("--clips", help="Only the first so many.")] = None,
    given: options.Set = None,
    device: options.Device = "cpu",
    as_json: options.AsJson = False,
) -> None:
    """Evaluate a checkpoint."""
    options.positive("--clips", clips)
    seen = _asked(views)
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
    if seen is not None:
        source.seen(seen)  # what the data can't give is said before any work
    first_1TCHW = next(iter(source.evaluation(1))).clip_BTCHW
    one = count(subject.model, first_1TCHW, run)
    if seen is None:
        whole = count(subject.model, first_1TCHW, {**run, "budget": 1.0}) if "budget" in subject.system.run_knobs else one
        seen = affordable(one.macs, whole.macs, source.most_views)
    subject.model.to(where)
    result = evaluate_in_views(subject.model, source, seen, run=run, repeat=subject.system.repeat, clips=clips, device=device)
    found = {name: value for name, value in to_json(result).items() if name != "group_index"}
    if as_json:
        video = None if one.macs is None else one.macs * seen.count
        cost = {"views_a_video": seen.count, "macs_a_view": one.macs, "macs_a_video": video, "macs_reason": one.reason}
        of = {"macs_of": "the first clip" if subject.system.content else "every clip"}
        output.document({"checkpoint": checkpoint.name, "model": about["model"], "data": source.name, "run": run, **found, **cost, **of})
        return
    for name, value in (("top-1", result.top1), ("top-5", result.top5)):
        print(f"{name} {interval(value.value, value.low, value.high, scale=100)} % on {result.clips} {split} clips of {source.name}")
    times = f"{seen.count} views: {seen.count} x " if seen.count > 1 else "1 view: "
    of_which = ", of the first clip: its cost depends on the clip" if subject.system.content else ""
    print(f"{times}{quantity(one.macs, 'macs')}{of_which}" if one.macs is not None else f"MACs of a view not given: {one.reason}")


def _asked(views: str) -> Views | None:
    """The views that the option names, None for `auto`."""
    try:
        return None if views == AUTO else options.views(views)
    except UsageError as error:
        raise UsageError(error.rule, given=error.given, remedy=f"{error.remedy}, or {AUTO}") from error


def affordable(macs: int | None, macs_whole: int | None, most: Views) -> Views:
    """The views of `auto`: three crops where the data has them and they cost no more than one view of all tokens, by MACs of a view of each.

    A system that pays for all tokens of each view has one; so has one whose cost isn't known.
    """
    three = Views(crops=3)
    cheap = macs is not None and macs_whole is not None and three.count * macs <= macs_whole
    return three if cheap and most.crops >= three.crops else Views()
