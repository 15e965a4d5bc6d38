"""CPUs that an encoder may have. By hand: blocks of ten items, each decoded for half a second."""

import numpy as np
import pytest

from pipeline.idle_cpus import IdleCpus, Sharing
from pipeline.progress import Counts


def counts(preprocessed: int, encoded: int, **more: float) -> Counts:
    """After so many blocks."""
    seconds = {"decode_s": 0.4 * preprocessed, "resize_s": 0.1 * preprocessed}
    return Counts(
        preprocessed=10 * preprocessed,
        preprocessed_blocks=preprocessed,
        encoded_blocks=encoded,
        **seconds | more,  # type: ignore[arg-type]
    )


def idle_cpus(encoders: int = 1) -> IdleCpus:
    return IdleCpus(Sharing(threads=2, encoders=encoders, items=1000))


def test_they_are_there_while_encoders_are_behind_and_blocks_wait() -> None:
    cpus = idle_cpus()
    assert not cpus.are_there(100, counts(1, 0))  # Its own, and no other.
    assert not cpus.are_there(104, counts(5, 1))  # Half of a CPU's time: 2 s in 4 s.
    assert cpus.are_there(108, counts(8, 2))  # 1.5 s in 4 s, and five wait.
    assert cpus.are_there(109, counts(18, 3))
    assert cpus.are_there(110, counts(18, 16))
    assert not cpus.are_there(111, counts(18, 17))  # The last is in its hands.
    assert not cpus.are_there(112, counts(20, 17))


def test_what_was_before_the_first_look_says_nothing() -> None:
    # Starting took ten seconds, in which there was nothing to preprocess yet.
    cpus = idle_cpus()
    assert not cpus.are_there(10, counts(5, 0))
    assert not cpus.are_there(10.1, counts(6, 0))
    # An encoder that was started anew: preprocessing was at work for minutes before.
    cpus = idle_cpus()
    assert not cpus.are_there(500, counts(90, 80))
    assert cpus.are_there(510, counts(93, 80))


def test_what_is_counted_when_a_block_ends_is_not_missed_while_it_is_made() -> None:
    cpus = idle_cpus()
    # Half a second a block, one after the other: nothing is idle, however often it is asked.
    for now in np.arange(2.0, 49.0, 0.3):
        done = int(now / 0.5)
        assert not cpus.are_there(now, counts(done, done - 3))


def test_long_clips_after_short_photos_are_work() -> None:
    cpus = idle_cpus()
    assert not cpus.are_there(50, counts(90, 80))
    for now in (52, 60, 69):
        assert not cpus.are_there(now, counts(90, 81))
    # Two actors, twenty seconds a clip.
    assert not cpus.are_there(71, counts(92, 82, decode_s=36 + 40))
    assert not cpus.are_there(91, counts(94, 83, decode_s=36 + 80))


def test_each_encoder_has_a_block_waiting_for_it() -> None:
    cpus = idle_cpus(encoders=2)
    assert not cpus.are_there(10, counts(1, 0))
    assert not cpus.are_there(20, counts(4, 1))  # Two in their hands, and one.
    assert cpus.are_there(30, counts(7, 3))


def test_waiting_for_storage_takes_no_cpu() -> None:
    cpus = idle_cpus()
    assert not cpus.are_there(0, counts(0, 0))
    assert cpus.are_there(10, counts(6, 1, fetch_s=6))


@pytest.mark.parametrize("encoded", [97, 99, 100])
def test_they_are_there_when_all_is_preprocessed(encoded: int) -> None:
    cpus = idle_cpus()
    assert not cpus.are_there(49, counts(99, 98))
    assert cpus.are_there(49.1, counts(100, encoded))
    assert cpus.are_there(49.2, counts(100, 100))
