"""Rates from sums that are looked at now and then, by hand."""

from __future__ import annotations

from pipeline.pace import Pace
from pipeline.progress import Counts
from tests.support.progress import workers


def pace(total: int = 1000) -> Pace:
    return Pace(total, workers(), began=100.0)


def test_before_the_first_items_there_is_nothing_to_see() -> None:
    found = pace()
    found.add(110.0, Counts(preprocessed=64))
    assert (found.recent, found.steady, found.steady_items_s) == (None, None, 0.0)
    found.add(111.0, Counts(preprocessed=128, items=64))
    assert (found.recent, found.steady, found.steady_items_s) == (None, None, 0.0)
    assert found.counts.items == 64


def test_rates_are_those_since_the_first_items() -> None:
    found = pace()
    found.add(110.0, Counts(items=64, preprocessed=100))
    found.add(120.0, Counts(items=164, preprocessed=300, tokens=500))
    assert found.recent is not None
    assert found.recent == found.steady
    assert (found.recent.seconds, found.recent.tokens_s) == (10.0, 50.0)
    assert (found.recent.preprocess.items_s, found.recent.encode.items_s) == (20.0, 10.0)
    assert found.steady_items_s == 10.0


def test_recent_is_the_last_minute_and_steady_all_of_it() -> None:
    found = pace()
    # Ten items a second for a minute, and twenty in the next.
    for second in range(0, 121, 10):
        items = 1 + 10 * second + 10 * max(0, second - 60)
        found.add(200.0 + second, Counts(items=items, preprocessed=0))
    assert found.recent is not None and found.steady is not None
    assert (found.recent.seconds, found.recent.encode.items_s) == (60.0, 20.0)
    assert (found.steady.seconds, found.steady.encode.items_s) == (120.0, 15.0)


def test_the_steady_part_ends_with_the_last_items_to_preprocess() -> None:
    found = pace(total=300)
    found.add(110.0, Counts(items=64, preprocessed=100))
    found.add(120.0, Counts(items=164, preprocessed=299))
    found.add(130.0, Counts(items=200, preprocessed=300))
    found.add(140.0, Counts(items=300, preprocessed=300))
    assert found.steady is not None and found.recent is not None
    assert (found.steady.seconds, found.steady.encode.items_s) == (10.0, 10.0)
    assert found.recent.seconds == 30.0
    assert found.steady_items_s == 236 / 30


def test_a_run_whose_items_are_preprocessed_before_one_is_encoded_has_no_steady_part() -> None:
    found = pace(total=64)
    found.add(110.0, Counts(items=32, preprocessed=64))
    found.add(111.0, Counts(items=64, preprocessed=64))
    assert found.steady is None
