"""`theory`: the method's claims checked on a checkpoint and real clips; what doesn't hold is said not to."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vitgs import folders
from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.cli.checkpoint import about_checkpoint, data_for
from vitgs.errors import UsageError
from vitgs.record import Clip, to_json

FORMAT = 1
# What checkpoints of several prices must have in common; the seed may differ.
SAME = ("model", "size", "style", "clip", "data", "rule", "recipe", "start", "weights")
PRICE = "sparsity"


def theory(
    checkpoint: Annotated[
        list[Path], typer.Argument(help="A .safetensors file that `train graphsampler` wrote; more of them, of other `sparsity`, for its price.")
    ],
    data: Annotated[str | None, typer.Option("--data", help="In place of the data that it was trained on; same classes.")] = None,
    clips: Annotated[int, typer.Option("--clips", metavar="N", help="Clips; the dearer parts take the first half or fifth of them.")] = 100,
    split: Annotated[str, typer.Option("--split", help="test, or val.")] = "test",
    budget: Annotated[float | None, typer.Option("--budget", help="Kept fraction of (frame, token) pairs; the model's own if left out.")] = None,
    time: Annotated[
        float | None, typer.Option("--time", metavar="SECONDS", help="Also time the graph as frames and tokens grow; alone on the machine.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Where table and figures go; theory in the reports if left out.")] = None,
    record: Annotated[Path | None, typer.Option("--record", metavar="FILE", help="Where the numbers go; theory.json in --out if left out.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Check the method's theory on a checkpoint."""
    options.positive("--clips", clips)
    options.positive("--time", time)
    abouts = [about_checkpoint(file) for file in checkpoint]
    _comparable(checkpoint, abouts)
    folder = out or folders.reports() / "theory"
    kept, table = record or folder / "theory.json", folder / "theory.md"
    for file in (kept, table):
        file.parent.mkdir(parents=True, exist_ok=True)  # a wrong place is refused before the work
    if kept.is_dir():
        raise UsageError("--record must name a file", given=f"{kept}, a folder", remedy="name a file in it")
    from vitgs.cli import theory_run
    from vitgs.report import theory_claims, theory_figures
    from vitgs.report.theory import numbers

    models = [theory_run.load(file, about, budget) for file, about in zip(checkpoint, abouts, strict=True)]
    source = data_for(Clip(**abouts[0]["clip"]), data or abouts[0]["data"], split)
    prices = [float(about["knobs"][PRICE]) for about in abouts]
    tell = _quiet if as_json else _say
    found, scaling = theory_run.measured(models, prices, source, clips, budget, seconds=time, tell=tell)
    claims = theory_claims.claims(found)
    described = [{"file": file.name, **about} for file, about in zip(checkpoint, abouts, strict=True)]
    settings = {"data": source.name, "data_digest": source.digest, "split": split, "budget": found.budget, **theory_run.settings(clips, found)}
    everything = to_json({"format": FORMAT, "settings": settings, "checkpoints": described, **numbers(found), "scaling": scaling, "claims": claims})
    kept.write_text(json.dumps(everything, separators=(",", ":"), allow_nan=False) + "\n", encoding="utf-8")
    table.write_text(theory_claims.table(claims, _about(abouts, found.clips, settings)), encoding="utf-8")
    files = [folders.portable(file) for file in (kept, table, *theory_figures.draw(found, scaling, folder))]
    if as_json:
        output.document({"settings": settings, "claims": claims, "files": files})
        return
    output.columns([(theory_claims.VERDICTS[claim.holds], claim.claim, claim.found) for claim in claims], header=("", "claim", "found"))
    print("\n".join(files))


def _comparable(checkpoint: Sequence[Path], abouts: Sequence[Mapping[str, Any]]) -> None:
    """Checkpoints of several prices must be of one model otherwise."""
    for file, about in zip(checkpoint, abouts, strict=True):
        first = {name: abouts[0].get(name) for name in SAME} | {k: v for k, v in abouts[0]["knobs"].items() if k != PRICE}
        own = {name: about.get(name) for name in SAME} | {k: v for k, v in about["knobs"].items() if k != PRICE}
        other = next((name for name in first if own.get(name) != first[name]), None)
        if other is not None:
            remedy = f"train them with the same settings but for {PRICE} and the seed"
            raise UsageError(f"checkpoints differ in {PRICE} alone", given=f"another {other} in {file.name}", remedy=remedy)


def _about(abouts: Sequence[Mapping[str, Any]], clips: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What the table says it stands on."""
    about = abouts[0]
    recipe = about.get("recipe") or {}
    trained = (
        f"{about['data']}, start {about.get('start')}, {recipe.get('steps')} steps of {recipe.get('batch')} clips, learning rate {recipe.get('lr')}"
    )
    return {
        "model": f"{about['model']}, size {about['size']}, {PRICE} {about['knobs'][PRICE]:g}; trained on {trained}, seed {about.get('seed')}",
        "clips": f"{clips} of {settings['data']}, split {settings['split']}; half of them for the sets, a fifth where all pairs are kept",
        "budget": f"{settings['budget']:g}",
        "further prices": ", ".join(f"{a['knobs'][PRICE]:g}" for a in abouts[1:]) or "none",
    }


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _quiet(text: str) -> None:
    del text
