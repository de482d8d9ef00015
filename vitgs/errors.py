"""Errors that a user can act on: one line that states the rule, the value given and the remedy, and the exit code it means.

The command line prints `str(error)` and exits with `error.exit_code`; everything else that escapes is a bug of ours and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VitgsError(Exception):
    """A known failure. `rule`: what must hold; `given`: what was there instead; `remedy`: what to do now."""

    exit_code = 2

    def __init__(self, rule: str, *, given: object, remedy: str) -> None:
        self.rule, self.given, self.remedy = rule, str(given), remedy
        super().__init__(" ".join(f"{rule}; given: {given}; {remedy}".split()))

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.rule, self.given, self.remedy))


def _rebuild(kind: type[VitgsError], rule: str, given: str, remedy: str) -> VitgsError:
    return kind(rule, given=given, remedy=remedy)


class AnswerIsNo(VitgsError):
    """A check ran and failed: a regression, a result that was not reproduced."""

    exit_code = 1


class UsageError(VitgsError):
    """The request can't be carried out as it was written."""

    exit_code = 2


class NothingToWorkOn(VitgsError):
    """No results, no baseline, no videos."""

    exit_code = 3


class UnfitMachine(VitgsError):
    """This machine can't measure what was asked for."""

    exit_code = 4


class BrokenOff(VitgsError):
    """The environment stopped the work (a full disk, say); the same command resumes it."""

    exit_code = 5


def unknown(kind: str, given: str, known: Iterable[str], *, where: str = "") -> UsageError:
    """The error for a name that nothing has: lists the near names first, then all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    place = f" in {where}" if where else ""
    return UsageError(f"a {kind}{place} must be one of the known ones", given=repr(given), remedy=f"{hint}known: {', '.join(names) or 'none'}")
