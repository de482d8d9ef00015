"""Set functions with known shape: modular ones diminish always, squares never, coverage is submodular and greedy keeps its promise."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from vitgs.graphsampler.theory_sets import (
    GREEDY_SHARE,
    Chain,
    Subset,
    Table,
    diminishes,
    gain,
    greedy,
    mean_ratio,
    of_size,
    random_chain,
    ratio,
    share_beaten,
    subsets,
    table,
)

COUNT, MOST = 7, 4
COVERED = ({1, 2, 3}, {3, 4}, {4, 5, 6}, {1, 6}, {7}, {2, 7, 8}, {8, 9})


def tabled(f: Callable[[Subset], float]) -> Table:
    chosen = subsets(COUNT, MOST)
    return table(chosen, [f(subset) for subset in chosen])


def rate(f: Table, tolerance: float = 1e-9) -> float:
    rng = random.Random(0)
    chains = [random_chain(COUNT, MOST, rng) for _ in range(500)]
    return sum(diminishes(f, chain, tolerance) for chain in chains) / len(chains)


def test_subsets_are_all_there_are() -> None:
    chosen = subsets(COUNT, MOST)
    assert chosen[0] == ()
    assert len(chosen) == len(set(chosen)) == sum(math.comb(COUNT, size) for size in range(MOST + 1))


@pytest.mark.parametrize("least", [0, 1])
def test_chains_are_chains(least: int) -> None:
    rng = random.Random(1)
    for _ in range(300):
        chain = random_chain(COUNT, MOST, rng, least=least)
        assert set(chain.small) < set(chain.large)
        assert len(chain.small) >= least
        assert len(chain.large) < MOST
        assert chain.extra not in chain.large


def test_shapes_are_recognised() -> None:
    assert rate(tabled(lambda chosen: sum(2.0**i for i in chosen))) == 1
    assert rate(tabled(lambda chosen: len(chosen) ** 2)) == 0
    assert rate(tabled(lambda chosen: math.sqrt(len(chosen)))) == 1
    assert rate(tabled(lambda chosen: len(set().union(*(COVERED[i] for i in chosen))))) == 1


def test_one_chain_by_hand() -> None:
    f = {(): 0.0, (0,): 1.0, (1,): 2.0, (0, 1): 2.5, (2,): 0.5, (1, 2): 3.0, (0, 2): 1.5, (0, 1, 2): 3.4}
    assert gain(f, (1,), 0) == 0.5
    assert diminishes(f, Chain(small=(), large=(1,), extra=0), 0)
    assert not diminishes(f, Chain(small=(), large=(1,), extra=2), 0.4)
    assert diminishes(f, Chain(small=(), large=(1,), extra=2), 0.5)


def test_greedy_and_its_promise() -> None:
    modular = tabled(lambda chosen: sum((3.0, 9.0, 1.0, 7.0, 0.0, 8.0, 2.0)[i] for i in chosen))
    assert greedy(modular, COUNT, 3) == (1, 3, 5)
    assert ratio(modular, (1, 3, 5), least=1e-3) == 1
    assert ratio(modular, (1, 2, 5), least=1e-3) == 18 / 24
    coverage = tabled(lambda chosen: len(set().union(*(COVERED[i] for i in chosen))))
    assert ratio(coverage, greedy(coverage, COUNT, 4), least=1e-3) >= GREEDY_SHARE
    trap = tabled(lambda chosen: 1.0 if 0 in chosen else 5.0 if {1, 2} <= set(chosen) else 0.0)
    assert ratio(trap, greedy(trap, COUNT, 2), least=1e-3) == 0.2


def test_ratios() -> None:
    f = {(): -2.0, (0,): -1.0, (1,): 0.0, (2,): -4.0}
    assert [ratio(f, (i,), least=0.1) for i in range(3)] == [0.5, 1.0, -1.0]
    assert mean_ratio(f, 1, least=0.1) == pytest.approx(0.5 / 3)
    assert [share_beaten(f, (i,)) for i in range(3)] == [0.5, 1.0, 0.0]
    assert math.isnan(ratio(f, (0,), least=2.5))
    assert of_size(f, 0) == {(): -2.0}
