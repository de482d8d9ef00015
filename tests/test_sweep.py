"""A sweep gives every job one row, whatever happens to the jobs, to the files or to the sweep itself."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vitgs import run
from vitgs.errors import BrokenOff, UsageError
from vitgs.executor.local import Died, cores
from vitgs.record import Job, Record
from vitgs.report.reading import newest
from vitgs.store import code, same
from vitgs.store.code import code_version
from vitgs.store.records import append, read, read_all
from vitgs.suite import load_profile, load_suite
from vitgs.suite.plan import planner
from vitgs.sweep import Summary, drive, ledger, run_sweep
from vitgs.sweep.ledger import MOST_TRIES, Ledger
from vitgs.sweep.progress import Bar
from vitgs.sweep.study import Trials

SUITE = """
[[systems]]
name = "vit_mean"
[[systems]]
name = "uniform_frames"
run = { budget = [1.0, 0.5] }
"""
PROFILE = """
size = "test"
frames = 2
data = ["digits:appearance"]
seeds = 2
[train]
steps = 4
batch = 2
evaluations = 1
val_clips = 10
[start]
weights = "none"
[evaluate]
val_clips = 20
test_clips = 20
[measure]
batch = 1
seconds = 0.05
target = 0.5
"""
JOBS = 4 + 12 + 3
Answer = Callable[[Job], Record]


class InPlace(Executor):
    """Does each job at once, in this process."""

    def __init__(self, *_: object, **__: object) -> None:
        self.submitted: list[Job] = []

    def submit_limited(self, limit_s: float | None, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        assert limit_s
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except (Exception, KeyboardInterrupt) as error:
            future.set_exception(error)
        return future


class Bench:
    """A suite and a profile in a folder of their own, and a sweep over them with jobs that are answered, not done."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.done, self.answer = folder, list[Job](), self.measured
        (folder / "mine.toml").write_text(SUITE)
        (folder / "short.toml").write_text(PROFILE)
        monkeypatch.setenv("VITGS_CACHE", str(folder / "cache"))
        monkeypatch.setattr(drive, "LocalExecutor", InPlace)
        monkeypatch.setattr(run, "execute", self._execute)

    def _execute(self, job: Job, *, attempt: int, results_folder: Path) -> Record:
        assert results_folder.is_dir()
        self.done.append(job)
        record = self.answer(job)
        return Record(**{**{name: getattr(record, name) for name in record.__dataclass_fields__}, "attempt": attempt})

    def measured(self, job: Job) -> Record:
        result: dict[str, Any] = {"top1": {"value": 0.5}, "latency_ms": {"value": 2.0}, "cost": {"macs": 5e9}, "core_seconds": 3.0}
        if job.kind == "train":
            file = run.checkpoint_file(job.system, job.id)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        return Record(job=job, attempt=1, status="measured", result=result, code_version=code_version(job.system, job.kind), seconds=1.0)

    def failed(self, job: Job) -> Record:
        return Record(job=job, attempt=1, status="failed", reason="no luck", code_version=code_version(job.system, job.kind))

    def sweep(self, **options: Any) -> Summary:
        self.done.clear()
        console = Console(file=io.StringIO(), width=200)
        return run_sweep(str(self.folder / "mine.toml"), profile=str(self.folder / "short.toml"), out=self.folder / "out", console=console, **options)

    @property
    def file(self) -> Path:
        return next((self.folder / "out").glob("*/mine.jsonl"))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


def test_every_job_gets_one_row_and_the_next_sweep_has_nothing_to_do(bench: Bench) -> None:
    summary = bench.sweep()
    assert (summary.done, summary.kept, summary.failed, summary.skipped) == (JOBS, 0, (), ())
    rows = read(bench.file)
    assert Counter(row.job.kind for row in rows) == {"train": 4, "eval": 12, "measure": 3}
    assert len({row.job.id for row in rows}) == JOBS
    assert [row.job.kind == "measure" for row in rows] == [False] * 16 + [True] * 3
    assert json.loads((bench.file.parent / "machine.json").read_text())["cpu"]
    before = bench.file.read_bytes()
    summary = bench.sweep()
    assert (summary.done, summary.kept, bench.done) == (0, JOBS, [])
    assert bench.file.read_bytes() == before


def test_the_time_left_holds_what_is_measured_afterwards(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, int, float]] = []
    monkeypatch.setattr(Bar, "expect", lambda _, *state: told.append(state))
    bench.sweep()
    assert {total for _, total, _ in told} == {JOBS}
    assert all(left_s > 3 * 9.0 for done, _, left_s in told if done < 16)  # before anything was measured a measure job is taken to last ten seconds
    assert told[-1][2] < 9.0


def test_a_failed_training_skips_its_evaluations_and_nothing_else(bench: Bench) -> None:
    bench.answer = lambda job: bench.failed(job) if (job.kind, job.system, job.seed) == ("train", "vit_mean", 1) else bench.measured(job)
    summary = bench.sweep()
    assert (summary.done, len(summary.failed), len(summary.skipped)) == (JOBS, 1, 2)
    assert "no luck" in summary.skipped[0][1]
    assert bench.sweep().done == 0
    bench.answer = bench.measured
    summary = bench.sweep(retry_failed=True)
    assert (summary.done, summary.failed, summary.skipped) == (3, (), ())
    assert Counter(row.attempt for row in read(bench.file)) == {1: JOBS, 2: 3}


class Busy:
    """Answers measure jobs of a machine that others use: the first `spoilt` tries of each job are contaminated."""

    def __init__(self, bench: Bench, spoilt: int, system: str = "vit_mean") -> None:
        self.bench, self.spoilt, self.system, self.tried = bench, spoilt, system, Counter[str]()

    def __call__(self, job: Job) -> Record:
        record = self.bench.measured(job)
        if job.kind != "measure" or job.system != self.system:
            return record
        self.tried[job.id] += 1
        return replace(record, flags=("unstable", "contaminated") if self.tried[job.id] <= self.spoilt else ())


@pytest.mark.parametrize(("spoilt", "tries"), [(1, 2), (2, 3), (9, 3)])
def test_a_contaminated_job_is_queued_again_at_most_twice(bench: Bench, spoilt: int, tries: int) -> None:
    bench.answer = Busy(bench, spoilt)
    summary = bench.sweep()
    assert (summary.done, summary.kept, summary.failed) == (JOBS + tries - 1, 0, ())
    measured = [job for job in bench.done if job.kind == "measure"]
    assert [job.system for job in measured] == ["vit_mean"] + 2 * ["uniform_frames"] + (tries - 1) * ["vit_mean"], "after the others that wait"
    rows = [row for row in read(bench.file) if row.job == measured[0]]
    assert [row.attempt for row in rows] == list(range(1, tries + 1))
    assert ["contaminated" in row.flags for row in rows] == [n < spoilt for n in range(tries)]
    assert newest(rows, None)[measured[0].id] == rows[-1]
    assert Ledger(bench.file, retry_failed=False).ended[measured[0].id] == rows[-1]
    assert bench.sweep().done == 0, "neither lost nor begun anew"


def test_only_timings_are_spoilt_by_others(bench: Bench) -> None:
    bench.answer = lambda job: replace(bench.measured(job), flags=("unstable", *(["contaminated"] if job.kind == "train" else [])))
    assert bench.sweep().done == JOBS


@pytest.mark.parametrize("kept_tries", [1, 2, 3])
def test_a_killed_sweep_counts_on_where_it_was(bench: Bench, kept_tries: int) -> None:
    def killed(job: Job) -> Record:
        if busy.tried.total() == kept_tries and job.system == "vit_mean" and job.kind == "measure":
            raise KeyboardInterrupt
        return busy(job)

    busy = Busy(bench, 9)
    bench.answer = killed
    if kept_tries < 3:
        with pytest.raises(KeyboardInterrupt):
            bench.sweep()
    else:
        bench.sweep()
    bench.answer = busy
    assert bench.sweep().done == 3 - kept_tries
    rows = [row for row in read(bench.file) if row.job.kind == "measure"]
    assert Counter((row.job.system, row.attempt) for row in rows) == {
        ("vit_mean", 1): 1,
        ("vit_mean", 2): 1,
        ("vit_mean", 3): 1,
        ("uniform_frames", 1): 2,
    }
    assert len({row.id for row in rows}) == len(rows)


def test_a_try_that_dies_is_a_try_and_the_contaminated_row_counts(bench: Bench) -> None:
    busy = Busy(bench, 1)

    def answer(job: Job) -> Record:
        if job.kind == "measure" and busy.tried[job.id] == 1:
            busy.tried[job.id] += 1
            raise Died("a job's process must live until its answer", given="SIGKILL", remedy="look")
        return busy(job) if busy.tried[job.id] < 2 else bench.failed(job)

    bench.answer = answer
    summary = bench.sweep()
    assert (summary.done, summary.failed) == (JOBS + 2, ())
    assert bench.sweep(retry_failed=True).done == 0
    assert [row.status for row in read(bench.file) if row.job.kind == "measure" and row.job.system == "vit_mean"] == ["measured", "failed", "failed"]


def test_a_process_that_dies_is_a_failed_row(bench: Bench) -> None:
    def die(job: Job) -> Record:
        if job.kind == "measure":
            raise Died("a job's process must live until its answer", given="SIGSEGV", remedy="look")
        return bench.measured(job)

    bench.answer = die
    summary = bench.sweep()
    assert (summary.done, len(summary.failed)) == (JOBS, 3)
    assert "SIGSEGV" in read(bench.file)[-1].reason


def test_changed_code_makes_rows_stale_and_they_stay(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.sweep()

    def changed(system: str, kind: Any) -> str:
        return code.code_version(system, kind) + ("!" if system == "vit_mean" else "")

    for module in (ledger, drive, run, sys.modules[__name__]):
        monkeypatch.setattr(module, "code_version", changed)
    summary = bench.sweep()
    assert {job.system for job in bench.done} == {"vit_mean"}
    assert (summary.done, summary.kept) == (2 + 4 + 1, 4 * 2 + 2 + 2)
    assert len(read(bench.file)) == JOBS + 7


def test_code_that_was_shown_to_give_the_same_rows_goes_on_from_them(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.sweep()

    def faster(system: str, kind: Any) -> str:
        return code.code_version(system, kind) + ("!" if system == "vit_mean" and kind == "train" else "")

    for module in (ledger, drive, run, sys.modules[__name__]):
        monkeypatch.setattr(module, "code_version", faster)
    older = code.code_version("vit_mean", "train")
    monkeypatch.setattr(same, "SAME", {older + "!": older})
    assert bench.sweep().done == 0


def test_a_full_disk_stops_the_sweep_and_the_same_command_goes_on(bench: Bench) -> None:
    def full(job: Job) -> Record:
        if len(bench.done) > 5:
            raise BrokenOff("results must fit on the disk", given="full", remedy="free space, then run the same command again")
        return bench.measured(job)

    bench.answer = full
    with pytest.raises(BrokenOff):
        bench.sweep(workers=1)
    assert len(read(bench.file)) == 5
    bench.answer = bench.measured
    assert bench.sweep().done == JOBS - 5


def test_an_interrupt_leaves_whole_rows(bench: Bench) -> None:
    def interrupt(job: Job) -> Record:
        if len(bench.done) > 3:
            raise KeyboardInterrupt
        return bench.measured(job)

    bench.answer = interrupt
    with pytest.raises(KeyboardInterrupt):
        bench.sweep(workers=1)
    assert len(read(bench.file)) == 3


def test_lost_weights_are_trained_again_without_a_second_row(bench: Bench) -> None:
    bench.answer = lambda job: bench.failed(job) if job.kind == "eval" else bench.measured(job)
    bench.sweep()
    for file in (bench.folder / "cache" / "checkpoints").iterdir():
        file.unlink()
    bench.answer = bench.measured
    assert bench.sweep(retry_failed=True).done == 12
    assert Counter(job.kind for job in bench.done) == {"train": 4, "eval": 12}
    rows = read(bench.file)
    assert max(Counter(row.job.id for row in rows if row.status == "measured").values()) == 1


def test_one_sweep_at_a_time(bench: Bench) -> None:
    bench.sweep()
    with ledger.only_sweep(bench.file), pytest.raises(UsageError, match="one sweep at a time"):
        bench.sweep()


def test_a_cut_line_is_told_and_its_job_done_again(bench: Bench) -> None:
    bench.sweep()
    bench.file.write_bytes(bench.file.read_bytes()[:-20])
    assert bench.sweep().done == 1
    assert len(read_all(bench.file).cut) == 1
    assert bench.sweep().done == 0


@pytest.mark.parametrize(
    ("options", "expected"), [({"executor": "ray"}, "use local"), ({"executor": "x"}, "one of local"), ({"workers": 0}, "at least 1")]
)
def test_wrong_options_are_refused(bench: Bench, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(UsageError, match=expected):
        bench.sweep(**options)


def test_the_study_is_rebuilt_from_rows(bench: Bench) -> None:
    bench.answer = lambda job: bench.failed(job) if (job.kind, job.run.get("budget")) == ("eval", 0.5) else bench.measured(job)
    bench.sweep()
    plans = planner(load_suite(str(bench.folder / "mine.toml")), load_profile(str(bench.folder / "short.toml")), threads=cores())
    trials = Trials(plans, {row.job.id: row for row in read(bench.file)})
    found = {(t.params["system"], t.params.get("uniform_frames: budget")): t.values for t in trials.study.trials}
    assert found == {("vit_mean", None): [0.5, 5.0], ("uniform_frames", 1.0): [0.5, 5.0], ("uniform_frames", 0.5): None}
    assert trials.ask(1) == []


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_search_takes_as_many_points_as_it_may(bench: Bench, sampler: str) -> None:
    bench.folder.joinpath("mine.toml").write_text(f'sampler = "{sampler}"\ntrials = 3\n{SUITE.replace("[1.0, 0.5]", "[1.0, 0.5, 0.25, 0.125]")}')
    assert bench.sweep(workers=1, storage=f"sqlite:///{bench.folder}/study.db").failed == ()
    points = {(row.job.system, str(row.job.run)) for row in read(bench.file) if row.job.kind == "measure"}
    assert len(points) == 3
    assert bench.sweep(workers=1, storage=f"sqlite:///{bench.folder}/study.db").done == 0
    assert bench.sweep(workers=1).done == 0


COMMAND = """
import sys
from pathlib import Path
from vitgs.sweep import run_sweep

if __name__ == "__main__":
    run_sweep(sys.argv[1], profile=sys.argv[2], out=Path(sys.argv[3]), models=["vit_mean"])
"""


def test_killed_in_the_middle_it_goes_on(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(SUITE)
    (tmp_path / "short.toml").write_text(PROFILE)
    (tmp_path / "command.py").write_text(COMMAND)
    root = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "VITGS_CACHE": str(tmp_path / "cache"), "TMPDIR": str(tmp_path), "PYTHONPATH": str(root)}
    command = [sys.executable, str(tmp_path / "command.py"), str(tmp_path / "mine.toml"), str(tmp_path / "short.toml"), str(tmp_path / "out")]
    first = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (files := list((tmp_path / "out").glob("*/mine.jsonl"))) or files[0].read_bytes().count(b"\n") < 2:
        assert first.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    before = files[0].read_bytes()
    second = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert second.returncode == 0, second.stderr
    after = files[0].read_bytes()
    assert after.startswith(before)
    rows = read(files[0])
    assert {row.status for row in rows} == {"measured"}
    assert len({row.job.id for row in rows}) == 2 + 4 + 1
    counted = [row for row in rows if "contaminated" not in row.flags or row.attempt == MOST_TRIES]  # on a busy machine the one timing is tried again
    assert len(counted) == 2 + 4 + 1
    assert len({row.id for row in rows}) == len(rows)
    assert json.loads((files[0].parent / f"groups-{next(r for r in rows if r.job.kind == 'eval').result['groups']}.json").read_text())["groups"]


def test_appending_while_another_reads(tmp_path: Path, bench: Bench) -> None:
    bench.sweep()
    rows = read(bench.file)
    append(tmp_path / "copy.jsonl", rows[0])
    assert read(tmp_path / "copy.jsonl") == [rows[0]]
