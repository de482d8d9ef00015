"""`train`: one model, outside a sweep. Beside the weights lies a small JSON file that says what they are, which `eval` reads."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from vitgs import folders
from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.errors import UsageError, unknown
from vitgs.numbers import percent, quantity
from vitgs.record import digest, to_json

Rule = Literal["elastic", "paper", "none"]
EMBEDDED = "digits:"


def train(
    model: options.Model,
    data: Annotated[str, typer.Option("--data", help="digits:<task>, or a folder <split>/<class>/<video>.")],
    size: Annotated[str | None, typer.Option("--size", help="Row of the table of sizes; nano for digits, else B.")] = None,
    style: Annotated[str | None, typer.Option("--style", help="digits for digits, else in21k.")] = None,
    frames: Annotated[int | None, typer.Option("--frames", help="Frames of a clip.")] = None,
    resolution: Annotated[int | None, typer.Option("--resolution", help="Height and width in pixels.")] = None,
    scales: Annotated[
        str, typer.Option("--temporal-scales", help="Shares of a video that a training clip covers, one drawn for each: 1,0.75,0.5. Folders only.")
    ] = "1",
    given: options.Set = None,
    weights: options.Weights = None,
    start: Annotated[str, typer.Option("--start", help="none, or shared: the still images that all systems of a sweep start from.")] = "none",
    start_steps: Annotated[int, typer.Option("--start-steps", help="Steps of that image pretraining; made once, then kept.")] = 400,
    rule: Annotated[str | None, typer.Option("--rule", help="How run knobs are drawn: elastic, paper or none.")] = None,
    steps: Annotated[int, typer.Option("--steps", help="Training steps.")] = 400,
    batch: Annotated[int, typer.Option("--batch", help="Clips a step.")] = 32,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 1e-3,
    seed: Annotated[int, typer.Option("--seed", help="Seed of everything random.")] = 0,
    device: options.Device = "cpu",
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where the weights go; the cache if left out.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Train one model on one data set."""
    options.positive("--start-steps", start_steps)
    if start not in ("none", "shared"):
        raise unknown("start", start, ("none", "shared"))
    if start == "shared" and weights is not None:
        raise UsageError("a model has one start", given="--start shared and --weights", remedy="leave one of them out")
    knobs, covered = options.settings(given), options.numbers("--temporal-scales", scales)
    import torch

    from vitgs import data as data_sets
    from vitgs.cli.subject import build
    from vitgs.measure.setting import device_of
    from vitgs.train import loop
    from vitgs.train import start as image
    from vitgs.train.recipe import Recipe

    device_of(device)
    recipe = Recipe(steps=steps, batch=batch, lr=lr)
    embedded = data.startswith(EMBEDDED)
    size, style = size or ("nano" if embedded else "B"), style or ("digits" if embedded else "in21k")
    sources = [data_sets.open_data(data, split, frames=frames, height=resolution, width=resolution, scales=covered) for split in ("train", "val")]
    clip = sources[0].clip
    torch.manual_seed(seed)
    subject = build(model, size=size, style=style, clip=clip, given=knobs, weights=weights)
    drawn = _rule(rule, subject.system.name, bool(subject.system.run_knobs), bool(subject.system.paper_rule))
    folder = out or folders.cache() / "trained"
    folder.mkdir(parents=True, exist_ok=True)  # a wrong place is refused before the work
    tell = _quiet if as_json else _progress()
    if start == "shared":
        stills = [data_sets.open_data("digits:stills", split, height=clip.height, width=clip.width) for split in ("train", "val")]
        if subject.system.start == "shared":
            image.apply(subject.model, image.image_start(size, style, stills[0], stills[1], folder, steps=start_steps, tell=tell))
        else:
            built = {knob: value for knob, value in subject.knobs.items() if knob in subject.system.build_knobs}
            own = image.own_start(subject.system, size, style, built, stills[0], stills[1], folder, steps=start_steps, tell=tell)
            image.apply_own(subject.model, own)
    about: dict[str, Any] = to_json(
        {"model": model, "size": size, "style": style, "clip": clip, "knobs": subject.knobs, "data": data, "data_digest": sources[0].digest}
        | {"rule": drawn, "recipe": vars(recipe), "seed": seed, "start": start, "weights": weights}
    )
    if covered != data_sets.WHOLE:
        about["temporal_scales"] = list(covered)
    name = f"{re.sub(r'[^A-Za-z0-9]+', '-', f'{model} {data}').strip('-').lower()}-{seed}-{digest(about)}"
    values = {knob_name: knob.values for knob_name, knob in subject.system.run_knobs.items()}
    result = loop.train(
        subject.model.train(), subject.system, sources[0], sources[1], recipe,
        rule=drawn, run_values=values, seed=seed, folder=folder, name=name, device=device, tell=tell,
    )  # fmt: skip
    about |= {"result": to_json(result)}
    (folder / f"{name}.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    file = folders.portable(folder / f"{name}.safetensors")
    if as_json:
        output.document({"checkpoint": file, **about})
        return
    last = result.curve[-1].val_top1 if result.curve else None
    print(f"val top-1 {percent(last)} % after {result.steps} steps, {quantity(result.core_seconds, 's')} of CPU")
    print(f"weights: {file}")


def _rule(asked: str | None, system: str, has_run_knobs: bool, has_paper_rule: bool) -> Rule:
    """The rule asked for, or the method's where there is something to draw."""
    if asked is None:
        return "elastic" if has_run_knobs else "none"
    if asked == "none":
        return "none"
    if asked == "elastic" and has_run_knobs:
        return "elastic"
    if asked == "paper" and has_paper_rule:
        return "paper"
    if asked in ("elastic", "paper"):
        raise UsageError(f"{system} must have run knobs for --rule {asked}", given="none to draw", remedy="leave --rule out")
    raise unknown("rule", asked, ("elastic", "paper", "none"))


def _progress(least_s: float = 2.0) -> Callable[[float, str], None]:
    """A line on stderr for each whole percent, at most one in `least_s` seconds; of each part that is told, its first and last."""
    last_share, last_s = 1.0, 0.0

    def tell(share: float, text: str) -> None:
        nonlocal last_share, last_s
        now_s = time.monotonic()
        begins, ends = share < last_share, share >= 1
        if begins or ends or (int(100 * share) > int(100 * last_share) and now_s - last_s >= least_s):
            typer.echo(f"{share:5.0%} {text}", err=True)
            last_s = now_s
            last_share = share

    return tell


def _quiet(share: float, text: str) -> None:
    del share, text
