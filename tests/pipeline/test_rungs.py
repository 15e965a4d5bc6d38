"""Which rung a GPU model is on."""

from __future__ import annotations

from pipeline.rungs import RUNGS, Ladder, next_rung

COMPILED, PLAIN, SDPA, MATH = RUNGS["cuda"]


def test_rungs_go_from_the_fastest_to_the_plainest() -> None:
    names = ["compiled varlen", "plain varlen", "plain sdpa", "plain math"]
    assert [str(rung) for rung in RUNGS["cuda"]] == names
    below = [next_rung("cuda", rung) for rung in RUNGS["cuda"]]
    assert below == [PLAIN, SDPA, MATH, None]


def test_a_cpu_has_one_rung() -> None:
    (only,) = RUNGS["cpu"]
    assert next_rung("cpu", only) is None
    assert Ladder().give_up("cpu", "cpu", only, "node cpu", "it is off") is None


def test_a_model_goes_down_rung_by_rung_and_the_last_stays() -> None:
    ladder = Ladder()
    for rung, below in ((COMPILED, PLAIN), (PLAIN, SDPA), (SDPA, MATH)):
        assert ladder.rung("H200", "cuda") == rung
        assert ladder.give_up("H200", "cuda", rung, "gpu 0", "it fails") == below
    assert ladder.give_up("H200", "cuda", MATH, "gpu 0", "it fails") is None
    assert ladder.rung("H200", "cuda") == MATH
    assert len(ladder.lines()) == 3
    assert ladder.rung("L4", "cuda") == COMPILED


def test_rungs_that_others_have_given_up_are_skipped() -> None:
    ladder = Ladder()
    assert ladder.give_up("H200", "cuda", COMPILED, "gpu 0", "no compiler") == PLAIN
    assert ladder.give_up("H200", "cuda", PLAIN, "gpu 0", "it is off") == SDPA
    # Started before that, and hangs now.
    assert ladder.give_up("H200", "cuda", COMPILED, "gpu 1", "it hangs") == SDPA
    assert ladder.lines() == [
        "H200: no compiler; plain varlen kernels are used",
        "H200: it is off; plain sdpa kernels are used",
    ]


def test_what_a_device_gave_up_is_forgotten_with_it_and_nothing_else() -> None:
    ladder = Ladder()
    ladder.give_up("H200", "cuda", COMPILED, "gpu 0", "no compiler")
    ladder.give_up("H200", "cuda", PLAIN, "gpu 1", "it is off")
    ladder.forget("gpu 1")
    assert ladder.rung("H200", "cuda") == PLAIN
    ladder.forget("gpu 0")
    assert ladder.rung("H200", "cuda") == COMPILED
    assert ladder.lines() == []
