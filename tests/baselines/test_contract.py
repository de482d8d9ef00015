"""The contract over the whole folder: a system file is tested by lying there."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from vitgs import registry
from vitgs.testing import CHECKS, Contract


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", registry.names())
def test_contract(name: str, check: Callable[[Contract], None]) -> None:
    check(Contract(system=registry.get(name)))
