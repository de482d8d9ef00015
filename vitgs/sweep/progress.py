"""How far a sweep is: a bar with the time left on a terminal, one line a job elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from vitgs import registry
from vitgs.errors import VitgsError
from vitgs.numbers import quantity
from vitgs.record import Job, Record


def label(job: Job) -> str:
    """What a job is, for people: only the knobs that aren't at their defaults."""
    try:
        space = registry.get(job.system).space
    except VitgsError:
        return job.label
    build = {name: value for name, value in job.knobs.items() if name not in space or value != space[name].default}
    knobs = ", ".join(f"{name}={value}" for name, value in {**build, **job.run}.items())
    rule = "" if job.rule == "none" else job.rule
    words = [job.kind, f"{job.system}({knobs})" if knobs else job.system, rule, job.data, str(job.options.get("split", ""))]
    words += [f"lr {job.options['trial_lr']:g}"] if "trial_lr" in job.options else []
    words += ["at equal core-seconds"] if "equal" in job.options else []
    return " ".join(filter(None, words)) + (f" seed {job.seed}" if job.kind != "measure" else "")


class Bar:
    """Counts jobs and weighs them by the seconds that they are expected to take."""

    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._done, self._total, self._left_s = 0, 0, 0.0

    def __enter__(self) -> Bar:
        if self._console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.fields[left]}"))
            self._progress = Progress(*columns, console=self._console)
            self._progress.start()
            self._task = self._progress.add_task(escape(self._title), total=None, left="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()

    def expect(self, done: int, total: int, left_s: float) -> None:
        """The state of the work: jobs with a row, jobs known by now, seconds still to go."""
        self._done, self._total, self._left_s = done, total, left_s
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=done, total=total, left=self._left())

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    def row(self, record: Record) -> None:
        """A job has its row. Failures are always told; the rest only where there is no bar."""
        self._done += 1
        if record.status != "measured":
            self.say(f"{record.status}: {label(record.job)}: {record.reason}")
        elif self._progress is None:
            self.say(f"[{self._done}/{self._total}] {label(record.job)}: {quantity(record.seconds, 's')}, {self._left()}")

    def _left(self) -> str:
        return f"about {quantity(self._left_s, 's', 2)} left" if self._left_s else ""
