"""How many rows a call takes, by hand and by property."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.budgets import BLOCK_BYTES
from pipeline.call_sizes import CallLimits, cut, expected_bytes, expected_rows
from pipeline.progress import StillSizes
from processors import ImageOptions
from tests.support.preprocessing import preprocess_config

MIB = 2**20
CALL_BYTES = 256 * MIB
NOTHING = StillSizes()


def limits(
    rows: int, *, first: int | None = None, item: int = MIB, clip: int = 240 * MIB
) -> CallLimits:
    return CallLimits(
        rows=rows,
        first_rows=first or rows,
        item_bytes=item,
        clip_bytes=clip,
        block_bytes=BLOCK_BYTES,
    )


@pytest.mark.parametrize(
    ("file_bytes", "expected"),
    [
        (100_000, 1_000_000),  # Ten bytes of patches a byte of the file.
        (6_000_000, 17 * MIB),  # No more than an item can become.
        (None, 17 * MIB),
    ],
)
def test_before_anything_was_seen_a_file_becomes_ten_times_its_size(
    file_bytes: int | None, expected: int
) -> None:
    assert expected_bytes(NOTHING, file_bytes, 17 * MIB) == expected


def test_what_was_seen_decides_what_is_expected() -> None:
    seen = StillSizes(items=1000, file_bytes=200_000_000, patch_bytes=800_000_000)
    # (10 MiB + 800 MB) / (1 MiB + 200 MB) = 4.03 times as many.
    assert expected_bytes(seen, 100_000, 17 * MIB) == pytest.approx(403_000, rel=1e-3)
    # Without a size: 1,000 items of 800 kB, and four of 17 MiB.
    assert expected_bytes(seen, None, 17 * MIB) == pytest.approx(867_835, rel=1e-4)


def test_photos_of_the_default_budget_share_a_call_that_fills_several_blocks() -> None:
    found = CallLimits.of(preprocess_config(ImageOptions()), rows=512, first_rows=8)
    # 0.7 megapixels: 2.1 MB of patches from files of 180 kB, which were expected to make 1.8.
    ends = cut([("image", 180_000)] * 2000, found, NOTHING)
    assert ends[1:6] == [8, 20, 38, 65, 106]
    assert max(end - start for start, end in pairwise(ends)) == CALL_BYTES // 1_800_000


@pytest.mark.parametrize(
    ("mean_file_bytes", "rows"),
    [(6_000, 512), (180_000, 149), (4_000_000, 15), (0, 512)],
)
def test_rows_of_a_call_are_expected_from_the_mean_size_of_files(
    mean_file_bytes: float, rows: int
) -> None:
    # 256 MiB of patches: ten times the file's bytes, 17 MiB at the most.
    assert expected_rows(limits(512, item=17 * MIB), mean_file_bytes) == rows


@pytest.mark.parametrize(
    ("kinds", "ends"),
    [
        ("iiviivv", [0, 2, 3, 5, 6, 7]),  # Each clip by itself, and images on both sides of it.
        ("vi", [0, 1, 2]),
        ("i" * 7, [0, 4, 7]),  # No more rows than there may be.
        ("", [0, 0]),
    ],
)
def test_a_clip_that_may_be_larger_than_a_block_comes_alone(kinds: str, ends: list[int]) -> None:
    items = [("video" if kind == "v" else "image", 1000) for kind in kinds]
    assert cut(items, limits(4), NOTHING) == ends


def test_clips_that_are_smaller_than_a_block_share_a_call() -> None:
    items = [("video", 10**9)] * 9
    assert cut(items, limits(100, clip=64 * MIB), NOTHING) == [0, 4, 8, 9]


def test_the_first_calls_are_small_and_grow() -> None:
    items = [("image", 1)] * 60
    # 8, 12, 18 and 20 rows, and what is left.
    assert cut(items, limits(20, first=8), NOTHING) == [0, 8, 20, 38, 58, 60]
    assert cut(items[:12], limits(5, first=8), NOTHING) == [0, 5, 10, 12]


@given(
    items=st.lists(
        st.tuples(st.sampled_from(["image", "video", None]), st.none() | st.integers(0, 40 * MIB)),
        max_size=60,
    ),
    rows=st.integers(1, 64),
    first=st.integers(1, 64),
    item=st.sampled_from([150_528, 17 * MIB, 300 * MIB]),
    clip=st.sampled_from([MIB, 240 * MIB]),
    seen=st.builds(
        StillSizes,
        items=st.integers(0, 10**6),
        file_bytes=st.integers(0, 10**12),
        patch_bytes=st.integers(0, 10**12),
    ),
)
def test_every_row_is_in_one_call_and_no_call_can_take_another(
    items: list[tuple[str | None, int | None]],
    rows: int,
    first: int,
    item: int,
    clip: int,
    seen: StillSizes,
) -> None:
    def expected(row: int) -> float:
        kind, size = items[row]
        return clip if kind == "video" else expected_bytes(seen, size, item)

    ends = cut(items, limits(rows, first=first, item=item, clip=clip), seen)
    assert (ends[0], ends[-1]) == (0, len(items))
    most = min(first, rows)
    for start, end in pairwise(ends):
        assert start < end or not items
        assert end - start <= most
        own = sum(expected(row) for row in range(start, end))
        assert end - start <= 1 or own <= CALL_BYTES
        apart = clip > BLOCK_BYTES and end < len(items)
        by_clip = apart and "video" in (items[end - 1][0], items[end][0])
        full = end - start == most or (end < len(items) and own + expected(end) > CALL_BYTES)
        assert full or by_clip or end == len(items)
        most = min(math.ceil(most * 3 / 2), rows)
