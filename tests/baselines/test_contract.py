"""The contract over the whole folder: a system file is tested by lying there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import vitgs
from vitgs import registry
from vitgs.testing import CHECKS, Contract


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names())
def test_contract(name: str, check: Callable[[Contract], None]) -> None:
    if name == registry.METHOD and not (Path(vitgs.__file__).parent / "graphsampler" / "model.py").is_file():
        pytest.skip("the method isn't in this checkout")
    check(Contract(system=registry.get(name)))
