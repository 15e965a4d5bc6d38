"""What `benchmarks.packs` measures, at toy size."""

from __future__ import annotations

import pytest

from benchmarks.packs import KINDS, cases, describe, grids_of_blocks, measure


def test_a_case_is_measured() -> None:
    found = measure("50,176 pixels", 64, seconds=0.5)
    assert found["rows_a_block"] == [64] * 6
    # Four such blocks of 64 tokens a row fill a pack of 16,384.
    assert found["fill"] > 0.5
    assert 0 < found["device_busy"] <= 1
    assert all(found[name] > 0 for name in ("packs_s", "images_s", "cpu_ms_a_pack", "cores"))
    assert describe("name", found).count("\n") == 0


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("thumbnails", 800, 1400),
        ("50,176 pixels", 430, 470),  # 64 MiB / (256 * 588) = 446.
        ("web photos", 18, 45),
        ("12-megapixel photos", 4, 4),
        ("clips", 1, 1),
    ],
)
def test_blocks_have_the_rows_that_the_source_gives_them(kind: str, least: int, most: int) -> None:
    assert all(least <= len(grids) <= most for grids in grids_of_blocks(kind, None))


def test_every_kind_is_a_case() -> None:
    assert {kind for _, kind, _ in cases()} == set(KINDS)
