"""CPUs that an encoder may have. By hand: blocks of ten items, each decoded for half a second."""

import numpy as np
import pytest

from pipeline.idle_cpus import IdleCpus
from pipeline.progress import Counts


def counts(preprocessed: int, encoded: int, fetch_s: float = 0.0) -> Counts:
    """After so many blocks."""
    return Counts(
        preprocessed=10 * preprocessed,
        preprocessed_blocks=preprocessed,
        encoded_blocks=encoded,
        fetch_s=fetch_s,
        decode_s=0.4 * preprocessed,
        resize_s=0.1 * preprocessed,
    )


def idle_cpus(encoders: int = 1, cpus: int = 1) -> IdleCpus:
    return IdleCpus(items=1000, encoders=encoders, cpus=cpus, now=0)


def test_they_are_there_while_encoders_are_behind_and_blocks_wait() -> None:
    cpus = idle_cpus()
    assert not cpus.are_there(2, counts(1, 0))  # Its own, and no other.
    assert not cpus.are_there(4, counts(5, 1))  # Half of a CPU's time and more: 2.5 s in 4 s.
    assert cpus.are_there(8, counts(7, 2))  # 1 s in 4 s, and four wait.
    assert cpus.are_there(9, counts(10, 3))
    assert cpus.are_there(10, counts(10, 8))
    assert not cpus.are_there(11, counts(10, 9))  # The last is in its hands.
    assert not cpus.are_there(12, counts(12, 10))


def test_what_is_counted_when_a_block_ends_is_not_missed_while_it_is_made() -> None:
    cpus = idle_cpus()
    # Half a second a block, one after the other: nothing is idle, however often it is asked.
    for now in np.arange(2.0, 49.0, 0.3):
        done = int(now / 0.5)
        assert not cpus.are_there(now, counts(done, done - 3))


def test_each_encoder_has_a_block_waiting_for_it() -> None:
    cpus = idle_cpus(encoders=2, cpus=2)
    assert not cpus.are_there(10, counts(4, 1))  # Two in their hands, and one.
    assert cpus.are_there(20, counts(5, 1))


def test_waiting_for_storage_takes_no_cpu() -> None:
    assert idle_cpus().are_there(10, counts(6, 1, fetch_s=6))


@pytest.mark.parametrize("encoded", [97, 99, 100])
def test_they_are_there_when_all_is_preprocessed(encoded: int) -> None:
    cpus = idle_cpus()
    assert not cpus.are_there(49, counts(99, 98))
    assert cpus.are_there(49.1, counts(100, encoded))
    assert cpus.are_there(49.2, counts(100, 100))
