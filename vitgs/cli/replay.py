"""`replay`: runs the job of one row again, in a fresh process, and says whether it was reproduced within its interval. Writes no row."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from vitgs import folders
from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.cli.reproduced import compare, reproduced
from vitgs.errors import AnswerIsNo, NothingToWorkOn, UsageError
from vitgs.record import Job, Record, to_json

SHORTEST_PREFIX = 4
WHERE_IDS_ARE = "copy it from the results or the report"


def replay(
    row: Annotated[str, typer.Argument(help="The row's id, or its beginning.")],
    results: Annotated[list[Path] | None, typer.Option("--results", metavar="DIR", help="Where the results lie; may be repeated.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Run a row's job again and say whether it was reproduced within its interval (exit code 0 or 1)."""
    before = _find(row, results or [folders.results()])
    if before.status != "measured":
        reason = f"row {before.id} is {before.status}: {before.reason}"
        raise UsageError("a row to reproduce must hold a result", given=reason, remedy="sweep again with --retry-failed")
    now = _again(before.job)
    if now.status != "measured":
        raise AnswerIsNo(
            "a replay must end with a result", given=f"{now.status}: {now.reason}", remedy="run the sweep that made the row, then replay"
        )
    lines = compare(before, now)
    good = reproduced(lines)
    if as_json:
        document = {"row": before.id, "job": before.job.label, "reproduced": good, "values": lines, "flags": now.flags, "result": now.result}
        output.document(to_json(document))
    else:
        print(f"{before.id} {before.job.label}")
        verdicts = {True: "agrees", False: "DIFFERS", None: ""}
        output.columns(((line.name, line.before, line.now, verdicts[line.agrees]) for line in lines), ("", "then", "now", ""))
        print("reproduced" if good else "not reproduced")
    if not good:
        raise typer.Exit(AnswerIsNo.exit_code)


def _find(prefix: str, places: list[Path]) -> Record:
    """The row of that id, from all machines' folders."""
    if len(prefix) < SHORTEST_PREFIX:
        raise UsageError(f"a row's id has at least {SHORTEST_PREFIX} characters", given=prefix, remedy=WHERE_IDS_ARE)
    from vitgs.report.sources import machine_folders
    from vitgs.store.records import files, read

    # Rows of the committed references too, which a page may show beside one's own.
    inside = [folder for place in places if place.is_dir() for folder in sorted(place.iterdir()) if folder.is_dir()]
    searched = [folder for folder in dict.fromkeys([*machine_folders(places), *inside]) if files(folder)]
    rows = [record for folder in searched for file in files(folder) for record in read(file)]
    if not rows:
        given = ", ".join(map(folders.portable, places))
        raise NothingToWorkOn("a replay needs results", given=f"none in {given}", remedy="make some with `vitgs-bench sweep --suite budget`")
    found = {record.id: record for record in rows if record.id.startswith(prefix)}
    if len(found) != 1:
        given = f"{prefix!r}, the beginning of {len(found)} of {len(rows)} ids"
        raise UsageError("a row must be named by its id", given=given, remedy="give more characters" if found else WHERE_IDS_ARE)
    return next(iter(found.values()))


def _again(job: Job) -> Record:
    """The job in a process of its own, alone on the machine when it measures."""
    from vitgs.executor.local import LocalExecutor
    from vitgs.run import execute

    with _cache_for(job), LocalExecutor(1, alone=job.kind == "measure", waiting=_say_waiting) as executor:
        return executor.submit(execute, job).result()


@contextlib.contextmanager
def _cache_for(job: Job) -> Iterator[None]:
    """A second training must not overwrite the first one's weights, which eval rows rest on: it gets a cache of its own, with the same starts."""
    if job.kind != "train":
        yield
        return
    starts, before = folders.cache() / "starts", os.environ.get("VITGS_CACHE")
    with tempfile.TemporaryDirectory(prefix="vitgs-replay-") as folder:
        if starts.is_dir():
            shutil.copytree(starts, Path(folder) / "starts")
        os.environ["VITGS_CACHE"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["VITGS_CACHE"]
            else:
                os.environ["VITGS_CACHE"] = before


def _say_waiting() -> None:
    typer.echo("waiting: another vitgs-bench has the machine", err=True)
