"""From a suite, a profile and the rows there are to the jobs that they ask for. A pure function: called again after each phase, it plans the next.

Tuning comes first: every entry of the suite tries the same learning rates at its first point, by val accuracy. Final jobs follow once an entry's
rate is known, and the jobs at equal core-seconds once `joint` has told how many those are.

A cell is (system, build knobs, rule, data, seed): one training, evaluated at each point of the run knobs on val and on test. Costs don't depend on
weights, so a point is measured once, or once a data set where the cost depends on content.
"""

from __future__ import annotations

import os
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from typing import Any

from vitgs import registry
from vitgs.data import open_data
from vitgs.errors import UsageError
from vitgs.record import Clip, Job, Record
from vitgs.spec import Knob, System
from vitgs.suite.tables import Profile, Rule, Suite, SystemEntry
from vitgs.train.recipe import Recipe, recipe_from

ANCHOR, REFERENCE = "vit_mean", "joint"
# Mean val accuracies that differ by less than this are equal: one clip in two hundred.
TIE = 0.005


@dataclass(frozen=True, kw_only=True)
class Data:
    """What planning has to know of a data set."""

    name: str
    clip: Clip
    digest: str
    information: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial: an entry at one place of its knobs, trained by one rule. All knobs are written out."""

    entry: SystemEntry
    system: str
    knobs: Mapping[str, Any]
    run: Mapping[str, Any]
    rule: Rule

    @property
    def label(self) -> str:
        return self.entry.label or self.system


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The jobs known by now, in the order of their work, and whether more will follow from their rows."""

    jobs: tuple[Job, ...]
    complete: bool


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Everything that planning depends on except the rows. `threads`: of a measure job."""

    suite: Suite
    profile: Profile
    entries: tuple[SystemEntry, ...]
    data: tuple[Data, ...]
    tune_data: tuple[Data, ...]
    seeds: int
    threads: int
    device: str

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """The whole grid."""
        return tuple(point for entry in self.entries for point in self._points(entry))

    @cached_property
    def _systems(self) -> dict[str, System]:
        """Looked up once: finding a system reads folders."""
        return {name: registry.get(name) for name in (*(entry.name for entry in self.entries), ANCHOR, REFERENCE)}

    @cached_property
    def _tuning(self) -> dict[str, dict[float, list[Job]]]:
        """By entry's label and learning rate, the tuning jobs."""
        return {entry.label or entry.name: self._trials(entry) for entry in self.entries}

    def plan(self, points: Sequence[Point], ended: Mapping[str, Record]) -> Plan:
        """The jobs of these points. `ended`: the row that counts of each job that has one, whatever its status."""
        tuning = {job.id: job for point in points for jobs in self._tuning[point.label].values() for job in jobs}
        rates = {id(point): self._rate(point.entry, ended) for point in points}
        known = [(point, rate) for point in points if (rate := rates[id(point)]) is not None]
        final = {job.id: job for point, rate in known for job in self._final(point, self._recipe(rate))}
        equal, waiting = self._equal(known, ended)
        cost = {job.id: job for point in points for job in self._costs(point)}
        jobs = {**tuning, **final, **{job.id: job for job in equal}, **cost}
        return Plan(jobs=tuple(jobs.values()), complete=len(known) == len(points) and not waiting)

    def jobs_of(self, point: Point, ended: Mapping[str, Record]) -> list[Job]:
        """The jobs that a trial's values come from: final evaluations on val, and costs."""
        rate = self._rate(point.entry, ended)
        final = [] if rate is None else self._final(point, self._recipe(rate))
        return [job for job in final if job.options.get("split") == "val"] + self._costs(point)

    def _points(self, entry: SystemEntry) -> Iterator[Point]:
        system = self._systems[entry.name]
        _check(entry, system)
        builds, runs = (list(_grid(grid, knobs)) for grid, knobs in ((entry.build, system.build_knobs), (entry.run, system.run_knobs)))
        rules: tuple[Rule, ...] = ("none",)
        if system.run_knobs:
            rules = tuple(rule for rule in ("elastic", "paper") if rule in entry.rules and rule in self.profile.rules) or ("elastic",)
        for build, rule, run in product(builds, rules, runs):
            yield Point(entry=entry, system=system.name, knobs=self._build(system, build), run={**_defaults(system.run_knobs), **run}, rule=rule)

    def _build(self, system: System, build: Mapping[str, Any]) -> dict[str, Any]:
        kind = self.profile.readouts.get(system.name, self.profile.readout)
        readout = {"readout": kind} if kind and "readout" in system.build_knobs else {}
        return {name: value for name, value in system.check({**readout, **build}).items() if name in system.build_knobs}

    def _recipe(self, rate: float) -> Recipe:
        return replace(recipe_from(self.profile.train), lr=rate)

    def _train(self, point: Point, data: Data, seed: int, recipe: Recipe, purpose: str, **more: Any) -> Job:
        system = self._systems[point.system]
        options: dict[str, Any] = {"recipe": asdict(recipe), "data_digest": data.digest, "tuned": bool(self.profile.tune.lr), "device": self.device}
        if point.rule == "elastic":
            options["run_values"] = {name: [_as_declared(system.space[name], v) for v in values] for name, values in point.entry.run.items()}
        if self.profile.start.weights == "shared":
            options["start_steps"] = self.profile.start.steps
        start = system.start if self.profile.start.weights == "shared" else "random"
        return self._job(point, "train", data=data, seed=seed, start=start, rule=point.rule, purpose=purpose, options={**options, **more})

    def _evals(self, point: Point, train: Job, data: Data, splits: Sequence[str], runs: Sequence[Mapping[str, Any]]) -> Iterator[Job]:
        clips = {"val": self.profile.evaluate.val_clips, "test": self.profile.evaluate.test_clips}
        more = {key: train.options[key] for key in ("equal", "trial_lr") if key in train.options}
        for run, split in product(runs, splits):
            options = {"train_job": train.id, "split": split, "clips": clips[split], "data_digest": data.digest, "device": self.device, **more}
            if data.information:
                options["data_info"] = dict(data.information)
            at = replace(point, run=run)
            yield self._job(at, "eval", data=data, seed=train.seed, start=train.start, rule=point.rule, purpose=train.purpose, options=options)

    def _job(self, point: Point, kind: Any, *, data: Data | None, seed: int, start: str, rule: Rule, purpose: Any, options: Mapping[str, Any]) -> Job:
        label = {"label": point.entry.label} if point.entry.label else {}
        return Job(
            kind=kind, suite=self.suite.name, profile=self.profile.name, purpose=purpose,
            system=point.system, size=point.entry.size or self.profile.size, style=self.profile.style, clip=(data or self.data[0]).clip,
            knobs=point.knobs, run={} if kind == "train" else point.run, rule=rule, seed=seed, start=start, data=data.name if data else "",
            options={**options, **label},
        )  # fmt: skip

    def _tuned_as(self, entry: SystemEntry) -> SystemEntry:
        """A lever is the same system on less: it takes the rate of the system's own entry."""
        return next((e for e in self.entries if e.name == entry.name and not e.lever), entry) if entry.lever else entry

    def _trials(self, entry: SystemEntry) -> dict[float, list[Job]]:
        """Per learning rate, the tuning jobs of an entry: at its first build point, by its first rule, over all its run points."""
        points = list(self._points(self._tuned_as(entry)))
        first, runs = points[0], list({str(p.run): p.run for p in points}.values())
        trials: dict[float, list[Job]] = {}
        for rate, data, seed in product(self.profile.tune.lr, self.tune_data, range(self.profile.tune.seeds)):
            recipe = replace(self._recipe(rate), steps=self.profile.tune.steps)
            train = self._train(first, data, seed, recipe, "tune", trial_lr=rate)
            trials.setdefault(rate, []).extend([train, *self._evals(first, train, data, ("val",), runs)])
        return trials

    def _rate(self, entry: SystemEntry, ended: Mapping[str, Record]) -> float | None:
        """The learning rate with the best mean val accuracy; None while trials are missing. Rates of which a job failed don't stand for election.

        Of rates that tie with the best, the lowest: a short trial flatters high rates, which may never leave a plateau of a longer training.
        """
        trials = self._tuning[entry.label or entry.name]
        if any(job.id not in ended for jobs in trials.values() for job in jobs):
            return None
        scores = {}
        for rate, jobs in trials.items():
            if all(ended[job.id].status == "measured" for job in jobs):
                scores[rate] = statistics.fmean(ended[job.id].result["top1"]["value"] for job in jobs if job.kind == "eval")
        best = max(scores.values(), default=0.0)
        return min((rate for rate, score in scores.items() if score >= best - TIE), default=recipe_from(self.profile.train).lr)

    def _final(self, point: Point, recipe: Recipe) -> list[Job]:
        cells = product(self.data, range(self.seeds))
        trains = [(self._train(point, data, seed, recipe, "final"), data) for data, seed in cells]
        return [job for train, data in trains for job in (train, *self._evals(point, train, data, ("val", "test"), [point.run]))]

    def _equal(self, known: Sequence[tuple[Point, float]], ended: Mapping[str, Record]) -> tuple[list[Job], bool]:
        """Every cell again, for the core-seconds that the reference took at equal steps; and whether that is still to be known.

        How many steps those are follows from seed 0 of the cell at equal steps: its mean cost a step, over the budgets that it drew.
        """
        if "core_seconds" not in self.profile.equal:
            return [], False
        knobs = self._build(self._systems[REFERENCE], {})
        reference = next((p for p in self.points if p.system == REFERENCE and not p.entry.size and p.knobs == knobs), None)
        if reference is None:
            return [], False
        rate, jobs, waiting = self._rate(reference.entry, ended), [], False
        for data in (d for d in self.data if not self.profile.equal_data or d.name in self.profile.equal_data):
            row = None if rate is None else ended.get(self._train(reference, data, 0, self._recipe(rate), "final").id)
            waiting |= row is None
            if row is None or row.status != "measured":
                continue
            core_seconds = float(f"{row.result['core_seconds']:.4g}")
            for point, own_rate in known:
                if point.knobs == reference.knobs and point.system == REFERENCE and not point.entry.size:
                    continue
                own = ended.get(self._train(point, data, 0, self._recipe(own_rate), "final").id)
                waiting |= own is None
                if own is None or own.status != "measured":
                    continue
                steps = max(1, round(own.result["steps"] * core_seconds / own.result["core_seconds"]))
                recipe = replace(self._recipe(own_rate), steps=steps)
                for seed in range(self.profile.equal_seeds):
                    train = self._train(point, data, seed, recipe, "final", equal="core_seconds", equal_core_seconds=core_seconds)
                    jobs += [train, *self._evals(point, train, data, ("val", "test"), [point.run])]
        return jobs, waiting

    def _costs(self, point: Point) -> list[Job]:
        system, anchor = self._systems[point.system], self._systems[ANCHOR]
        options = {**asdict(self.profile.measure), "device": self.device, "threads": self.threads, "anchor": self._build(anchor, {})}
        plain = replace(point, entry=replace(point.entry, label=""))
        where: Sequence[Data | None] = self.data if system.content else (None,)
        return [self._job(plain, "measure", data=data, seed=0, start="random", rule="none", purpose="cost", options=options) for data in where]


def planner(
    suite: Suite,
    profile: Profile,
    *,
    models: Sequence[str] = (),
    seeds: int | None = None,
    data: Sequence[str] = (),
    threads: int = 1,
    device: str = "cpu",
) -> Planner:
    """The planner of a suite under a profile; what is given here overrides the profile."""
    models = tuple(models) or profile.models
    chosen = set(registry.select(list(models))) if models else None
    entries = [replace(entry, name=name) for entry in suite.systems for name in registry.select([entry.name])]
    entries = [e for e in entries if (chosen is None or e.name in chosen) and (profile.levers or not e.lever)]
    if not entries:
        have = ", ".join(dict.fromkeys(entry.name for entry in suite.systems))
        raise UsageError(f"--models must name systems of suite {suite.name}", given=", ".join(models), remedy=f"it has {have}")
    labels = Counter(entry.label or entry.name for entry in entries)
    if (twice := labels.most_common(1)[0])[1] > 1:
        rule = f"every entry of suite {suite.name} must have a label of its own"
        raise UsageError(rule, given=f"{twice[0]} {twice[1]} times", remedy="give each a label")
    names = tuple(data) or profile.data
    if not names:
        rule = f"a sweep needs data, and profile {profile.name} names none"
        raise UsageError(rule, given="no --data", remedy="give --data digits:moment, or a folder of videos")
    for name, kind in profile.readouts.items():
        registry.get(name).check({"readout": kind})
    if seeds is not None and seeds < 1:
        raise UsageError("--seeds must be at least 1", given=seeds, remedy="give how many seeds to run: N means 0 to N-1")
    facts = {name: _facts(name, profile) for name in (*names, *(profile.tune.data if profile.tune.lr else ()))}
    # Data given by hand is what rates are tuned on too: the profile's own may not be there.
    tuned_on = () if not profile.tune.lr else tuple(data) or profile.tune.data or names
    return Planner(
        suite=suite, profile=profile, entries=tuple(entries), seeds=profile.seeds if seeds is None else seeds, threads=threads, device=device,
        data=tuple(facts[name] for name in dict.fromkeys(names)), tune_data=tuple(facts[name] for name in tuned_on),
    )  # fmt: skip


def _facts(name: str, profile: Profile) -> Data:
    source = open_data(os.path.expandvars(name), "val", frames=profile.frames, height=profile.height, width=profile.width)
    described = source.describe()
    information: dict[str, Any] = {key: described[key] for key in ("chance", "frame_average_ceiling") if key in described}
    return Data(name=name, clip=replace(source.clip, class_names=None), digest=source.digest, information=information)


def _check(entry: SystemEntry, system: System) -> None:
    for what, grid, knobs in (("build", entry.build, system.build_knobs), ("run", entry.run, system.run_knobs)):
        for name, values in grid.items():
            if name in system.space and name not in knobs:
                other = "run" if what == "build" else "build"
                raise UsageError(f"{what} of {system.name} takes knobs that are set at {what}", given=name, remedy=f"put it into {other}")
            if not values:
                raise UsageError(f"{what}.{name} of {system.name} must have values", given="none", remedy="list at least one")
            for value in values:
                system.check({name: value})


def _grid(grid: Mapping[str, Sequence[Any]], knobs: Mapping[str, Knob]) -> Iterator[dict[str, Any]]:
    for values in product(*grid.values()):
        yield {name: _as_declared(knobs[name], value) for name, value in zip(grid, values, strict=True)}


def _as_declared(knob: Knob, value: Any) -> Any:
    """1 where the system says 1.0: a job's name must not depend on how a number was written."""
    return next((own for own in (*knob.values, knob.default) if own == value and isinstance(own, bool) == isinstance(value, bool)), value)


def _defaults(knobs: Mapping[str, Knob]) -> dict[str, Any]:
    return {name: knob.default for name, knob in knobs.items()}
