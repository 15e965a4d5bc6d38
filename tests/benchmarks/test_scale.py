"""What `benchmarks.scale` makes of its figures."""

from __future__ import annotations

import pytest

from benchmarks.scale import slope


@pytest.mark.parametrize("power", [1, 2])
def test_the_slope_is_the_power_of_items_that_seconds_grow_with(power: int) -> None:
    """Two seconds of start-up do not flatten it."""
    found = [{"items": 1 + 10**n, "cpu_s": 2 + (10**n) ** power / 50} for n in range(4)]
    assert slope([{"items": 1, "cpu_s": 2.0}, *found]) == power


def test_two_numbers_of_items_have_no_slope() -> None:
    assert slope([{"items": n, "cpu_s": float(n)} for n in (1, 10)]) is None
