"""Versions of the code that give the rows of an older one: it was made faster, and gave the same weights and answers to the last bit.

A version stands here only with rows that show it: `tests.benchmarks.same_rows` compares those of both, and they are committed. Whatever is changed
after has another version, which isn't covered. Times aren't: rows of `measure` have versions of their own, and are measured anew.
"""

from __future__ import annotations

from collections.abc import Mapping

# The newer, and the older whose rows it gives.
SAME: Mapping[str, str] = {
    # 80 trainings and 632 evaluations of graphsampler in results/reference-intel-xeon-c129b7-again, beside those of the older version in
    # results/reference-epyc-xeon and results/reference-intel-xeon-c129b7-{elastic,memory,parts,selector}.
    "6d3ede2cf8b500a0": "00320aabd200cb1e",
}


def settled(version: str) -> str:
    """The version in whose name rows count: the oldest that gives the same."""
    while version in SAME:
        version = SAME[version]
    return version
