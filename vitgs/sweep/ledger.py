"""The rows of one suite on one machine, and which of them count: measured by the present code, else the latest failure."""

from __future__ import annotations

import contextlib
import fcntl
import statistics
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from vitgs import folders
from vitgs.errors import UsageError
from vitgs.record import Job, Kind, Record, digest
from vitgs.store.code import code_version
from vitgs.store.records import append, read_all

# Before there are any rows to learn from.
_FIRST_GUESS_S: dict[Kind, float] = {"train": 30.0, "eval": 3.0, "measure": 10.0}


class Ledger:
    """`ended`: the row that counts, for every job that needs no more work. `cut`: lines of the file that were cut while being written."""

    def __init__(self, file: Path, *, retry_failed: bool) -> None:
        self.file = file
        contents = read_all(file)
        self.cut = contents.cut
        self._attempts: dict[str, int] = {}
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)
        self.ended: dict[str, Record] = {}
        for record in contents.records:
            self._learn(record)
            counts = record.code_version == code_version(record.job.system, record.job.kind) if _known(record.job.system) else False
            if counts and not (retry_failed and record.status != "measured") and not self._is_measured(record.job.id):
                self.ended[record.job.id] = record
        self.kept = len(self.ended)
        # What was skipped because its training failed can go on once that has been done.
        for record in list(self.ended.values()):
            train = self.ended.get(str(record.job.options.get("train_job", "")))
            if record.status == "skipped" and (train is None or train.status == "measured"):
                del self.ended[record.job.id]

    def next_attempt(self, job: Job) -> int:
        """1 for a job that was never tried."""
        return self._attempts.get(job.id, 0) + 1

    def add(self, record: Record) -> None:
        """A new row, on the disk when this returns."""
        append(self.file, record)
        self._learn(record)
        self.ended[record.job.id] = record

    def expected_s(self, job: Job) -> float:
        """How long it will take, from rows of the same system, or of the same kind."""
        for key in ((job.profile, job.kind, job.system), (job.profile, job.kind)):
            if known := self._seconds.get(key):
                return statistics.fmean(known[-20:])
        return _FIRST_GUESS_S[job.kind]

    def _learn(self, record: Record) -> None:
        job = record.job
        self._attempts[job.id] = max(self._attempts.get(job.id, 0), record.attempt)
        if record.status == "measured":
            for key in ((job.profile, job.kind, job.system), (job.profile, job.kind)):
                self._seconds[key].append(record.seconds)

    def _is_measured(self, job_id: str) -> bool:
        return job_id in self.ended and self.ended[job_id].status == "measured"


def _known(system: str) -> bool:
    """Whether a system of an older row still exists."""
    try:
        code_version(system, "train")
    except UsageError:
        return False
    return True


@contextlib.contextmanager
def only_sweep(file: Path) -> Iterator[None]:
    """Two sweeps of one results file would do each other's jobs again."""
    folder = folders.cache() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{digest(str(file.resolve()))}.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            rule = "one sweep at a time may write a results file"
            raise UsageError(rule, given=f"{folders.portable(file)} has one", remedy="wait for it, or give another folder with --out") from error
        yield
