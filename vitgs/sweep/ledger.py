"""The rows of one suite on one machine, and which of them count: measured by the present code, else the latest failure.

Of a job that was measured while others used the machine, every row stays, and the job is done again until a row is clean or three were tried.
"""

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
from vitgs.store.same import settled

# Before there are any rows to learn from.
_FIRST_GUESS_S: dict[Kind, float] = {"train": 30.0, "eval": 3.0, "measure": 10.0}
CONTAMINATED = "contaminated"
MOST_TRIES = 3  # a job whose row is contaminated is queued again, at most twice


class Ledger:
    """`ended`: the row that counts, for every job that needs no more work; a contaminated job is not among them while it may be tried again.

    `cut`: lines of the file that were cut while being written.
    """

    def __init__(self, file: Path, *, retry_failed: bool) -> None:
        self.file = file
        contents = read_all(file)
        self.cut = contents.cut
        self._attempts: dict[str, int] = {}
        self._seconds: dict[tuple[str, ...], list[float]] = defaultdict(list)
        # Per job, its rows by the present code since the first contaminated one: a sweep that was killed counts on where it was.
        self._tries: dict[str, list[Record]] = {}
        self.ended: dict[str, Record] = {}
        for record in contents.records:
            self._learn(record)
            counts = _known(record.job.system) and settled(record.code_version) == settled(code_version(record.job.system, record.job.kind))
            if counts and not (retry_failed and record.status != "measured" and record.job.id not in self._tries):
                self._settle(record)
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
        self._settle(record)

    def tries(self, job: Job) -> int:
        """How often the job was tried since others first spoilt it: 0 for one that never was contaminated."""
        return len(self._tries.get(job.id, ()))

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

    def _settle(self, record: Record) -> None:
        """Takes a row of the present code into account: the first clean measurement counts, else the last contaminated one, else the last failure."""
        job_id = record.job.id
        before = self.ended.get(job_id)
        if before is not None and before.status == "measured":
            return
        if job_id not in self._tries and not _is_contaminated(record):
            self.ended[job_id] = record
            return
        tried = self._tries.setdefault(job_id, [])
        tried.append(record)
        self.ended.pop(job_id, None)  # a failure before it
        if record.status == "measured" and not _is_contaminated(record):
            self.ended[job_id] = record
        elif len(tried) >= MOST_TRIES:
            self.ended[job_id] = [row for row in tried if row.status == "measured"][-1]


def _is_contaminated(record: Record) -> bool:
    return record.job.kind == "measure" and record.status == "measured" and CONTAMINATED in record.flags


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
