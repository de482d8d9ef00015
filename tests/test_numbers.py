"""The one formatter: rounding, units, intervals, and the dash for what is missing."""

from __future__ import annotations

import math

import pytest

from vitgs.numbers import interval, percent, quantity, significant


@pytest.mark.parametrize(
    ("value", "text"),
    [(17.5812, "17.6"), (0.012345, "0.0123"), (1234.5, "1,230"), (999.6, "1,000"), (0, "0"), (-3.14159, "-3.14"), (math.inf, "inf")],
)
def test_significant_digits(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (17.58e9, "macs", "17.6 GMACs"),
        (35.16e9, "flops", "35.2 GFLOPs"),
        (86_567_656, "params", "86.6 M"),
        (3 * 2**30, "bytes", "3.00 GiB"),
        (512, "bytes", "512 B"),
        (0.0042, "j", "4.20 mJ"),
        (0.5, "s", "500 ms"),
        (90, "s", "1.50 min"),
        (0, "macs", "0 MACs"),
        (12.5, "clips/s", "12.5 clips/s"),
        (None, "macs", "–"),
    ],
)
def test_quantities_choose_their_scale(value: float | None, unit: str, text: str) -> None:
    assert quantity(value, unit) == text


def test_percent() -> None:
    assert percent(0.8345) == "83.5"
    assert percent(0.5, digits=0) == "50"
    assert percent(None) == "–"


def test_interval_rounds_its_ends_like_its_value() -> None:
    assert interval(0.83456, 0.8, 0.8712, scale=100) == "83.5 [80.0, 87.1]"
    assert interval(1234.0, 1190.4, 1300.2) == "1,230 [1,190, 1,300]"


def test_interval_without_ends_or_value() -> None:
    assert interval(1.5, None, None) == "1.50"
    assert interval(None, None, None) == "–"
