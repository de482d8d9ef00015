"""How systems look in figures and on the page: one colour a group, one marker a system. Colours after Okabe and Ito, for colour-blind readers too."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from vitgs.report.families import METHOD_GROUP, ORDER, rank

# group -> colour on white, colour on dark
COLOURS = {
    METHOD_GROUP: ("#d1490c", "#ff8a57"),
    "full space-time": ("#1f6aa5", "#63a9e6"),
    "frame selection": ("#b78103", "#e6b94a"),
    "token reduction": ("#0d8a68", "#45c49c"),
    "image-to-video adaptation": ("#a0509a", "#d898d6"),
    "cheap attention": ("#4aa3d6", "#a9dcf8"),
    "other": ("#6f7378", "#a3a8ae"),
}
SHAPES = ("circle", "square", "diamond", "up", "down", "plus", "cross", "hexagon")
MATPLOTLIB = {"circle": "o", "square": "s", "diamond": "D", "up": "^", "down": "v", "plus": "P", "cross": "X", "hexagon": "h"}
STAGE_COLOURS = {
    "select": ("#d1490c", "#ff8a57"),
    "backbone": ("#9fb3c4", "#5f7688"),
    "merge": ("#b78103", "#e6b94a"),
    "graph": ("#0d8a68", "#45c49c"),
    "memory": ("#a0509a", "#d898d6"),
    "head": ("#1f6aa5", "#63a9e6"),
    "rest": ("#d9dcdf", "#3b4046"),
}


@dataclass(frozen=True, kw_only=True)
class Look:
    """A system's marker; `hollow` for the ninth and later ones of a group."""

    group: str
    group_index: int
    shape: str
    hollow: bool

    @property
    def colour(self) -> str:
        return COLOURS.get(self.group, COLOURS["other"])[0]


def looks(systems: Iterable[tuple[str, str]]) -> dict[str, Look]:
    """`(system, group)` pairs -> each system's look, in the order of legends."""
    found: dict[str, Look] = {}
    counts: dict[str, int] = {}
    for system, group in sorted(dict.fromkeys(systems), key=lambda pair: (rank(pair[1]), pair[0])):
        place = counts.setdefault(group, 0)
        counts[group] += 1
        index = ORDER.index(group) if group in ORDER else len(ORDER) - 1
        found[system] = Look(group=group, group_index=index, shape=SHAPES[place % len(SHAPES)], hollow=place % (2 * len(SHAPES)) >= len(SHAPES))
    return found
