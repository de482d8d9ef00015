"""The answer in words: the best system at each level of compute on each data set, as far as the intervals allow one to say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vitgs.numbers import interval, significant
from vitgs.report.best import leaders_by_system, system_of
from vitgs.report.compare import Verdict, at_equal_seconds, better_rule, equal_macs, tied_with
from vitgs.report.points import ANCHOR, METHOD, Book, Point

# Halves with a fifth of room: a system that keeps an eighth of the tokens pays for choosing them.
_NAMED = 4
SHARES = ((0.15, "15 %"), (0.3, "30 %"), (0.6, "60 %"), (1.0, "100 %"))


@dataclass(frozen=True, kw_only=True)
class Level:
    """The best at no more than `macs`. `ties` can't be told from `leader`. `names`: of the competitors that these are, the leader's first."""

    share: str
    macs: float
    leader: Point | None
    ties: tuple[Point, ...]
    names: tuple[str, ...]

    @property
    def leader_text(self) -> str:
        return "–" if self.leader is None else self.leader.name.full

    @property
    def top1_text(self) -> str:
        if self.leader is None:
            return "–"
        e = self.leader.top1.estimate
        return interval(e.value, e.low, e.high, scale=100)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One data set on one machine: the levels, and the verdicts at equal compute, of trainings of equal steps and of equal core-seconds."""

    machine: str
    data: str
    anchored: bool
    levels: tuple[Level, ...]
    verdicts: tuple[Verdict, ...]
    at_equal_seconds: tuple[Verdict, ...]


def answers(book: Book) -> list[Answer]:
    """An answer for each machine and data set that has accuracies and compute."""
    found = []
    for machine in book.machines:
        for data in book.data_sets:
            points = [p for p in better_rule(book.of(machine, data)) if p.cost.macs is not None and p.top1.estimate.value is not None]
            if points:
                found.append(_answer(machine, data, points))
    return found


def _answer(machine: str, data: str, points: Sequence[Point]) -> Answer:
    # Levers of the anchor, which do less work than it, don't stand for it.
    whole = (p for p in points if p.configuration.system == ANCHOR and (p.cost.flop_speedup or 1.0) <= 1.0)
    anchor = max((p.cost.macs or 0.0 for p in whole), default=None)
    full = anchor if anchor is not None else max(p.cost.macs or 0.0 for p in points)
    # In an ablation of one system its forms compete.
    competitor = system_of if len({system_of(p) for p in points}) > 1 else _series_of
    levels = tuple(_level(points, share * full, text, competitor) for share, text in SHARES)
    return Answer(
        machine=machine,
        data=data,
        anchored=anchor is not None,
        levels=levels,
        verdicts=tuple(equal_macs(points)),
        at_equal_seconds=tuple(equal_macs(at_equal_seconds(points))),
    )


def _series_of(point: Point) -> str:
    return point.name.series


def _level(points: Sequence[Point], macs: float, share: str, competitor: Callable[[Point], str]) -> Level:
    # A hair of room, so that the anchor itself is within its own compute.
    leaders = leaders_by_system([p for p in points if (p.cost.macs or 0.0) <= macs * (1 + 1e-9)], competitor)
    if not leaders:
        return Level(share=share, macs=macs, leader=None, ties=(), names=())
    ties = tuple(tied_with(leaders[0], leaders[1:]))
    return Level(share=share, macs=macs, leader=leaders[0], ties=ties, names=tuple(competitor(p) for p in (leaders[0], *ties)))


def findings(found: Sequence[Answer]) -> list[str]:
    """What was found, a sentence for each level of compute (levels with the same finding together), then the method's at equal compute."""
    if not found:
        return []
    whole = f"{ANCHOR}'s compute" if all(answer.anchored for answer in found) else "the dearest system's compute"
    together: dict[str, list[str]] = {}
    for i, (_, share) in enumerate(SHARES):
        together.setdefault(_counted(found, i) if len(found) > 2 else _named(found, i), []).append(share)
    sentences = [f"Within {_listed(shares)} of {whole}, {text}." for text, shares in together.items()]
    summaries = (
        method_summary([answer.verdicts for answer in found], "At equal compute or less"),
        method_summary([answer.at_equal_seconds for answer in found], "Trained for equal core-seconds, and at equal compute or less"),
    )
    return list(filter(None, (*sentences, *summaries)))


def _named(found: Sequence[Answer], level: int) -> str:
    """Data set by data set, those with the same finding together."""
    several = len({answer.machine for answer in found}) > 1
    where: dict[str, list[str]] = {}
    for answer in found:
        where.setdefault(_finding(answer.levels[level]), []).append(answer.data + (f" ({answer.machine})" if several else ""))
    return "; ".join(f"{finding} on {_listed(names)}" for finding, names in where.items())


def _counted(found: Sequence[Answer], level: int) -> str:
    """With many data sets: on how many of them a system is the best or can't be told from it; the table says on which."""
    levels = [answer.levels[level] for answer in found]
    alone = Counter(one.names[0] for one in levels if len(one.names) == 1)
    among = Counter(name for one in levels for name in one.names)
    led = Counter(one.names[0] for one in levels if one.names)
    ranked = sorted(among, key=lambda name: (-among[name], -alone[name], -led[name], name))
    if not ranked:
        return "no system has a point"
    first = f"{ranked[0]} is the most accurate or ties with the most accurate on {among[ranked[0]]} of {len(found)} data sets"
    rest = [f"{name} on {among[name]}" for name in ranked[1:_NAMED]] + ([f"{len(ranked) - _NAMED} more on some"] if len(ranked) > _NAMED else [])
    return first + (f" (alone on {alone[ranked[0]]})" if alone[ranked[0]] else "") + ("; " + _listed(rest) if rest else "")


def _listed(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _finding(level: Level) -> str:
    names = level.names
    if not names:
        return "no system has a point"
    if len(names) == 1:
        return f"{names[0]} is the most accurate"
    return f"{_listed(names)} tie" if len(names) <= 3 else f"{names[0]} ties with {len(names) - 1} others"


def method_summary(found: Sequence[Sequence[Verdict]], where: str) -> str:
    """One sentence on the method over the verdicts of all data sets; empty where it was not run."""
    words = Counter(verdict.word for verdicts in found for verdict in verdicts if any(v.ours for v in verdicts))
    compared = words["above"] + words["tie"] + words["below"]
    if not compared:
        return ""
    beyond = sum(v.word == "tie" and v.difference is not None and v.difference.beyond_seeds for verdicts in found for v in verdicts)
    hopeless = f" ({beyond} of these too close for these clips, whatever the seeds)" if beyond else ""
    parts = [
        f"{text} in {'all' if words[word] == compared else words[word]}{hopeless if word == 'tie' else ''}"
        for word, text in (("above", "above"), ("tie", "tied"), ("below", "below"))
        if words[word]
    ]
    unmatched = f"; {words['no point that cheap']} cheaper points have no counterpart" if words["no point that cheap"] else ""
    return f"{where}, {METHOD} is {', '.join(parts)} of {compared} comparisons with other systems{unmatched}."


def level_macs_text(level: Level) -> str:
    """`≤ 1.23 GMACs`."""
    return f"≤ {significant(level.macs * 1e-9)} GMACs"
