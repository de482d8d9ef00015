"""Head against head: how noisy each case is on this machine, how often the gate would cry wolf, and the smallest slowdown that it can show.

All rounds are real A/A rounds. Noise floor: the ratio that the mean of a run's rounds leaves once in a hundred runs by chance. False alarms: the
rounds are cut into as many runs as the gate's plan has rounds in them, each goes through the gate's own looks, and the share of runs with an alarm
in any case has its Clopper-Pearson interval; confirmation, which a real run adds, is left out, so the rate is an upper one. Few runs give a wide
interval; more `--rounds` narrow it. Smallest change: what the gate finds in 9 of 10 runs, from the rounds' spread, with the spread's own interval.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vitgs.gate import decide
from vitgs.measure.shares import clopper_pearson

TOO_NOISY = 0.05
POWER = 0.9


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """One case. Shares: 0.01 is 1 %. `refused`: too noisy to be judged here."""

    rounds: int
    rounds_a_run: int
    noise_floor: float
    smallest: float
    smallest_low: float
    smallest_high: float
    alarms: int
    refused: bool


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """All cases; `alarms` of `runs` runs had one in any case, a rate within [`low`, `high`] with 95 % confidence."""

    cases: Mapping[str, Calibration]
    runs: int
    alarms: int
    low: float
    high: float


def calibrate(logs: Mapping[str, Sequence[float]], *, rounds_a_run: int, threshold: float) -> Calibrated:
    """From each case's d of the same A/A rounds."""
    count = min(map(len, logs.values()), default=0)
    spans = [range(start, start + rounds_a_run) for start in range(0, count - rounds_a_run + 1, rounds_a_run)]
    alarmed = [_alarmed({case: [values[i] for i in span] for case, values in logs.items()}, threshold) for span in spans]
    alarms = sum(map(bool, alarmed))
    low, high = clopper_pearson(alarms, len(spans))
    cases = {
        case: _case(values, rounds_a_run, threshold, cases=len(logs), alarms=sum(case in names for names in alarmed)) for case, values in logs.items()
    }
    return Calibrated(cases=cases, runs=len(spans), alarms=alarms, low=low, high=high)


def _alarmed(logs: Mapping[str, Sequence[float]], threshold: float) -> set[str]:
    """The cases that one run's looks call slower."""
    planned = min(map(len, logs.values()))
    bounds = dict.fromkeys(logs, math.log1p(threshold))
    verdict: dict[str, decide.Verdict] = dict.fromkeys(logs, "open")
    before = 0
    for i in range(1, decide.LOOKS + 1):
        now = math.ceil(planned * i / decide.LOOKS)
        seen = {case: values[:now] for case, values in logs.items() if verdict[case] == "open"}
        if now >= decide.FEWEST and seen:
            verdict |= decide.look(seen, bounds, before=before / planned, now=now / planned, of=len(logs))
            before = now
    return {case for case, how in verdict.items() if how == "slower"}


def _case(values: Sequence[float], rounds_a_run: int, threshold: float, *, cases: int, alarms: int) -> Calibration:
    from scipy import stats

    where = decide.located(values)
    spread = where.error * math.sqrt(len(values))  # of one round, as the trimmed mean sees it
    error = spread / math.sqrt(rounds_a_run)
    freedom = max(rounds_a_run - 2 * int(decide.TRIM * rounds_a_run) - 1, 1)
    floor = math.expm1(float(stats.t.ppf(0.995, freedom)) * error)
    # The last look, the strictest line of Holm: what is found under these is found.
    line = (decide.spent(1.0) - decide.spent(1 - 1 / decide.LOOKS)) / cases
    reach = float(stats.t.isf(line, freedom) + stats.t.ppf(POWER, freedom)) * error
    bound = math.log1p(max(threshold, floor))
    # The interval of a standard deviation, by chi squared: multiply the spread by these.
    wide, narrow = (math.sqrt(where.freedom / float(stats.chi2.ppf(q, where.freedom))) for q in (0.025, 0.975))
    return Calibration(
        rounds=len(values), rounds_a_run=rounds_a_run, noise_floor=floor, alarms=alarms, refused=floor > TOO_NOISY,
        smallest=math.expm1(bound + reach), smallest_low=math.expm1(bound + reach * narrow), smallest_high=math.expm1(bound + reach * wide),
    )  # fmt: skip


def usable(case_shape: str, known: Mapping[str, Any], threshold: float) -> tuple[float, bool]:
    """The threshold that this machine allows for a case, and whether the case is refused as too noisy."""
    found = known.get(case_shape)
    if not isinstance(found, Mapping):
        return threshold, False
    return max(threshold, float(found.get("noise_floor", 0.0))), bool(found.get("refused", False))
