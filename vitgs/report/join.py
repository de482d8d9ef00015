"""Records -> points: joins the train, eval and measure rows of one configuration, and keeps every row that gave no number."""

from __future__ import annotations

import dataclasses
import statistics
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vitgs import folders
from vitgs.record import Record, digest
from vitgs.report.accuracy import Accuracies
from vitgs.report.costs import Costs
from vitgs.report.naming import name_all
from vitgs.report.points import Accuracy, Book, Configuration, CurvePoint, Lost, Name, Point, Training
from vitgs.report.reading import CONTAMINATED, STALE, CurrentVersion, configuration_of, is_stale, machine_of, newest, number
from vitgs.report.sources import MachineResults

MOMENTARY = ("load_1min", "threads", "git_dirty")
UNNAMED = Name(series="", setting="")


def join(results: Sequence[MachineResults], current: CurrentVersion | None = None) -> Book:
    """The book of all machines. `current` tells the present code version of a system; without it only rows that are flagged are stale."""
    parts = [_Machine(machine, current) for machine in results]
    points = [point for part in parts for point in part.points()]
    lost = [row for part in parts for row in part.lost()]
    names = name_all(dict.fromkeys(point.configuration for point in points))
    records = [record for machine in results for record in machine.records]
    return Book(
        points=tuple(dataclasses.replace(point, name=names[point.configuration]) for point in points),
        lost=tuple(lost),
        machines={machine.machine: machine.description for machine in results},
        environments={machine.machine: tuple(_distinct(r.environment for r in machine.records if r.environment)) for machine in results},
        tuning_trials=Counter(r.job.system for r in records if r.job.purpose == "tune" and r.job.kind == "train" and r.status == "measured"),
        notes=tuple(note for part in parts for note in part.notes()),
        preliminary=tuple(_preliminary(records, points)),
        suites=tuple(dict.fromkeys(r.job.suite for r in records)),
    )


class _Machine:
    """The rows of one machine, indexed."""

    def __init__(self, results: MachineResults, current: CurrentVersion | None) -> None:
        self._name, self._records, self._current = results.machine, results.records, current
        self._newest = newest(results.records, current)
        counted = [r for r in self._newest.values() if r.status == "measured" and r.job.purpose != "tune"]
        self._train = {r.job.id: r for r in counted if r.job.kind == "train"}
        self._eval = [r for r in counted if r.job.kind == "eval"]
        self._equal: dict[tuple[Configuration, str], list[Record]] = defaultdict(list)
        self._accuracies = Accuracies(results.groups)
        self._mixed = 0
        self._costs = Costs([r for r in counted if r.job.kind == "measure"])

    def points(self) -> list[Point]:
        self._eval = self._coherent(self._eval)
        rows: dict[tuple[Configuration, str], dict[str, list[Record]]] = defaultdict(lambda: defaultdict(list))
        for row in self._eval:
            if row.job.options.get("equal"):
                self._equal[configuration_of(row.job, self._name), row.job.data].append(row)
                continue
            rows[configuration_of(row.job, self._name), row.job.data][str(row.result.get("split", row.job.options.get("split", "test")))].append(row)
        points = [self._point(configuration, data, splits) for (configuration, data), splits in rows.items()]
        evaluated = {_without_rule(configuration) for configuration, _ in rows}
        for row in self._costs.rows:
            configuration = configuration_of(row.job, self._name)
            if _without_rule(configuration) not in evaluated:
                evaluated.add(_without_rule(configuration))
                points.append(self._point(configuration, row.job.data, {}))
        return points

    def _coherent(self, evals: Sequence[Record]) -> list[Record]:
        """Of rows of one configuration under several recipes, data versions or devices those of the newest alone, one a seed.

        Averaged as if they were seeds, they would mix experiments.
        """
        several: dict[Any, list[Record]] = defaultdict(list)
        for row in evals:
            equal = bool(row.job.options.get("equal"))
            several[configuration_of(row.job, self._name), row.job.data, row.result.get("split"), equal].append(row)
        kept: list[Record] = []
        for rows in several.values():
            rows.sort(key=lambda row: (not is_stale(row, self._current), row.started_utc), reverse=True)
            recipe = self._recipe(rows[0])
            by_seed = {row.job.seed: row for row in reversed(rows) if self._recipe(row) == recipe}
            kept += by_seed.values()
        self._mixed = len(evals) - len(kept)
        return kept

    def _recipe(self, row: Record) -> str:
        """What seeds of one experiment share: the recipe of the training, the data's digest, the device."""
        train = self._train.get(str(row.job.options.get("train_job", "")))
        recipe = dict(train.job.options.get("recipe", {})) if train is not None else {}
        if row.job.options.get("equal"):  # as many steps as its own speed allows
            recipe.pop("steps", None)
        return digest([recipe, row.job.options.get("data_digest"), row.job.options.get("device")])

    def _point(self, configuration: Configuration, data: str, splits: dict[str, list[Record]]) -> Point:
        reported = "test" if "test" in splits else next(iter(splits), "")
        equal = self._equal.get((configuration, data), [])
        rows = splits.get(reported, [])
        evals = [row for several in splits.values() for row in several]
        trains = list({job: self._train[job] for row in evals if (job := str(row.job.options.get("train_job", ""))) in self._train}.values())
        cost, measured = self._costs.of(configuration, data)
        used = [*evals, *trains, *measured]
        information: Mapping[str, Any] = next((row.job.options["data_info"] for row in evals if row.job.options.get("data_info")), {})
        flags = {flag for row in used for flag in row.flags} | ({STALE} if any(is_stale(row, self._current) for row in used) else set())
        if rows and reported != "test":
            flags.add(f"{reported} only")
        return Point(
            configuration=configuration,
            name=UNNAMED,
            data=data,
            split=reported,
            top1=self._accuracies.of(rows, "top1", draw=True),
            top5=self._accuracies.of(rows, "top5", draw=False),
            val=self._accuracies.of(splits["val"], "top1", draw=False) if "val" in splits else Accuracy(),
            cost=cost,
            equal_seconds=self._accuracies.of([row for row in equal if row.result.get("split") == reported], "top1", draw=True),
            equal_val=self._accuracies.of([row for row in equal if row.result.get("split") == "val"], "top1", draw=False),
            training=_training(trains),
            flags=tuple(sorted(flags)),
            replay=next((row.replay for row in (*measured, *evals) if row.replay), ""),
            chance=number(information.get("chance")),
            ceiling=number(information.get("frame_average_ceiling")),
        )

    def lost(self) -> list[Lost]:
        found = []
        for record in self._records:
            stale = is_stale(record, self._current)
            counts = self._newest[record.job.id]
            spoilt = record.status == "measured" and not stale and CONTAMINATED in record.flags and counts is not record
            if record.status == "measured" and not stale and not spoilt:
                continue
            later = "" if counts is record else f"replaced by attempt {counts.attempt}, {counts.status}"
            later = later or ("still shown, marked stale" if record.status == "measured" else "")
            setting = ", ".join(f"{k}={v}" for k, v in {**record.job.knobs, **record.job.run}.items())
            found.append(
                Lost(
                    machine=self._name,
                    kind=record.job.kind,
                    system=record.job.system,
                    setting=setting,
                    data=record.job.data,
                    seed=record.job.seed,
                    status=CONTAMINATED if spoilt else STALE if record.status == "measured" else record.status,
                    reason="others used the machine meanwhile" if spoilt else record.reason or _no_reason(stale),
                    flags=record.flags,
                    attempt=record.attempt,
                    later=later,
                    replay=record.replay,
                )
            )
        return found

    def notes(self) -> list[str]:
        why = "its intervals take clips as independent and may be too narrow"
        found = [f"{self._name}: no clip groups for {what}; {why}" for what in sorted(self._accuracies.ungrouped)]
        if self._mixed:
            found.append(f"{self._name}: {self._mixed} eval rows of earlier recipes, data versions or repetitions are in the results files only")
        if several := _made_on(self._train.values()):
            found.append(f"{self._name}: trained on several machines ({several}); seconds and rates of training compare within one machine only")
        return found + [f"{self._name}: {note}" for note in self._costs.notes]


def _made_on(rows: Iterable[Record]) -> str:
    """Which machine trained which systems; empty where one trained all."""
    systems: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        systems[machine_of(row)].add(row.job.system)
    return "; ".join(f"{machine}: {', '.join(sorted(names))}" for machine, names in sorted(systems.items())) if len(systems) > 1 else ""


def _no_reason(stale: bool) -> str:
    return "the code has changed since" if stale else "no reason recorded"


def _training(rows: Sequence[Record]) -> Training:
    if not rows:
        return Training()
    means = {}
    for field in ("core_seconds", "device_seconds", "params", "params_trainable", "train_clips_per_s", "peak_resident_growth_bytes", "energy_j"):
        values = [value for row in rows if (value := number(row.result.get(field))) is not None]
        means[field] = statistics.fmean(values) if values else None
    curves = tuple(
        tuple(
            CurvePoint(core_seconds=float(p["core_seconds"]), val_top1=float(p["val_top1"]))
            for p in row.result.get("curve", ())
            if p.get("val_top1") is not None
        )
        for row in rows
    )
    return Training(
        core_seconds=means["core_seconds"],
        device_seconds=means["device_seconds"],
        params=means["params"],
        params_trainable=means["params_trainable"],
        clips_per_s=means["train_clips_per_s"],
        peak_resident_growth_bytes=means["peak_resident_growth_bytes"],
        energy_j=means["energy_j"],
        energy_reason=str(rows[0].result.get("energy_reason", "")),
        curves=tuple(c for c in curves if c),
    )


def _without_rule(configuration: Configuration) -> Configuration:
    """For matching with measure rows, which don't depend on how a model was trained."""
    return dataclasses.replace(configuration, rule="none", label="", profile="")


def _distinct(values: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The environments that differ in more than what every row has of its own; rows keep all of it."""
    found: list[Mapping[str, Any]] = []
    for value in values:
        lasting = {name: fact for name, fact in value.items() if name not in MOMENTARY}
        if lasting not in found:
            found.append(lasting)
    return found


def _preliminary(records: Sequence[Record], points: Sequence[Point]) -> list[str]:
    """The reasons to call the page preliminary; none when it isn't."""
    reasons = []
    for profile in dict.fromkeys(r.job.profile for r in records):
        file = folders.suites() / "profiles" / f"{profile}.toml"
        says = tomllib.loads(file.read_text(encoding="utf-8")).get("preliminary", False) if profile and file.is_file() else False
        if says or any(r.job.options.get("preliminary") for r in records if r.job.profile == profile):
            reasons.append(f"the profile {profile} is a short form")
    seeds = [len(p.top1.seeds) for p in points if p.top1.seeds]
    if seeds and min(seeds) == 1:
        few = sum(count == 1 for count in seeds)
        reasons.append("all systems have one seed" if few == len(seeds) else f"{few} of {len(seeds)} points have one seed")
    if any(r.job.start == "shared" and r.job.data and not r.job.data.startswith("digits:") for r in records):
        reasons.append("the systems start from image weights of still digits, which are worth little on real video")
    return reasons
