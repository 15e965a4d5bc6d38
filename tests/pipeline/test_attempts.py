"""What is remembered of processes that ended, and when a device is set aside."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.attempts import Attempts, Other
from pipeline.devices import MOST_ENDS
from pipeline.rungs import RUNGS

CPU = "node cpu"


@pytest.fixture
def attempts() -> Attempts:
    """One encoder on one device, started."""
    found = Attempts()
    assert found.start("encoder", CPU)
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


def test_a_device_is_set_aside_after_so_many_ends_in_a_row(attempts: Attempts) -> None:
    # Whether the processes had begun anything or not.
    for _ in range(MOST_ENDS - 1):
        assert attempts.start("encoder", CPU)
    assert not attempts.start("encoder", CPU)
    assert attempts.ends("encoder") == MOST_ENDS
    assert attempts.remarks() == [
        "node cpu is set aside: the encoder's process ended 6 times in a row on node cpu: it "
        "crashed or was killed"
    ]


def test_a_device_is_set_aside_with_the_first_reason_of_its_last_process(
    attempts: Attempts,
) -> None:
    for number in range(MOST_ENDS):
        attempts.report("encoder", f"reason {number}")
        attempts.report("encoder", "what its other call failed with")
        attempts.start("encoder", CPU)
    assert attempts.other_encoder().failure == (
        "the encoder's process ended 6 times in a row on node cpu: reason 5; shards stay open, run "
        "the same command again"
    )


def test_what_is_embedded_shows_that_its_device_is_well(attempts: Attempts) -> None:
    for _ in range(3 * MOST_ENDS):
        assert attempts.start("encoder", CPU)
        attempts.begin("encoder", "block")
        attempts.done("encoder", "block", embedded=True)
        assert attempts.ends("encoder") == 0


def test_a_block_in_which_nothing_is_embedded_shows_nothing(attempts: Attempts) -> None:
    for number in range(1, MOST_ENDS + 1):
        attempts.begin("encoder", "block")
        attempts.done("encoder", "block", embedded=False)
        fit = attempts.start("encoder", CPU)
        assert attempts.ends("encoder") == number
    assert not fit


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


def test_blocks_of_a_device_that_is_set_aside_go_to_the_encoders_of_others_in_turn() -> None:
    attempts = Attempts(devices=4)
    handles: dict[str, Any] = {name: object() for name in ("a", "b", "c")}
    attempts.start("a", "gpu 0", handles["a"])
    attempts.set_aside("a", "it is broken")
    # Another is expected, and has not started yet.
    assert attempts.other_encoder() == Other(unfit=1)
    for name, device in (("b", "gpu 1"), ("c", "gpu 2")):
        assert attempts.start(name, device, handles[name])
    found = [attempts.other_encoder() for _ in range(4)]
    assert found == [Other(actor=name, handle=handles[name]) for name in ("b", "c", "b", "c")]
    attempts.lose("b")
    assert attempts.other_encoder().actor == "c"
    attempts.lose("c")
    assert attempts.other_encoder() == Other(unfit=1)
    # A spare that is started on the device that is set aside asks for another one.
    assert not attempts.start("spare", "gpu 0", object())
    assert attempts.other_encoder() == Other(unfit=2)
    attempts.set_aside("b", "so is this")
    assert attempts.other_encoder().failure == "so is this (2 of 4 devices are set aside)"


def test_a_rung_that_one_gpu_gives_up_is_where_no_other_of_its_model_starts() -> None:
    attempts = Attempts(devices=8)
    for actor in ("a", "b", "c"):
        attempts.start(actor, f"gpu of {actor}")
    compiled, plain, sdpa, _ = RUNGS["cuda"]
    assert attempts.rungs("a", "H200", "cuda")[0] == compiled
    assert attempts.give_up("a", compiled, "no C compiler") == plain
    assert attempts.rungs("b", "H200", "cuda")[0] == plain
    assert attempts.rungs("c", "L4", "cuda")[0] == compiled
    # Another call fails with the same pack, and says so again.
    assert attempts.give_up("a", compiled, "no C compiler") == plain
    assert attempts.rungs("b", "H200", "cuda")[0] == plain
    assert attempts.give_up("b", plain, "it hangs") == sdpa
    lines = [
        "H200: no C compiler; plain varlen kernels are used",
        "H200: it hangs; plain sdpa kernels are used",
    ]
    assert attempts.remarks() == lines


def test_a_gpu_that_is_set_aside_says_nothing_of_its_model() -> None:
    attempts = Attempts(devices=8)
    attempts.start("a", "gpu 0")
    rung = attempts.rungs("a", "H200", "cuda")[0]
    while (below := attempts.give_up("a", rung, "it is off")) is not None:
        rung = below
    attempts.set_aside("a", "it is off")
    attempts.start("b", "gpu 1")
    assert attempts.rungs("b", "H200", "cuda")[0] == RUNGS["cuda"][0]
    assert attempts.remarks() == ["gpu 0 is set aside: it is off"]


def test_what_encoders_remark_is_kept_once(attempts: Attempts) -> None:
    for line in ("no Triton", "old driver", "no Triton"):
        attempts.remark(line)
    assert attempts.remarks() == ["no Triton", "old driver"]
