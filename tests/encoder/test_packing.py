import time
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoder import Segment, fill_ratio, next_pack, plan_packs, segments_of
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


def test_packs_are_filled_longest_first_into_the_tightest_room() -> None:
    # 6 leaves room 4, 5 leaves room 5; 4 fits the first exactly, 3 only the second.
    assert plan_packs([3, 4, 5, 6], budget=10) == [[3, 1], [2, 0]]


def test_the_last_place_is_filled() -> None:
    assert plan_packs([4, 1], budget=5) == [[0, 1]]


def test_equal_lengths_become_neighbours_in_their_order() -> None:
    assert plan_packs([2, 3, 2, 3, 2], budget=100) == [[1, 3, 0, 2, 4]]


def test_nothing_makes_no_packs() -> None:
    assert plan_packs([], budget=5) == []
    assert fill_ratio([], [], budget=5) == 1.0


def test_fill_ratio_counts_an_oversize_pack_as_full() -> None:
    assert fill_ratio([[0], [1]], [30, 5], budget=10) == 35 / 40


def test_cu_seqlens_start_at_zero_and_end_at_the_total() -> None:
    assert cu_seqlens([2, 3]) == [0, 2, 5]
    assert cu_seqlens([]) == [0]


@given(st.lists(st.integers(1, 300), max_size=200), st.integers(1, 250))
def test_every_segment_is_packed_once_within_the_budget(lengths: list[int], budget: int) -> None:
    packs = plan_packs(lengths, budget)
    assert sorted(index for pack in packs for index in pack) == list(range(len(lengths)))
    for pack in packs:
        assert len(pack) == 1 or sum(lengths[index] for index in pack) <= budget
    assert packs == plan_packs(lengths, budget)


@given(st.lists(st.integers(1, 50), max_size=100), st.integers(50, 100))
def test_packs_are_within_the_bound_of_best_fit_decreasing(lengths: list[int], budget: int) -> None:
    least = -(-sum(lengths) // budget)
    packs = plan_packs(lengths, budget)
    # Two packs at most half full would have been one.
    assert len(packs) <= 2 * least
    assert 0 < fill_ratio(packs, lengths, budget) <= 1


def test_a_hundred_thousand_segments_take_a_moment() -> None:
    lengths = [4 * (1 + i * 7919 % 4000) for i in range(100_000)]
    start_s = time.perf_counter()
    packs = plan_packs(lengths, budget=32_768)
    assert time.perf_counter() - start_s < 5
    assert fill_ratio(packs, lengths, budget=32_768) > 0.99


@pytest.mark.parametrize(
    ("lengths", "budget", "message"),
    [([1], 0, "budget=0 is not positive"), ([3, 0], 5, r"lengths\[1\]=0 is not positive")],
)
def test_what_is_not_positive_is_refused(lengths: list[int], budget: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_packs(lengths, budget)


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
