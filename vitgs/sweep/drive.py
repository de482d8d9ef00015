"""The sweep itself: start, tune, train and evaluate side by side, then measure alone. Kill it at any moment; the same command goes on.

Each job's row is on the disk before the job counts as done, so that a sweep knows from the file alone what is left. Only this process writes rows;
the jobs run in processes of their own, which end with it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from vitgs import folders, run
from vitgs.errors import BrokenOff, UsageError, VitgsError
from vitgs.executor.local import Died, LocalExecutor, cores
from vitgs.measure import machine
from vitgs.record import Job, Record
from vitgs.store.code import code_version
from vitgs.store.records import write_beside
from vitgs.suite import Profile, load_profile, load_suite
from vitgs.suite.plan import Plan, Planner, Point, planner
from vitgs.sweep.ledger import CONTAMINATED, MOST_TRIES, Ledger, only_sweep
from vitgs.sweep.progress import Bar, label
from vitgs.sweep.study import Trials, database

EXECUTORS = ("local", "ray", "slurm")
PRELOAD = ("vitgs.executor.warm",)
_VOLATILE = ("threads", "load_1min", "git_commit", "git_dirty")


@dataclass(frozen=True, kw_only=True)
class Summary:
    """`done`: rows written now; `kept`: rows that were there before; `measured`: how many of all hold a result; `failed`, `skipped`: (job, reason)
    of those that don't."""

    file: Path
    done: int
    kept: int
    measured: int
    failed: tuple[tuple[str, str], ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """What `sweep --json` prints."""
        lost = {name: [{"job": job, "reason": reason} for job, reason in rows] for name, rows in (("failed", self.failed), ("skipped", self.skipped))}
        return {
            "file": folders.portable(self.file),
            "done": self.done,
            "kept": self.kept,
            "measured": self.measured,
            **lost,
            "seconds": round(self.seconds, 1),
        }


def run_sweep(
    suite_name: str,
    *,
    profile: str | None = None,
    data: Sequence[str] = (),
    models: Sequence[str] = (),
    seeds: int | None = None,
    out: Path | None = None,
    workers: int | None = None,
    executor: str = "local",
    storage: str | None = None,
    retry_failed: bool = False,
    device: str = "cpu",
    console: Console | None = None,
) -> Summary:
    """Runs or resumes a suite until every job has a row. `out`: the root of the results; `workers`: jobs that train side by side (one a core).

    Raises `UsageError`, `BrokenOff` (a full disk), or `KeyboardInterrupt` after ending what runs.
    """
    started = time.perf_counter()
    suite = load_suite(suite_name)
    chosen = load_profile(profile or suite.profile)
    _check(executor, workers)
    names = [name if name.startswith("digits:") else folders.portable(Path(name)) for name in data]
    plans = planner(suite, chosen, models=models, seeds=seeds, data=names, threads=cores(), device=device)
    opened = database(storage)
    file = (out or folders.results()) / machine.slug() / f"{suite.name}.jsonl"
    with only_sweep(file):
        ledger = Ledger(file, retry_failed=retry_failed)
        described = file.with_name("machine.json")
        if not described.is_file():
            about = {name: value for name, value in machine.describe().items() if name not in _VOLATILE}
            write_beside(described, json.dumps(about, indent=1) + "\n")
        with Bar(console or Console(stderr=True), f"sweep {suite.name}") as bar:
            for place in ledger.cut:
                bar.say(f"{folders.portable(Path(place))}: cut while it was written; its job is done again")
            sweep = _Sweep(plans=plans, ledger=ledger, bar=bar, profile=chosen, workers=workers or (1 if device.startswith("cuda") else cores()))
            try:
                sweep.work(Trials(plans, ledger.ended, storage=opened))
            finally:
                sweep.close()
    rows = [ledger.ended[job_id] for job_id in sweep.concerned if job_id in ledger.ended]
    kept = sum(row.job.id not in sweep.worked for row in rows)
    failed, skipped = (tuple((label(r.job), r.reason) for r in rows if r.status == status) for status in ("failed", "skipped"))
    measured = sum(row.status == "measured" for row in rows)
    seconds = time.perf_counter() - started
    return Summary(file=file, done=sweep.written, kept=kept, measured=measured, failed=failed, skipped=skipped, seconds=seconds)


def _check(executor: str, workers: int | None) -> None:
    if executor not in EXECUTORS:
        raise UsageError(f"--executor must be one of {', '.join(EXECUTORS)}", given=repr(executor), remedy="name one of these")
    if executor != "local":
        raise UsageError(
            "--executor must be one that this version can drive",
            given=executor,
            remedy="use local: sweeps beyond one machine are not in this version",
        )
    if workers is not None and workers < 1:
        raise UsageError("--workers must be at least 1", given=workers, remedy="give how many jobs may train side by side")


@dataclass(kw_only=True)
class _Sweep:
    """The state of one run. `concerned`: all jobs of the plan by id; `worked`: ids of those that got a row now.

    `unrestored`: trainings whose lost weights could not be made again, and why.
    """

    plans: Planner
    ledger: Ledger
    bar: Bar
    profile: Profile
    workers: int
    written: int = 0
    concerned: dict[str, Job] = field(default_factory=dict)
    worked: set[str] = field(default_factory=set)
    unrestored: dict[str, str] = field(default_factory=dict)
    _lanes: dict[bool, LocalExecutor] = field(default_factory=dict)
    _busy: set[str] = field(default_factory=set)
    _started: set[str] = field(default_factory=set)

    def work(self, trials: Trials) -> None:
        """Until the study has no more points and every job of its points has a row."""
        finished = self.plans.points if self.plans.suite.sampler == "grid" else ()
        self._plan(finished)
        while points := trials.ask(self.workers):
            while todo := self._todo(points):
                side_by_side = [job for job in todo if job.kind != "measure"]
                # Measuring comes last: it needs the machine alone, so the lanes take turns as rarely as they can.
                self._run(side_by_side or todo, alone=not side_by_side)
            trials.tell(self.ledger.ended)

    def close(self) -> None:
        """Ends whatever still runs."""
        for lane in self._lanes.values():
            lane.shutdown(cancel_futures=True)

    def _plan(self, points: Sequence[Point]) -> Plan:
        plan = self.plans.plan(points, self.ledger.ended)
        self.concerned.update({job.id: job for job in plan.jobs})
        return plan

    def _todo(self, points: Sequence[Point]) -> list[Job]:
        todo = [job for job in self._plan(points).jobs if job.id not in self.ledger.ended]
        return sorted(todo, key=self.ledger.tries)  # what others spoilt comes again after all that waits: by then they may have gone

    def _lane(self, alone: bool) -> LocalExecutor:
        if alone not in self._lanes:
            waiting = lambda: self.bar.say("waiting: another command has the machine, and measuring needs it alone")  # noqa: E731
            self._lanes[alone] = LocalExecutor(1 if alone else self.workers, alone=alone, preload=PRELOAD, waiting=waiting)
        return self._lanes[alone]

    def _run(self, jobs: Sequence[Job], *, alone: bool) -> None:
        """Works off `jobs`: an eval job once its weights are there, and as few at a time as there are workers, so that later rows can decide."""
        lane, width = self._lane(alone), 1 if alone else self.workers
        for size in dict.fromkeys(job.size for job in jobs if job.kind == "train" and job.start == "shared"):
            self._make_start(lane, size)
        pending, running = {job.id: job for job in jobs}, dict[Future[Record], tuple[Job, bool]]()
        while pending or running:
            for job in list(pending.values()):
                if len(running) >= width:
                    break
                self._begin(job, pending, running, lane)
            self._tell()
            for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                job, restores = running.pop(future)
                self._busy.discard(job.id)
                record = self._record(job, future)
                if not restores:
                    self._add(record)
                elif record.status != "measured":
                    self.unrestored[job.id] = record.reason

    def _tell(self) -> None:
        """How far the whole plan is, and not only this stage of it: what measures takes its turn alone, the rest goes side by side."""
        left = [job for job_id, job in self.concerned.items() if job_id not in self.ledger.ended]
        left_s = sum(self.ledger.expected_s(job) / (1 if job.kind == "measure" else self.workers) for job in left)
        self.bar.expect(len(self.concerned) - len(left), len(self.concerned), left_s)

    def _begin(self, job: Job, pending: dict[str, Job], running: dict[Future[Record], tuple[Job, bool]], lane: LocalExecutor) -> None:
        """Starts a job, or its training if only the weights of that are lost, or does nothing while it must wait."""
        train_id, restores = str(job.options.get("train_job", "")), False
        if train_id in pending or train_id in self._busy:
            return
        if job.kind == "eval":
            train = self.ledger.ended.get(train_id)
            reason = self.unrestored.get(train_id) or (train.reason if train is not None and train.status != "measured" else "")
            if train is None or reason:
                del pending[job.id]
                self._add(self._lost(job, "skipped", f"its training gave no weights: {reason or 'no row'}"))
                return
            if not run.checkpoint_file(job.system, train_id).is_file():
                job, restores = train.job, True
        if not restores:
            del pending[job.id]
        limit_s = {"train": self.profile.limits.train_s, "eval": self.profile.limits.eval_s, "measure": self.profile.limits.measure_s}[job.kind]
        future = lane.submit_limited(limit_s, run.execute, job, attempt=self.ledger.next_attempt(job), results_folder=self.ledger.file.parent)
        running[future] = (job, restores)
        self._busy.add(job.id)

    def _record(self, job: Job, future: Future[Record]) -> Record:
        try:
            return future.result()
        except BrokenOff:
            raise
        except (VitgsError, RuntimeError, MemoryError) as error:  # the process died, or its time was over
            flags = ("oom",) if isinstance(error, MemoryError) or (isinstance(error, Died) and error.oom) else ()
            return replace(self._lost(job, "failed", " ".join(str(error).split())), flags=flags)

    def _lost(self, job: Job, status: Any, reason: str) -> Record:
        """The row of a job that could not write its own."""
        version = code_version(job.system, job.kind)
        record = Record(
            job=job, attempt=self.ledger.next_attempt(job), status=status, reason=reason, code_version=version, environment=machine.describe()
        )
        return run.replayable(record)

    def _add(self, record: Record) -> None:
        self.ledger.add(record)
        self.written += 1
        self.worked.add(record.job.id)
        self.bar.row(record)
        if record.job.id not in self.ledger.ended:
            why = (
                f"{CONTAMINATED}, others used the machine meanwhile"
                if CONTAMINATED in record.flags
                else "this try of a contaminated job gave nothing"
            )
            self.bar.say(f"{label(record.job)}: {why}; it waits for try {self.ledger.tries(record.job) + 1} of {MOST_TRIES}")

    def _make_start(self, lane: LocalExecutor, size: str) -> None:
        """The shared image weights first, with all cores: every training would wait for them."""
        if size in self._started:
            return
        self._started.add(size)
        profile = self.profile
        self.bar.say(f"start: image weights of size {size} from still digits (made once, then kept)")
        args = (size, profile.style, profile.height, profile.width, profile.start.steps)
        try:
            lane.submit_limited(profile.limits.train_s, run.image_start, *args, threads=cores()).result()
        except BrokenOff:
            raise
        except (VitgsError, RuntimeError, MemoryError) as error:  # each training will say the same in its row
            self.bar.say(f"start failed: {error}")
