"""One set of made-up results for all tests of the report, written and joined once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.synthetic import records, write
from vitgs.report.points import Book
from vitgs.report.render import load_book


@pytest.fixture(scope="session")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("results"), records())


@pytest.fixture(scope="session")
def book(results: Path) -> Book:
    return load_book([results], current=None)
