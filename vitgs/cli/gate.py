"""`gate run`, `gate calibrate`, `gate history`: whether the head is slower than a base revision, with known error rates.

Exit codes: 0 no regression, 1 a regression by either tier, 2 wrong usage, 3 no base to compare with, 4 a machine that can't judge.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitgs.cli import options
from vitgs.cli import show as output
from vitgs.errors import AnswerIsNo, UnfitMachine, UsageError, unknown

if TYPE_CHECKING:
    from vitgs.gate.text import Table

app = typer.Typer(help="Throughput regression: a base revision beside the head.", rich_markup_mode=None)

TIERS = ("exact", "all")
FEWEST_ROUNDS = 12  # as vitgs.gate.timed has it, which is slow to import
QUANTITIES = (
    "parameters", "MACs", "operators", "float64 tensors", "peak live bytes", "tokens in attention", "attention scores", "unfused attention",
    "graph breaks",
)  # fmt: skip
Suite = Annotated[str, typer.Option("--suite", help="A suite of suites/gate, or a .toml file.")]
Cases = Annotated[list[str] | None, typer.Option("--cases", metavar="A,B", help="These cases of the suite only.")]
Repository = Annotated[str | None, typer.Option("--repo", metavar="DIR", help="The repository; this checkout if left out.")]

Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Keep history and calibration under this folder, not in results/.")]


@app.command("run")
def run(
    base: Annotated[str, typer.Option("--base", metavar="REV", help="The revision to compare with.")],
    suite: Suite = "gate",
    cases: Cases = None,
    seconds: Annotated[float, typer.Option("--seconds", help="Budget of the timed tier.")] = 60.0,
    tier: Annotated[str, typer.Option("--tier", help="exact (counts alone, no noise) or all.")] = "all",
    allow: Annotated[list[str] | None, typer.Option("--allow", metavar="A,B", help="Quantities of the exact tier that may grow.")] = None,
    allow_dirty: Annotated[bool, typer.Option("--allow-dirty", help="Take the head with changes that are not committed.")] = False,
    drift: Annotated[str | None, typer.Option("--drift", metavar="REV", help="Compare with this too, as long again: `tag` is the last tag.")] = None,
    repository: Repository = None,
    out: Out = None,
    as_json: options.AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown, for a page or a pull request.")] = False,
) -> None:
    """Compare the head with a base revision: first what can be counted, then time."""
    options.positive("--seconds", seconds)
    allowed = _quantities(options.names(allow) or [])
    if tier not in TIERS:
        raise UsageError("--tier must be exact or all", given=repr(tier), remedy="name one of these")
    from vitgs.gate import cases as suites
    from vitgs.gate import drive, text

    named = suites.load(suite)
    report = drive.run(
        named, suites.chosen(named, options.names(cases)), base, repository=repository, tier="exact" if tier == "exact" else "all",
        seconds=seconds, allow_dirty=allow_dirty, allowed=allowed, drift=drift, results=out, say=_say,
    )  # fmt: skip
    if as_json:
        output.document({"regressed": report.regressed, "unfit": report.unfit, "verdict": text.verdict(report), "report": report})
    else:
        _print(text.tables(report), as_markdown)
        _end([f"note: {note}" for note in report.notes], text.verdict(report), as_markdown)
    if report.regressed:
        raise typer.Exit(AnswerIsNo.exit_code)
    if report.unfit:
        raise typer.Exit(UnfitMachine.exit_code)


@app.command("calibrate")
def calibrate(
    suite: Suite = "gate",
    cases: Cases = None,
    rounds: Annotated[int, typer.Option("--rounds", help="Rounds of head against head; more make the rates narrower.")] = 48,
    seconds: Annotated[float, typer.Option("--seconds", help="The gate's budget whose error rates are asked for.")] = 60.0,
    rounds_a_run: Annotated[
        int | None, typer.Option("--rounds-a-run", help="Rounds that a run has; left out, as many as fit its budget here.")
    ] = None,
    repository: Repository = None,
    out: Out = None,
    as_json: options.AsJson = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Markdown.")] = False,
) -> None:
    """Run the head against itself: noise, false alarms, the smallest slowdown that can be found on this machine."""
    options.positive("--seconds", seconds)
    if rounds_a_run is not None and rounds_a_run < FEWEST_ROUNDS:
        raise UsageError(f"--rounds-a-run must be at least {FEWEST_ROUNDS}, as a run's are", given=rounds_a_run, remedy="leave it out, or raise it")
    if rounds < (rounds_a_run or FEWEST_ROUNDS):
        raise UsageError("--rounds must be at least one run's", given=f"{rounds} for {rounds_a_run or FEWEST_ROUNDS} a run", remedy="raise --rounds")
    from vitgs.gate import cases as suites
    from vitgs.gate import drive, text

    named = suites.load(suite)
    found, path = drive.calibrate(
        named, suites.chosen(named, options.names(cases)), repository=repository, rounds=rounds, rounds_a_run=rounds_a_run, seconds=seconds,
        results=out, say=_say,
    )  # fmt: skip
    refused = all(case.refused for case in found.cases.values())
    if as_json:
        output.document({"calibration": found, "file": path.name})
    else:
        _print([text.calibration_table(found)], as_markdown)
        _end([], text.calibration_verdict(found), as_markdown)
    if refused:
        raise typer.Exit(UnfitMachine.exit_code)


@app.command("history")
def history(
    page: Annotated[Path | None, typer.Option("--page", metavar="FILE", help="Where to write; reports/gate.html if left out.")] = None,
    out: Out = None,
) -> None:
    """Draw what the gate found on this machine so far, each case over the commits, as one web page."""
    from vitgs import folders
    from vitgs.errors import NothingToWorkOn
    from vitgs.gate import chart
    from vitgs.gate import history as kept

    place = kept.folder(out)
    rows = kept.rows(place / kept.ROWS)
    if not any(row.get("kind") == "run" for row in rows):
        raise NothingToWorkOn("the gate must have run on this machine", given=folders.portable(place / kept.ROWS), remedy="gate run --base REV first")
    path = page or folders.reports() / "gate.html"
    chart.write(rows, place.name, path)
    print(f"written: {folders.portable(path)}")


def _quantities(given: Sequence[str]) -> list[str]:
    by_name = {name.lower(): name for name in QUANTITIES}
    for name in given:
        if name.lower() not in by_name:
            raise unknown("quantity", name, QUANTITIES, where="--allow")
    return [by_name[name.lower()] for name in given]


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _print(tables: Sequence[Table], as_markdown: bool) -> None:
    for title, header, rows in tables:
        print(f"### {title}\n" if as_markdown else title)
        write: Any = output.markdown if as_markdown else output.columns
        write(rows, header)
        print()


def _end(notes: Sequence[str], verdict: str, as_markdown: bool) -> None:
    for note in notes:
        print(f"- {note}" if as_markdown else note)
    print(f"\n**{verdict}**" if as_markdown else verdict)
