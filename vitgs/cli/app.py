"""`vitgs-bench`: the commands joined, and the one place where an error becomes a line on stderr and an exit code.

0 done; 1 the answer is no; 2 wrong usage; 3 nothing to work on; 4 the machine is unfit to measure; 5 broken off by the environment; 130 interrupted.
An error that none of these describes is a bug and keeps its traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import typer

import vitgs
from vitgs.cli import best, cost, doctor, evaluate, explain, gate, listing, measure, replay, report, stream, sweep, theory, train
from vitgs.errors import BrokenOff, UsageError, VitgsError

PROGRAM = "vitgs-bench"
INTERRUPTED = 130
# What the environment can refuse in the middle of work; the same command goes on once there is room or permission again.
_ENVIRONMENT = {errno.ENOSPC: "full", errno.EDQUOT: "over quota", errno.EROFS: "read-only", errno.EACCES: "not writable", errno.EIO: "failing"}
# A folder was wanted where a file lies, or the other way round: a wrong path on the command line.
_WRONG_PLACE = (errno.ENOTDIR, errno.EEXIST, errno.EISDIR)

app = typer.Typer(
    name=PROGRAM,
    help=vitgs.__doc__,
    add_completion=False,
    rich_markup_mode=None,  # rich would cost a third of the time that --help may take
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("sweep")(sweep.sweep)
app.command("report")(report.report)
app.command("list")(listing.show)
app.command("cost")(cost.cost)
app.command("measure")(measure.measure)
app.command("train")(train.train)
app.command("eval")(evaluate.evaluate)
app.command("explain")(explain.explain)
app.command("stream")(stream.stream)
app.command("theory")(theory.theory)
app.command("best")(best.best)
app.command("replay")(replay.replay)
app.command("doctor")(doctor.doctor)
app.add_typer(gate.app, name="gate")


def _version(asked: bool) -> None:
    if asked:
        print(f"{PROGRAM} {vitgs.__version__}")
        raise typer.Exit


@app.callback()
def _root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False) -> None:
    """Which system classifies video best for the FLOPs, milliseconds, memory and joules that you have, on this machine."""


def run(arguments: Sequence[str] | None = None) -> int:
    """Carries out a command line and returns its exit code; known errors are printed as one line."""
    try:
        given = sys.argv[1:] if arguments is None else arguments
        _check_not_empty(given)
        code = app(args=given, prog_name=PROGRAM, standalone_mode=False)
        if sys.stdout is not None:  # closed by the caller
            sys.stdout.flush()
        if code == INTERRUPTED:  # typer makes this of Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except VitgsError as error:
        return _refuse(str(error), error.exit_code)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else PROGRAM
        return _refuse(f"{error.format_message().rstrip('.')}; see {command} --help", 2)
    except (KeyboardInterrupt, typer.Abort):
        return _refuse("interrupted; a sweep goes on where it was with the same command", INTERRUPTED)
    except BrokenPipeError:
        return _reader_left()
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # typer caught it first, and made it a failure
            return _reader_left()
        raise
    except OSError as error:
        if error.errno in _WRONG_PLACE:
            wrong = UsageError(
                "a path must not end in, or lead through, something of another kind",
                given=f"{error.filename}: {error.strerror}",
                remedy="name another",
            )
            return _refuse(str(wrong), wrong.exit_code)
        if error.errno not in _ENVIRONMENT:
            raise
        place = error.filename or "the disk"
        remedy = "make room or give permission, then run the same command again"
        return _refuse(str(BrokenOff("the disk must take what is written", given=f"{place} is {_ENVIRONMENT[error.errno]}", remedy=remedy)), 5)


def _check_not_empty(arguments: Sequence[str]) -> None:
    """An unset variable of a shell makes an empty argument, which would pass for an option left out, or for the working folder."""
    for before, argument in pairwise(("", *arguments)):
        if not argument or (argument.startswith("--") and argument.endswith("=")):
            given = argument or f"{before} ''".strip()
            raise UsageError("an argument must not be empty", given=given, remedy="give a value, or leave the option out")


def _reader_left() -> int:
    """The reader (`head`, say) has left: nothing more to say, and Python must not try to flush what is left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 0


def _refuse(message: str, code: int) -> int:
    print("error: " + " ".join(message.split()), file=sys.stderr)
    return code


def main() -> None:
    """The entry point of `vitgs-bench`."""
    sys.exit(run())
