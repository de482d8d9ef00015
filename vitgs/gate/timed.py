"""The timed tier: rounds of paired times, looked at a few times, and whatever seems slower measured again in new processes.

A round starts one fresh worker a side; for each case the two workers time blocks in turn, in random order, and the round's d is the median of
log(head / base) over neighbouring blocks (CPU time where a case has one thread: `blocks`). How many rounds are planned is decided after the first;
the looks are at quarters of the plan. Cases that are decided, or have nothing to show any more, leave: clear ones cost few rounds. `decide` states
hypotheses, test and error rates; a slowdown is called a regression only if the same looks find it again in rounds of new processes. The sampler is
given: real workers, or a test's numbers.
"""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from vitgs.gate import decide
from vitgs.gate.cases import GateCase
from vitgs.gate.sides import Tree, Worker, both

FEWEST_ROUNDS, MOST_ROUNDS = 8, 48
CONFIRM_SHARE = 0.25  # of the budget, kept back for confirmation
OVERTIME = 3.0
# Blocks of one call: a shared machine changes its speed within ten milliseconds, and what disturbs a pair's both sides cancels only in short pairs.
# The cases that are left share a round's time, within limits. Slow models get a few pairs at least.
CALLS = 1
PAIRS_S, SHORTEST_S, LONGEST_S = 1.8, 0.3, 0.8
FEWEST_PAIRS, ENOUGH_PAIRS, LATE = 3, 9, 3.0  # on a machine that wakes processes late a few pairs take long: up to so many times as long
NOISY = 0.05  # an interval that reaches further than this from its middle says nothing about a few per cent

Pair = tuple[float, float]
Block = tuple[float, bool]  # ms, and whether it was undisturbed
Sampler = Callable[[Sequence[str]], Mapping[str, Pair]]
Outcome = Literal["slower", "faster", "same", "open", "noisy"]


@dataclass(frozen=True, kw_only=True)
class Timed:
    """How one case ended. `ratio`: head over base, with its 95 % interval. "open": no slowdown was shown, and none excluded. "noisy": the interval is
    too wide to judge. `unconfirmed`: it seemed slower and wasn't when measured again. Samples: (base, head) of each round, as `paired` gives them."""

    case: str
    outcome: Outcome
    ratio: float
    low: float
    high: float
    threshold: float
    samples_ms: tuple[Pair, ...]
    again_ms: tuple[Pair, ...] = ()
    unconfirmed: bool = False


@dataclass
class _Progress:
    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    verdict: dict[str, decide.Verdict] = field(default_factory=dict)

    def logs(self, case: str) -> list[float]:
        return [math.log(head / base) for base, head in self.pairs[case]]


def judge(sample: Sampler, thresholds: Mapping[str, float], *, seconds: float, clock: Callable[[], float] = time.monotonic) -> list[Timed]:
    """The outcome of every case of `thresholds`, in about `seconds`."""
    bounds = {case: math.log1p(threshold) for case, threshold in thresholds.items()}
    first = _rounds(sample, bounds, seconds * (1 - CONFIRM_SHARE), clock)
    suspects = {case: bounds[case] for case, verdict in first.verdict.items() if verdict == "slower"}
    again = _rounds(sample, suspects, seconds * CONFIRM_SHARE, clock)
    confirmed = {case for case, verdict in again.verdict.items() if verdict == "slower"}
    return [_timed(case, first, again, thresholds[case], confirmed) for case in thresholds]


def rounds_in(seconds: float, round_s: float) -> int:
    """How many rounds are planned when one of all cases takes `round_s`: never fewer than give an answer."""
    return min(max(int(seconds / max(round_s, 1e-3)), FEWEST_ROUNDS), MOST_ROUNDS)


def _rounds(sample: Sampler, bounds: Mapping[str, float], seconds: float, clock: Callable[[], float]) -> _Progress:
    """Rounds and looks until every case is decided or the plan is done."""
    progress = _Progress(pairs={case: [] for case in bounds}, verdict=dict.fromkeys(bounds, "open"))
    began, done, looked = clock(), 0, 0
    planned = FEWEST_ROUNDS
    while still := [case for case, verdict in progress.verdict.items() if verdict == "open"]:
        _add(progress, sample(still))
        done += 1
        spent_s = clock() - began
        if done == 1:
            planned = rounds_in(seconds, spent_s)
        late = spent_s > OVERTIME * seconds and done >= decide.FEWEST
        if late or done >= planned or (done * decide.LOOKS // planned > looked * decide.LOOKS // planned and done >= decide.FEWEST):
            logs = {case: progress.logs(case) for case in still}
            progress.verdict |= decide.look(logs, bounds, before=looked / planned, now=done / planned, of=len(bounds))
            looked = done
            if late or done >= planned:
                break
    return progress


def _add(progress: _Progress, pairs: Mapping[str, Pair]) -> None:
    for case, pair in pairs.items():
        progress.pairs[case].append(pair)


def _timed(case: str, first: _Progress, again: _Progress, threshold: float, confirmed: set[str]) -> Timed:
    where = decide.located(first.logs(case) + (again.logs(case) if case in again.pairs else []))
    low, high = where.limits()
    unconfirmed = case in again.pairs and case not in confirmed
    verdict = first.verdict[case]
    outcome: Outcome = "open" if unconfirmed or verdict == "hopeless" else verdict
    if outcome == "open" and (high - low) / 2 > NOISY:
        outcome = "noisy"
    return Timed(
        case=case, outcome=outcome, ratio=math.exp(where.centre), low=math.exp(low), high=math.exp(high), threshold=threshold,
        samples_ms=tuple(first.pairs[case]), again_ms=tuple(again.pairs.get(case, ())), unconfirmed=unconfirmed,
    )  # fmt: skip


def workers(base: Tree, head: Tree, cases: Mapping[str, GateCase], *, cores: Sequence[int] = (), seed: int = 0) -> Sampler:
    """A sampler whose every round has fresh processes, which time on these cores."""
    rng = random.Random(seed)

    def sample(names: Sequence[str]) -> dict[str, Pair]:
        first, second = rng.sample([base, head], 2)
        with both(first, second) as (one, other):
            sides = {first.side: one, second.side: other}  # while one computes, the other sleeps in a read
            for name in names:
                for side, worker in sides.items():
                    worker.tell("warm", cases[name].request(side), cores=cores)
                for worker in sides.values():
                    worker.hear(name)
            found = {}
            for name in rng.sample(list(names), len(names)):
                found[name] = _pairs(sides, cases[name], rng, seconds=pairs_s(len(names)))
            return found

    return sample


def pairs_s(cases: int) -> float:
    """How long a round times each of so many cases, in seconds."""
    return min(max(PAIRS_S / cases, SHORTEST_S), LONGEST_S)


def _pairs(sides: Mapping[Any, Worker], case: GateCase, rng: random.Random, *, seconds: float) -> Pair:
    return paired(lambda side: sides[side].ask("block", case.request(side), CALLS), rng, seconds=seconds)


def paired(block: Callable[[str], Block], rng: random.Random, *, seconds: float, clock: Callable[[], float] = time.monotonic) -> Pair:
    """A round of one case: pairs of blocks in random order for so long. Base and head in ms a call: their ratio is the median of the pairs' ratios
    (so that it knows nothing of what changed between pairs), their geometric mean that of the two sides' medians. Disturbed pairs count only where
    there are hardly others."""
    pairs: list[Pair] = []
    quiet: list[Pair] = []
    began = clock()
    while len(pairs) < FEWEST_PAIRS or clock() - began < seconds * (1 if len(quiet) >= ENOUGH_PAIRS else LATE):
        taken = {side: block(side) for side in rng.sample(("base", "head"), 2)}
        pairs.append((taken["base"][0], taken["head"][0]))
        if taken["base"][1] and taken["head"][1]:
            quiet.append(pairs[-1])
    kept = quiet if len(quiet) >= FEWEST_PAIRS else pairs
    half = statistics.median(math.log(head / base) for base, head in kept) / 2
    level = math.sqrt(math.prod(statistics.median(side) for side in zip(*kept, strict=True)))
    return level * math.exp(-half), level * math.exp(half)
