from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoder import Segment, next_pack, segments_of
from encoder.packing import cu_seqlens


def test_items_are_cut_at_temporal_slices() -> None:
    assert segments_of([(1, 2, 4), (2, 4, 2)]) == [
        Segment(0, 0, 2, 4),
        Segment(1, 0, 4, 2),
        Segment(1, 1, 4, 2),
    ]
    assert Segment(0, 0, 2, 4).num_patches == 8


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([(1, 2)], r"grid_thw\[0\]=\(1, 2\) is not three positive integers"),
        ([(1, 2, 3), (1, -2, 3)], r"grid_thw\[1\]=\(1, -2, 3\) is not three positive integers"),
        ((1, 2, 3), r"grid_thw=\(1, 2, 3\) is not a list of grids"),
    ],
)
def test_grids_that_are_none_are_refused(grids: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segments_of(grids)


def test_arrays_and_tensors_of_grids_are_cut_as_lists_are() -> None:
    grids = [(1, 2, 4), (2, 4, 2)]
    for array in (np.array(grids), torch.tensor(grids), list(torch.tensor(grids)), iter(grids)):
        segments = segments_of(array)
        assert segments == segments_of(grids)
        assert {type(number) for segment in segments for number in segment} == {int}


def test_cu_seqlens_start_at_zero_and_end_at_the_total() -> None:
    assert cu_seqlens([2, 3]) == [0, 2, 5]
    assert cu_seqlens([]) == [0]


def test_a_pack_from_a_queue_has_its_first_segment_and_what_still_fits() -> None:
    assert next_pack([4, 9, 5, 2, 1], budget=10) == [0, 2, 4]
    assert next_pack([11, 1], budget=10) == [0]
    assert next_pack([], budget=10) == []


@given(st.lists(st.integers(1, 120), max_size=100), st.integers(50, 100))
def test_a_queue_is_emptied_within_the_budget_and_the_bound(
    lengths: list[int], budget: int
) -> None:
    waiting, packs = sorted(lengths, reverse=True), []
    while waiting:
        taken = next_pack(waiting, budget)
        packs.append([waiting[at] for at in taken])
        waiting = [length for at, length in enumerate(waiting) if at not in taken]
    assert sorted(length for pack in packs for length in pack) == sorted(lengths)
    shared = [sum(pack) for pack in packs if sum(pack) <= budget]
    assert all(len(pack) == 1 for pack in packs if sum(pack) > budget)
    # Two packs at most half full would have been one.
    assert len(shared) <= 2 * -(-sum(shared) // budget)
