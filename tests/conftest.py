"""Fixtures for all tests: a fixed seed, one thread, and a temporary folder of their own, so that results don't depend on the machine."""

from __future__ import annotations

import os
import tempfile
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
def own_temporary_folder() -> Iterator[None]:
    """The lock that gives one command the machine lies in the temporary folder: tests must not wait for a sweep that runs beside them."""
    before = os.environ.get("TMPDIR")
    with tempfile.TemporaryDirectory(prefix="vitgs-tests-") as folder:
        os.environ["TMPDIR"], tempfile.tempdir = folder, None
        yield
        tempfile.tempdir = None
        if before is None:
            del os.environ["TMPDIR"]
        else:
            os.environ["TMPDIR"] = before
