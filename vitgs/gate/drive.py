"""A run of the gate: two trees, the exact tier, the timed tier, one outcome. And a calibration: the head against itself."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vitgs.errors import AnswerIsNo, NothingToWorkOn, UnfitMachine, UsageError
from vitgs.executor.machine_lock import machine_lock
from vitgs.gate import calibrate as calibration
from vitgs.gate import cores, exact, history, timed, trees
from vitgs.gate.cases import GateCase, GateSuite
from vitgs.gate.sides import Fails, Lacks, Tree, both
from vitgs.measure import doctor_cpu, machine
from vitgs.measure.host import Host

Tier = Literal["exact", "all"]
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The head beside one revision. `left_out`: cases that were not compared, and why; `refused`: those too noisy for the timed tier here."""

    revision: str
    compared: tuple[str, ...]
    findings: tuple[exact.Finding, ...]
    timed: tuple[timed.Timed, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a run found. The fields of `Compared` are of the base; `drift` is the same of an older revision, told and never a regression."""

    suite: str
    base: str
    head: str
    tier: Tier
    head_dirty: bool
    compared: tuple[str, ...]
    findings: tuple[exact.Finding, ...]
    timed: tuple[timed.Timed, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    drift: Compared | None = None

    @property
    def regressed(self) -> bool:
        """Whether anything is worse, by either tier."""
        return any(f.kind == "regression" for f in self.findings) or any(t.outcome == "slower" for t in self.timed)

    @property
    def unfit(self) -> bool:
        """Whether the timed tier was asked for and could judge nothing."""
        return self.tier == "all" and all(t.outcome == "noisy" for t in self.timed)


def run(
    suite: GateSuite, cases: Sequence[GateCase], base: str, *,
    repository: str | None = None, tier: Tier = "all", seconds: float = 60.0, allow_dirty: bool = False, allowed: Collection[str] = (),
    drift: str | None = None, results: Path | None = None, say: Say = lambda text: None,
) -> Report:  # fmt: skip
    """Compares and keeps a row of it in the history. `drift`: an older revision to compare with as well, or `tag` for the last tag."""
    place = history.folder(results)
    root = trees.root(repository)
    revision, head_commit = trees.commit(root, base), trees.commit(root, "HEAD")
    clean = trees.clean(root, allow_dirty=allow_dirty)
    notes = [] if clean else ["the head has changes that are not committed"]
    since: str | None = None
    if drift is not None:  # a revision that doesn't exist is told before any work; a clone without a tag isn't the head's fault
        try:
            since = trees.older(root, drift, than=revision)
        except NothingToWorkOn as error:
            if drift != trees.LAST_TAG:
                raise
            notes.append(f"not compared with an older revision: {error}")
    settings = _Settings(root=root, suite=suite, tier=tier, seconds=seconds, allowed=allowed, place=place, say=say)
    found = _beside(revision, cases, settings)
    notes += found.notes
    older: Compared | None = None
    if since is not None:
        try:
            older = _beside(since, cases, settings)
            notes += [f"since {_short(older.revision)}: {note}" for note in older.notes]
        except (NothingToWorkOn, Lacks, Fails, UnfitMachine) as error:  # the answer about the base stands without it
            notes.append(f"not compared with an older revision: {error}")
    if tier == "all" and len(found.refused) < len(found.compared) and not history.load_calibration(place):
        notes.append(f"not calibrated on this machine (gate calibrate): the threshold is the suite's {suite.threshold:.0%}")
    report = Report(
        suite=suite.name, base=revision, head=head_commit, tier=tier, head_dirty=not clean, compared=found.compared, findings=found.findings,
        timed=found.timed, left_out=found.left_out, refused=found.refused, notes=tuple(notes), drift=older,
    )  # fmt: skip
    asked = [case.request("head") for case in cases if case.name in found.compared]
    _keep(place, {"kind": "run", "report": report, "regressed": report.regressed, "cases": asked})
    return report


@dataclass(frozen=True, kw_only=True)
class _Settings:
    root: Path
    suite: GateSuite
    tier: Tier
    seconds: float
    allowed: Collection[str]
    place: Path
    say: Say


def _beside(revision: str, cases: Sequence[GateCase], of: _Settings) -> Compared:
    """The head beside that revision, by both tiers."""
    with trees.checked_out(of.root, revision) as folder:
        before, after = trees.base_tree(folder, of.root, _threads(cases)), _head(of.root, cases)
        same = before.python == after.python
        note = "the base has other dependencies and ran in an environment of its own: what changed may be theirs"
        compared, left_out, findings = _exact_tier(cases, before, after, of.allowed, of.say)
        if not compared:
            given = "; ".join(f"{name}: {why}" for name, why in left_out.items())
            raise NothingToWorkOn("base and head must have a case in common", given=given, remedy="name a later base, or give renamed cases `was`")
        judged, refused = _timed_tier(compared, before, after, of.suite, of.seconds, of.place, of.say) if of.tier == "all" else ([], [])
    return Compared(
        revision=revision, compared=tuple(case.name for case in compared), findings=tuple(findings), timed=tuple(judged), left_out=left_out,
        refused=tuple(refused), notes=() if same else (note,),
    )  # fmt: skip


def _short(revision: str) -> str:
    return revision[:10]


def calibrate(
    suite: GateSuite, cases: Sequence[GateCase], *,
    repository: str | None = None, rounds: int = 48, rounds_a_run: int | None = None, seconds: float = 60.0, results: Path | None = None,
    say: Say = lambda text: None,
) -> tuple[calibration.Calibrated, Path]:  # fmt: skip
    """Times the head against itself and stores what that says about this machine. `rounds_a_run`: of a run of the gate; left out, as many as
    `gate run --seconds` has time for here, by the rounds' own time (at most as many as were made)."""
    _fit()
    root = trees.root(repository)
    head = _head(root, cases)
    twin = Tree(side="base", folder=head.folder, python=head.python, threads=head.threads)
    # Both sides are the head: a case has the head's names.
    sample = timed.workers(twin, head, {case.name: dataclasses.replace(case, was="") for case in cases}, cores=_cores(cases))
    pairs: dict[str, list[timed.Pair]] = {case.name: [] for case in cases}
    with _alone(say), _of_head():
        began = time.monotonic()
        for done in range(1, rounds + 1):
            for name, pair in sample(list(pairs)).items():
                pairs[name].append(pair)
            say(f"round {done} of {rounds}, {(time.monotonic() - began) / done:.1f} s a round")
        round_s = (time.monotonic() - began) / rounds
    rounds_a_run = rounds_a_run or min(timed.rounds_in(seconds * (1 - timed.CONFIRM_SHARE), round_s), rounds)
    logs = {name: [math.log(after / before) for before, after in taken] for name, taken in pairs.items()}
    found = calibration.calibrate(logs, rounds_a_run=rounds_a_run, threshold=suite.threshold)
    place = history.folder(results)
    path = history.save_calibration(place, {history.shape(case.request("head")): found.cases[case.name] for case in cases})
    _keep(place, {"kind": "calibration", "suite": suite.name, "head": trees.commit(root, "HEAD"), "found": found, "samples_ms": pairs})
    return found, path


def _exact_tier(
    cases: Sequence[GateCase], base: Tree, head: Tree, allowed: Collection[str], say: Say
) -> tuple[list[GateCase], dict[str, str], list[exact.Finding]]:
    """Cases that both sides have, why the others were left out, and what differs."""
    left_out: dict[str, str] = {}
    findings: list[exact.Finding] = []
    compared = []
    # Counts have no noise, so the two sides work at the same time.
    with _of_head(), both(base, head) as (before, after):
        for case in cases:
            say(f"counting: {case.name}")
            before.tell("exact", case.request("base"))
            after.tell("exact", case.request("head"))
            found = after.hear(case.name)
            breaks = after.ask("breaks", case.request("head"))
            try:
                known = before.hear(case.name)
                # Tracing takes longer than all counting: a head without a break can't have more of them, so its base isn't asked.
                broken = {"graph breaks": before.ask("breaks", case.request("base"))} if breaks["total"] != 0 else {}
                of_base, of_head = _with(known, broken), _with(found, {"graph breaks": breaks})
                findings += exact.compare(case.name, of_base, of_head, allowed=allowed)
                compared.append(case)
            except Lacks as error:
                left_out[case.name] = f"not in the base ({error.given}); {error.remedy}"
            except Fails as error:
                left_out[case.name] = f"fails in the base ({error.given})"
    return compared, left_out, findings


def _with(reading: exact.Reading, quantities: Mapping[str, Any]) -> exact.Reading:
    return {**reading, "quantities": {**reading["quantities"], **quantities}}


def _timed_tier(
    cases: Sequence[GateCase], base: Tree, head: Tree, suite: GateSuite, seconds: float, place: Path, say: Say
) -> tuple[list[timed.Timed], list[str]]:
    known = history.load_calibration(place)
    allowed = {case.name: calibration.usable(history.shape(case.request("head")), known, suite.threshold) for case in cases}
    thresholds = {name: threshold for name, (threshold, refused) in allowed.items() if not refused}
    refused = [name for name, (_, too_noisy) in allowed.items() if too_noisy]
    if not thresholds:
        return [], refused
    _fit()
    sample, done = timed.workers(base, head, {case.name: case for case in cases}, cores=_cores(cases)), 0

    def told(names: Sequence[str]) -> Mapping[str, timed.Pair]:
        nonlocal done
        done += 1
        say(f"round {done}: {', '.join(names)}")
        return sample(names)

    with _alone(say), _of_head():
        return timed.judge(told, thresholds, seconds=seconds), refused


def _fit() -> None:
    """Other work is no reason to refuse: it makes times noisy, and noise is measured. A clock that stands still is."""
    host = Host()
    for finding in (doctor_cpu.clock(host), doctor_cpu.quota(host)):
        if finding.level == "unfit":
            raise UnfitMachine(f"this machine must be fit to measure ({finding.check})", given=finding.seen, remedy=finding.remedy)


@contextlib.contextmanager
def _alone(say: Say) -> Iterator[None]:
    with machine_lock(alone=True, waiting=lambda: say("waiting: another vitgs-bench works on this machine")):
        yield


@contextlib.contextmanager
def _of_head() -> Iterator[None]:
    """A head without a case of its own suite: the two don't belong together. One that can't run it: the answer is no. A base that fails: none."""
    try:
        yield
    except (Lacks, Fails) as error:
        if error.side == "base":
            raise
        if isinstance(error, Fails):
            raise AnswerIsNo(error.rule, given=error.given, remedy=error.remedy) from error
        raise UsageError(error.rule, given=error.given, remedy=error.remedy) from error


def _head(root: Path, cases: Sequence[GateCase]) -> Tree:
    return Tree(side="head", folder=root, python=sys.executable, threads=_threads(cases))


def _cores(cases: Sequence[GateCase]) -> tuple[int, ...]:
    return cores.quietest(_threads(cases)) if all(case.device == "cpu" for case in cases) else ()


def _threads(cases: Sequence[GateCase]) -> int:
    return max(case.threads for case in cases)


def _keep(place: Path, row: Mapping[str, Any]) -> None:
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    history.append(place / history.ROWS, {"at_utc": at, **row, "environment": machine.describe()})
