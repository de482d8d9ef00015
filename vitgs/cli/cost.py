"""`cost`: parameters, MACs and FLOPs of one view, by several counters."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.numbers import quantity
from vitgs.record import Clip

if TYPE_CHECKING:
    from vitgs.measure.cost import Cost


def cost(
    model: options.Model,
    size: options.SizeName = "B",
    style: options.StyleName = "in21k",
    frames: options.Frames = 8,
    resolution: options.Resolution = 224,
    classes: options.Classes = 400,
    given: options.Set = None,
    explain: Annotated[bool, typer.Option("--explain", help="By part and operator, with two public counters beside ours.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Count parameters, MACs and FLOPs (2 per MAC) of one view."""
    options.positive("--classes", classes)
    import torch

    from vitgs.cli.subject import build
    from vitgs.measure.cost import count

    clip = Clip(frames=frames, height=resolution, width=resolution, classes=classes)
    subject = build(model, size=size, style=style, clip=clip, given=options.settings(given))
    view_1TCHW = torch.randn((1, *clip.shape), generator=torch.Generator().manual_seed(0))
    found = count(subject.model, view_1TCHW, subject.run, witnesses_too=explain)
    if as_json:
        output.document({"model": model, "size": size, "style": style, "clip": clip, "knobs": subject.knobs, "run": subject.run, **asdict(found)})
        return
    output.columns(_lines(found, explain))


def _lines(found: Cost, explain: bool) -> list[tuple[str, str]]:
    trainable = "" if found.params_trainable == found.params else f", {quantity(found.params_trainable, 'params')} of them trainable"
    lines = [
        ("parameters", quantity(found.params, "params") + trainable),
        ("MACs a view", quantity(found.macs, "macs") if found.macs is not None else f"not given: {found.reason}"),
        ("FLOPs a view", quantity(found.flops, "flops")),
        ("counted on", "the shapes alone" if found.device == "meta" else f"{found.device}, on noise: this model's cost depends on the clip"),
    ]
    if explain:
        total = sum(found.macs_by_part.values()) or 1
        lines += [(f"  in {part}", f"{quantity(macs, 'macs')} ({macs / total:.1%})") for part, macs in found.macs_by_part.items()]
        lines += [(f"  by {name}", quantity(macs, "macs")) for name, macs in found.counters.items()]
    return lines + [("uncounted", text) for text in found.uncounted]
