"""What is remembered of processes that ended, and when a device is given up."""

from __future__ import annotations

import pytest

from pipeline.attempts import MOST_ENDS, Attempts

CPU = "node cpu"


@pytest.fixture
def attempts() -> Attempts:
    """One encoder on one device, started."""
    found = Attempts()
    assert found.start("encoder", CPU) is None
    return found


def test_an_end_is_held_against_all_that_was_under_way(attempts: Attempts) -> None:
    attempts.begin("encoder", "done")
    attempts.done("encoder", "done", embedded=True)
    for task in ("block", "other block"):
        assert attempts.begin("encoder", task) == 0
    attempts.start("encoder", CPU)
    assert attempts.deaths(["done", "block", "other block", "never begun"]) == [0, 1, 1, 0]
    assert attempts.begin("encoder", "block") == 1
    attempts.start("encoder", CPU)
    assert attempts.deaths(["done", "block", "other block", "never begun"]) == [0, 2, 1, 0]


def test_an_end_is_no_fault_of_other_processes_tasks(attempts: Attempts) -> None:
    attempts.start("other encoder", CPU)
    attempts.begin("encoder", "block")
    attempts.begin("other encoder", "other block")
    attempts.start("encoder", CPU)
    assert attempts.deaths(["block", "other block"]) == [1, 0]


def test_what_was_redone_and_done_keeps_its_ends(attempts: Attempts) -> None:
    # Its result may be lost with a machine, and asked for again.
    attempts.begin("encoder", "block")
    attempts.start("encoder", CPU)
    attempts.begin("encoder", "block")
    attempts.done("encoder", "block", embedded=True)
    attempts.start("encoder", CPU)
    assert attempts.begin("encoder", "block") == 1


def test_a_device_is_given_up_after_so_many_ends_in_a_row(attempts: Attempts) -> None:
    # Whether the processes had begun anything or not.
    for _ in range(MOST_ENDS - 1):
        assert attempts.start("encoder", CPU) is None
    why = f"{MOST_ENDS} times in a row on node cpu: it crashed or was killed"
    assert attempts.start("encoder", CPU) == why
    assert attempts.ends("encoder") == MOST_ENDS


def test_a_device_is_given_up_with_the_first_reason_of_its_last_process(
    attempts: Attempts,
) -> None:
    for number in range(MOST_ENDS):
        attempts.report("encoder", f"reason {number}")
        attempts.report("encoder", "what its other call failed with")
        why = attempts.start("encoder", CPU)
    assert why == f"{MOST_ENDS} times in a row on node cpu: reason {MOST_ENDS - 1}"


def test_what_is_embedded_shows_that_its_device_is_well(attempts: Attempts) -> None:
    for _ in range(3 * MOST_ENDS):
        assert attempts.start("encoder", CPU) is None
        attempts.begin("encoder", "block")
        attempts.done("encoder", "block", embedded=True)
        assert attempts.ends("encoder") == 0


def test_a_block_in_which_nothing_is_embedded_shows_nothing(attempts: Attempts) -> None:
    for number in range(1, MOST_ENDS + 1):
        attempts.begin("encoder", "block")
        attempts.done("encoder", "block", embedded=False)
        why = attempts.start("encoder", CPU)
        assert attempts.ends("encoder") == number
    assert why is not None


def test_all_encoders_of_a_device_count_together_and_no_others(attempts: Attempts) -> None:
    attempts.start("other encoder", CPU)
    attempts.start("far encoder", "far cpu")
    for _ in range(MOST_ENDS // 2):
        attempts.start("encoder", CPU)
        attempts.start("other encoder", CPU)
    assert attempts.ends("encoder") == MOST_ENDS
    assert attempts.ends("far encoder") == 0


def test_an_end_counts_where_it_came_not_where_the_next_process_is(attempts: Attempts) -> None:
    attempts.start("encoder", "far cpu")
    assert attempts.ends("encoder") == 0
    attempts.start("encoder", CPU)
    assert attempts.ends("encoder") == 1
