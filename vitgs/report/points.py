"""What the report is about: one point a configuration and data set, and the rows that gave no point. Plain values, no computation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitgs.record import Estimate
from vitgs.report.bootstrap import ByGroup

Draws = NDArray[np.float64]

METHOD = "graphsampler"
ANCHOR = "vit_mean"
NOT_READ = Estimate.missing("no row")


@dataclass(frozen=True, kw_only=True)
class Configuration:
    """What was built and how it was run, on which machine. All that two points must share to be one row of the table, except the data set."""

    machine: str
    profile: str
    system: str
    group: str
    size: str
    style: str
    frames: int
    height: int
    width: int
    knobs: tuple[tuple[str, Any], ...]
    run: tuple[tuple[str, Any], ...]
    rule: str
    label: str = ""

    @property
    def shape(self) -> tuple[str, str, int, int, int]:
        """Size, style and clip: what an anchor must share."""
        return (self.size, self.style, self.frames, self.height, self.width)


@dataclass(frozen=True, kw_only=True)
class Name:
    """How a configuration is called: `series` is the curve it lies on, `setting` its place on the curve."""

    series: str
    setting: str

    @property
    def full(self) -> str:
        return f"{self.series} ({self.setting})" if self.setting else self.series


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Top-1 or top-5 over seeds. `draws` are bootstrap replicates; the same draw number means the same resampled clips for every system. `by_group`:
    what lies behind them, None for one seed."""

    estimate: Estimate = NOT_READ
    draws: Draws | None = field(default=None, compare=False)
    by_group: ByGroup | None = field(default=None, compare=False)
    seeds: tuple[int, ...] = ()
    clips: int = 0


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What one configuration costs on its machine, per view. Ratios are to the anchor measured in the same rounds."""

    macs: float | None = None
    flops: float | None = None
    params: float | None = None
    latency_ms: Estimate = NOT_READ
    clips_per_s: Estimate = NOT_READ
    latency_ratio: Estimate = NOT_READ
    throughput_ratio: Estimate = NOT_READ
    peak_live_bytes: float | None = None
    cuda_peak_bytes: float | None = None
    energy_j_per_clip: Estimate = NOT_READ
    stage_share: Mapping[str, float] = field(default_factory=dict)
    batch: int | None = None
    uncounted: str = ""
    flop_speedup: float | None = None
    ceiling_share: Estimate = NOT_READ

    @property
    def conversion(self) -> float | None:
        """Realised speed-up / FLOP speed-up: 1 where every operation saved is time saved."""
        realised = self.throughput_ratio.value
        return None if realised is None or not self.flop_speedup else realised / self.flop_speedup


@dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """One reading of the validation curve."""

    core_seconds: float
    val_top1: float


@dataclass(frozen=True, kw_only=True)
class Training:
    """What it cost to train, means over seeds, and the validation curve of each seed. `device_seconds`: wall clock of the training steps."""

    core_seconds: float | None = None
    device_seconds: float | None = None
    params: float | None = None
    params_trainable: float | None = None
    clips_per_s: float | None = None
    peak_resident_growth_bytes: float | None = None
    energy_j: float | None = None
    energy_reason: str = ""
    curves: tuple[tuple[CurvePoint, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Point:
    """One configuration on one data set. `top1` is what is reported (split `split`), `val` what choices are made with. `equal_seconds`, `equal_val`:
    the same of models trained for the core-seconds that all systems were given, where the profile asks for such."""

    configuration: Configuration
    name: Name
    data: str
    split: str
    top1: Accuracy
    top5: Accuracy
    val: Accuracy
    cost: Cost
    training: Training
    equal_seconds: Accuracy = field(default_factory=Accuracy)
    equal_val: Accuracy = field(default_factory=Accuracy)
    flags: tuple[str, ...] = ()
    replay: str = ""
    chance: float | None = None
    ceiling: float | None = None

    @property
    def choosing(self) -> float | None:
        """The value that choices are made with: val, or the reported split where there is no val row (the page says so)."""
        return self.val.estimate.value if self.val.estimate.value is not None else self.top1.estimate.value


@dataclass(frozen=True, kw_only=True)
class Lost:
    """A row that gave no number, or a number that no longer counts. It stays on the page."""

    machine: str
    kind: str
    system: str
    setting: str
    data: str
    seed: int
    status: str
    reason: str
    flags: tuple[str, ...]
    attempt: int
    later: str
    replay: str


@dataclass(frozen=True, kw_only=True)
class Book:
    """All that a report is made of."""

    points: tuple[Point, ...]
    lost: tuple[Lost, ...]
    machines: Mapping[str, Mapping[str, Any]]
    environments: Mapping[str, tuple[Mapping[str, Any], ...]]
    tuning_trials: Mapping[str, int]
    notes: tuple[str, ...]
    preliminary: tuple[str, ...]
    suites: tuple[str, ...]

    @property
    def data_sets(self) -> list[str]:
        return list(dict.fromkeys(point.data for point in self.points))

    def of(self, machine: str, data: str) -> list[Point]:
        """The points that may be compared with one another: of one machine, one data set and one profile, the one with the most seeds."""
        points = [p for p in self.points if p.configuration.machine == machine and p.data == data]
        seeds: dict[str, tuple[int, int]] = {}
        for p in points:
            most, count = seeds.get(p.configuration.profile, (0, 0))
            seeds[p.configuration.profile] = (max(most, len(p.top1.seeds)), count + 1)
        chosen = max(seeds, key=lambda profile: seeds[profile], default="")
        return [p for p in points if p.configuration.profile == chosen]
