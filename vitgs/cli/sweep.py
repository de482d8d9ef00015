"""`sweep`: runs or resumes a suite."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vitgs import folders
from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.errors import AnswerIsNo
from vitgs.numbers import quantity

if TYPE_CHECKING:
    from vitgs.sweep import Summary


def sweep(
    suite: Annotated[str, typer.Option("--suite", help="What to run (see `list suites`).")],
    profile: Annotated[str | None, typer.Option("--profile", help="At which size, on which data, how long (see `list profiles`).")] = None,
    data: Annotated[list[str] | None, typer.Option("--data", metavar="A,B", help="Data sets or folders in place of the profile's.")] = None,
    models: Annotated[list[str] | None, typer.Option("--models", metavar="A,B", help="Only these systems; * and ? are wildcards.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", help="Seeds 0 to N-1.")] = None,
    storage: Annotated[str | None, typer.Option("--storage", metavar="URL", help="The study's database, beyond one machine.")] = None,
    executor: Annotated[str, typer.Option("--executor", help="local; ray and slurm are not in this version.")] = "local",
    workers: Annotated[int | None, typer.Option("--workers", help="Training jobs side by side; one per core if left out.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The results' folder.")] = None,
    device: options.Device = "cpu",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed and out-of-memory rows again.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Run or resume a suite: train, evaluate and measure every system over its budgets."""
    options.positive("--seeds", seeds)
    options.positive("--workers", workers)
    from vitgs.measure.setting import device_of
    from vitgs.sweep import run_sweep

    device_of(device)
    summary = run_sweep(
        suite,
        profile=profile,
        data=options.names(data) or (),
        models=options.names(models) or (),
        seeds=seeds,
        out=out,
        workers=workers,
        executor=executor,
        storage=storage,
        retry_failed=retry_failed,
        device=device,
    )
    if as_json:
        output.document(summary.to_json())
    else:
        _print(summary)
    if summary.failed and not summary.measured:
        raise AnswerIsNo("a sweep must measure something", given="no row that holds a result", remedy="the rows' reasons say what to repair")


def _print(summary: Summary) -> None:
    print(f"{summary.done} rows written, {summary.kept} kept, in {quantity(summary.seconds, 's')}: {folders.portable(summary.file)}")
    for kind, rows in (("failed", summary.failed), ("skipped", summary.skipped)):
        for label, reason in rows:
            print(f"{kind}: {label}: {reason}")
