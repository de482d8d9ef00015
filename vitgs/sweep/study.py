"""The Optuna study of a suite, rebuilt from rows: which point to try next, and what it was worth.

A grid is a queue of all its points. A search (TPE, NSGA-II) suggests points of the same grid: first an entry of the suite, then its rule and knobs.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
import sqlalchemy
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage, get_storage
from optuna.trial import Trial, TrialState

from vitgs.errors import UsageError
from vitgs.record import Job, Record, digest
from vitgs.suite.plan import Planner, Point
from vitgs.suite.tables import OBJECTIVES, Suite

_PLACES = {
    "gmacs": ("cost_spread.mean", "cost.macs"),
    "latency_ms": ("latency_ms.value",),
    "clips_per_s": ("throughput_clips_per_s.value",),
    "peak_memory_bytes": ("memory.cuda_allocated_bytes.value", "memory.peak_live_bytes"),
    "energy_j": ("energy.gross_j_per_clip.value",),
}
_ASKS_PER_TRIAL = 20


class Trials:
    """The study and the points that it can propose. A trial stands for a point's jobs over all data and seeds."""

    def __init__(self, planner: Planner, ended: Mapping[str, Record], *, storage: BaseStorage | None = None) -> None:
        optuna.logging.set_verbosity(logging.ERROR)
        self._planner, self._suite = planner, planner.suite
        self._points = {digest(_params(point)): point for point in planner.points}
        self.study = optuna.create_study(
            storage=storage,
            study_name=f"{self._suite.name}-{planner.profile.name}",
            load_if_exists=True,
            directions=[OBJECTIVES[name] for name in self._suite.objectives],
            sampler=_sampler(self._suite, planner.points, ended),
        )
        told = {str(trial.user_attrs.get("point")) for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()}
        # The rows are the truth: a trial in a storage counts only while its rows are there.
        self._finished = {key for key in told if key in self._points and self._is_over(self._points[key], ended)}
        self._open: dict[str, Trial] = {}
        for key, point in self._points.items():
            if key not in self._finished and self._is_over(point, ended):
                self._add(key, point, ended)
        for key, point in self._points.items():
            if key not in self._finished and (self._suite.sampler == "grid" or self._has_begun(point, ended)):
                self.study.enqueue_trial(_params(point), user_attrs={"point": key}, skip_if_exists=True)

    def ask(self, count: int) -> list[Point]:
        """The next points to work on, at most `count`; a grid gives all that is left. None when the study is over."""
        wanted = len(self._points) if self._suite.sampler == "grid" else min(self._suite.trials, len(self._points))
        count = wanted if self._suite.sampler == "grid" else count
        for _ in range(count * _ASKS_PER_TRIAL):
            if len(self._open) >= min(count, wanted - len(self._finished)):
                break
            trial = self.study.ask()
            key = digest(self._suggest(trial))
            if key in self._finished or key in self._open:
                self.study.tell(trial, state=TrialState.FAIL)  # known already: its values are in the study
                continue
            trial.set_user_attr("point", key)
            self._open[key] = trial
        return [self._points[key] for key in self._open]

    def tell(self, ended: Mapping[str, Record]) -> None:
        """What the points that were asked for are worth, now that their rows are there."""
        for key, trial in self._open.items():
            values = self.values(self._points[key], ended)
            self.study.tell(trial, values, state=TrialState.COMPLETE if values else TrialState.FAIL)
            self._finished.add(key)
        self._open.clear()

    def values(self, point: Point, ended: Mapping[str, Record]) -> list[float] | None:
        """One value an objective; None when a job of the point gave none."""
        rows = [ended.get(job.id) for job in self._planner.jobs_of(point, ended)]
        found = [_objective(name, [row for row in rows if row is not None]) for name in self._suite.objectives]
        if not rows or any(row is None or row.status != "measured" for row in rows) or None in found:
            return None
        return [value for value in found if value is not None]

    def _suggest(self, trial: Trial) -> dict[str, Any]:
        """A point's parameters, chosen by the sampler one after the other."""
        candidates = [_params(point) for point in self._points.values()]
        chosen: dict[str, Any] = {}
        while rest := [name for name in candidates[0] if name not in chosen]:
            name = rest[0]
            chosen[name] = trial.suggest_categorical(name, _choices(name, [_params(point) for point in self._points.values()]))
            candidates = [params for params in candidates if params.get(name) == chosen[name]]
        return chosen

    def _add(self, key: str, point: Point, ended: Mapping[str, Record]) -> None:
        params, values = _params(point), self.values(point, ended)
        all_params = [_params(p) for p in self._points.values()]
        distributions: dict[str, BaseDistribution] = {name: CategoricalDistribution(_choices(name, all_params)) for name in params}
        state = TrialState.COMPLETE if values else TrialState.FAIL
        self.study.add_trial(
            optuna.trial.create_trial(state=state, values=values, params=params, distributions=distributions, user_attrs={"point": key})
        )
        self._finished.add(key)

    def _is_over(self, point: Point, ended: Mapping[str, Record]) -> bool:
        plan = self._planner.plan([point], ended)
        return plan.complete and all(job.id in ended for job in plan.jobs)

    def _has_begun(self, point: Point, ended: Mapping[str, Record]) -> bool:
        return any(job.id in ended for job in self._planner.jobs_of(point, ended) if job.kind == "eval")


def _params(point: Point) -> dict[str, Any]:
    """A point as Optuna knows it: only what its entry varies, under names of the entry's own."""
    varied = {name: value for name, value in {**point.knobs, **point.run}.items() if name in {**point.entry.build, **point.entry.run}}
    return {"system": point.label, f"{point.label}: rule": point.rule, **{f"{point.label}: {name}": value for name, value in varied.items()}}


def _choices(name: str, all_params: Sequence[Mapping[str, Any]]) -> list[Any]:
    return list(dict.fromkeys(params[name] for params in all_params if name in params))


def _sampler(suite: Suite, points: Sequence[Point], ended: Mapping[str, Record]) -> optuna.samplers.BaseSampler:
    seed = suite.seed + len(ended)  # a search that is resumed must not repeat its first guesses
    if suite.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed)
    if suite.sampler == "nsga2":
        return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, min(50, len(points))))
    return optuna.samplers.RandomSampler(seed=seed)  # never asked: every trial of a grid is in the queue


def _objective(name: str, rows: Sequence[Record]) -> float | None:
    if name == "top1":
        values = [row.result["top1"]["value"] for row in rows if row.job.kind == "eval" and row.status == "measured"]
    else:
        costs: list[tuple[Job, Any]] = [
            (row.job, _read(row, _PLACES[name])) for row in rows if row.job.kind == "measure" and row.status == "measured"
        ]
        values = [value for _, value in costs]
    if not values or any(value is None for value in values):
        return None
    return statistics.fmean(values) / (1e9 if name == "gmacs" else 1.0)


def _read(row: Record, places: Sequence[str]) -> float | None:
    for place in places:
        value: Any = row.result
        for step in place.split("."):
            value = value.get(step) if isinstance(value, Mapping) else None
        if isinstance(value, (int, float)):
            return float(value)
    return None


def database(url: str | None) -> BaseStorage | None:
    """Opens the study's database of that URL, which may hold a password: only its kind is told."""
    if url is None:
        return None
    try:
        return get_storage(url)
    except (ImportError, ValueError, sqlalchemy.exc.SQLAlchemyError) as error:
        given = f"{url.partition('://')[0]}: {type(error).__name__}"
        remedy = "write, say, postgresql://host/study, make its folder, or install its driver"
        raise UsageError("--storage must be a database that can be opened", given=given, remedy=remedy) from error
