"""`cost`: parameters, MACs and FLOPs of one view, by several counters, and on request where they go."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.errors import AnswerIsNo
from vitgs.numbers import percent, quantity
from vitgs.record import Clip

if TYPE_CHECKING:
    from vitgs.measure.anatomy import Anatomy, Leaving, Part
    from vitgs.measure.cost import Cost

Lines = Iterator[tuple[str, str]]


def cost(
    model: options.Model,
    size: options.SizeName = "B",
    style: options.StyleName = "in21k",
    frames: options.Frames = 8,
    resolution: options.Resolution = 224,
    classes: options.Classes = 400,
    given: options.Set = None,
    views: Annotated[str, typer.Option("--views", metavar="CLIPSxCROPS", help="Views of a video: clips in time, crops of each.")] = "1x1",
    seed: Annotated[int, typer.Option("--seed", help="Of the random weights and the noise, for models whose cost depends on content.")] = 0,
    explain: Annotated[bool, typer.Option("--explain", help="Parts, tokens behind blocks, and two public counters beside ours.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Count parameters, MACs and FLOPs (2 per MAC) of one view.

    Exit code 1, and no number, when the counters disagree by more than 1 % and no operator that one of them lacks explains it.
    """
    options.positive("--classes", classes)
    seen = options.views(views)
    clips, crops = seen.clips, seen.crops
    import torch

    from vitgs.cli.subject import build
    from vitgs.measure.anatomy import anatomy
    from vitgs.measure.cost import count

    clip = Clip(frames=frames, height=resolution, width=resolution, classes=classes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        subject = build(model, size=size, style=style, clip=clip, given=options.settings(given))
        view_1TCHW = torch.randn((1, *clip.shape), generator=torch.Generator().manual_seed(seed))
        found = count(subject.model, view_1TCHW, subject.run, witnesses_too=explain)
        inside = anatomy(subject.model, view_1TCHW, subject.run, device=found.device) if explain else None
    if as_json:
        about = {"model": model, "size": size, "style": style, "clip": clip, "knobs": subject.knobs, "run": subject.run, "seed": seed}
        per = {"clips": clips, "crops": crops, "macs_a_clip": _times(found.macs, crops), "macs_a_video": _times(found.macs, clips * crops)}
        output.document({**about, "views": per, **asdict(found), **({} if inside is None else {"anatomy": asdict(inside)})})
    else:
        lines = _summary(found, clips, crops, seed, content=subject.system.content, everything=explain)
        output.columns([*lines, *(_explained(found, inside) if inside else _uncounted(found))])
    if found.macs is None:
        raise typer.Exit(AnswerIsNo.exit_code)


def _times(macs: int | None, views: int) -> int | None:
    return None if macs is None else macs * views


def _summary(found: Cost, clips: int, crops: int, seed: int, *, content: bool, everything: bool) -> Lines:
    frozen = found.params - found.params_trainable
    yield (
        "parameters",
        quantity(found.params, "params") + (f", {quantity(found.params_trainable, 'params')} of them trainable" if frozen else ", all trainable"),
    )
    yield "MACs a view", quantity(found.macs, "macs") if found.macs is not None else f"not given: {found.reason}"
    if everything or clips * crops > 1:
        yield "MACs a clip", f"{quantity(_times(found.macs, crops), 'macs')} ({_count(crops, 'crop')} of it)"
        yield "MACs a video", f"{quantity(_times(found.macs, clips * crops), 'macs')} ({_count(clips, 'clip')} of {_count(crops, 'crop')})"
    yield "FLOPs a view", quantity(found.flops, "flops")
    if found.device == "meta":
        yield "counted on", "the shapes alone"
    else:
        why = "its cost depends on the clip" if content else "shapes alone don't decide what it does"
        yield "counted on", f"{found.device}, by a real run with random weights on noise, both from seed {seed}: {why}"


def _explained(found: Cost, inside: Anatomy) -> Lines:
    yield "", ""
    yield "MACs by part", "of a view"
    for part in inside.parts:
        yield from _tree(part, inside.macs, 1)
    if inside.leaving:
        yield "", ""
        yield "tokens behind", "each block, of a view"
    for blocks, leaving in groupby(inside.leaving, key=lambda entry: entry.blocks):
        yield f"  {blocks}", ""
        yield from ((f"    {_range(entry)}", _tokens(entry)) for entry in leaving)
    yield "", ""
    yield "MACs by counter", "share of the formula's"
    ours = found.counters["formula"] or 1
    for name, macs in found.counters.items():
        said = [line.removeprefix(f"{name}: ") for line in found.uncounted if line.startswith(f"{name}: ")]
        yield f"  {name}", _of(macs, ours) if macs is not None else "; ".join(said)
        for operator, missing in found.left_out.get(name, {}).items():
            yield f"    lacks {operator.removeprefix('aten::')}", _of(missing.macs, ours) + missing.how
    if found.left_out:
        yield "", found.reason or "with what it lacks by name, each is within 1 % of the formula"
    yield from _uncounted(found, but=found.left_out)


def _uncounted(found: Cost, but: Iterable[str] = ()) -> Lines:
    named = tuple(f"{name}: " for name in (*but, *(name for name, macs in found.counters.items() if macs is None)))
    yield from (("uncounted", text) for text in found.uncounted if not text.startswith(named))


def _tree(part: Part, total: int, depth: int) -> Lines:
    yield "  " * depth + part.name, _of(part.macs, total)
    if len(part.parts) > 1 or any(below.parts for below in part.parts):
        for below in part.parts:
            yield from _tree(below, total, depth + 1)


def _of(macs: int, total: int) -> str:
    return f"{quantity(macs, 'macs')} ({percent(macs / max(total, 1))} %)"


def _range(entry: Leaving) -> str:
    return str(entry.first) if entry.first == entry.last else f"{entry.first} to {entry.last}"


def _tokens(entry: Leaving) -> str:
    runs = [(shape, len(list(same))) for shape, same in groupby(entry.shapes)]
    made_of = " + ".join((f"{times} x " if times > 1 else "") + (f"{rows} x {tokens}" if rows > 1 else str(tokens)) for (rows, tokens), times in runs)
    return f"{entry.tokens:,}" + (f" = {made_of}" if made_of != str(entry.tokens) else "")


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
