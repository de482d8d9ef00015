"""Fixtures for all tests: a fixed seed, one thread, and a machine lock of their own, so that results don't depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def fixed_seed() -> Iterator[None]:
    """Every test starts from the same random state, whatever ran before it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def own_machine_lock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One command has the machine at a time; tests must not wait for a sweep that runs beside them, nor make it wait."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VITGS_MACHINE_LOCK", str(tmp_path_factory.mktemp("lock") / "machine.lock"))
        yield
