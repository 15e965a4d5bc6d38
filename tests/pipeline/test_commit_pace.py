"""How many commits run at once, by hand."""

from __future__ import annotations

import pytest

from pipeline.commit_pace import CommitPace


def pace(*, every_s: float, took_s: float, shards: int = 20, least: int = 2) -> CommitPace:
    found = CommitPace(least, 64)
    for number in range(shards):
        found.shard_is_whole(number * every_s)
        found.commit_took(took_s)
    return found


@pytest.mark.parametrize(
    ("every_s", "took_s", "at_once"),
    [
        (10.0, 1.0, 2),  # A tenth of one commit is under way on the average.
        (1.0, 4.0, 6),  # Four are; half as many to spare.
        (0.1, 4.0, 60),
        (0.01, 4.0, 64),  # The most there may be.
        (0.0, 4.0, 64),  # All at once.
    ],
)
def test_commits_at_once_follow_how_long_they_take_and_how_fast_shards_come(
    every_s: float, took_s: float, at_once: int
) -> None:
    assert pace(every_s=every_s, took_s=took_s).at_once == at_once


def test_it_begins_with_the_least_and_forgets_what_is_long_past() -> None:
    assert CommitPace(3, 64).at_once == 3
    assert pace(every_s=1.0, took_s=9.0, shards=1).at_once == 2
    slow = pace(every_s=1.0, took_s=9.0)
    assert slow.at_once == 14
    for number in range(20, 60):
        slow.shard_is_whole(float(number))
        slow.commit_took(0.5)
    assert slow.at_once == 2
