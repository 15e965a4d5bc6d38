"""Shares and rates of stages, by hand; and which stage is named as the limit, and when none is."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from pipeline.progress import Counts, ProgressCounter
from pipeline.stages import Figures, Stage, limit
from tests.support.progress import workers

BEFORE = Counts(
    read=256,
    shards_read=1,
    read_s=0.25,
    items=100,
    errors=Counter(corrupt=1),
    tokens=1000,
    capacity=2000,
    encoded_blocks=10,
    encode_s=5.0,
    preprocessed=164,
    preprocessed_blocks=12,
    fetch_s=1.0,
    decode_s=2.0,
    resize_s=3.0,
    cpu_s=3.0,
    committed=50,
    commits=1,
    commit_s=0.5,
)
MORE = Counts(
    read=1280,
    shards_read=5,
    read_s=4.0,
    items=1000,
    tokens=9000,
    capacity=10_000,
    encoded_blocks=20,
    encode_s=6.0,
    flop=30,
    ceiling_flop=120.0,
    preprocessed=1100,
    preprocessed_blocks=22,
    fetch_s=2.5,
    decode_s=7.5,
    resize_s=5.0,
    cpu_s=3.75,
    committed=800,
    commits=2,
    commit_s=4.0,
)


def summed(*all_counts: Counts) -> Counts:
    counter = ProgressCounter(1)
    for counts in all_counts:
        counter.add(counts)
    return counter.snapshot()


def test_shares_are_of_the_actors_time_and_rates_of_the_seconds() -> None:
    now = summed(BEFORE, MORE)
    found = Figures.of(now, BEFORE, 10.0, workers(preprocess=2, gpus=1.0))
    assert found == Figures(
        seconds=10.0,
        driver=0.0,
        source=Stage(actors=1, blocks=5, items_s=128.0, busy=0.4),
        # Of two actors' twenty. 1536 are read, of which 1264 are preprocessed.
        preprocess=Stage(actors=2, blocks=22, items_s=110.0, busy=0.75, queue=272),
        # 1264 are preprocessed and 1100 encoded, of which 850 are committed.
        encode=Stage(actors=1, blocks=20, items_s=100.0, busy=0.6, queue=164),
        commit=Stage(actors=2, blocks=2, items_s=80.0, busy=0.2, queue=250),
        fetch=0.125,
        decode=0.375,
        resize=0.25,
        cpu=0.75,
        tokens_s=900.0,
        fill=0.9,
        ceiling=0.25,
        on_gpus=True,
    )


def test_nothing_that_was_not_measured_is_divided_by() -> None:
    found = Figures.of(Counts(), Counts(), 1.0, workers())
    assert (found.cpu, found.ceiling, found.fill) == (None, None, 0.0)
    assert found.encode.speed == float("inf")


def test_a_block_that_took_longer_than_what_is_looked_at_is_a_whole_share() -> None:
    counts = Counts(preprocessed=1, preprocessed_blocks=1, decode_s=70.0)
    found = Figures.of(counts, Counts(), 60.0, workers())
    assert (found.preprocess.busy, found.decode) == (1.0, 1.0)


def test_reports_that_overtake_each_other_leave_no_negative_queue() -> None:
    counts = Counts(items=64, preprocessed=32, committed=100)
    found = Figures.of(counts, Counts(), 1.0, workers())
    assert [found.preprocess.queue, found.encode.queue, found.commit.queue] == [0, 0, 0]


def test_each_stage_has_a_line_and_all_have_one_together() -> None:
    found = Figures.of(summed(BEFORE, MORE), BEFORE, 10.0, workers(gpus=1.0))
    assert found.lines() == {
        "source": "40% busy, 128.0 items/s",
        "preprocess": "100% busy, 110.0 items/s, queue 272: fetch 17%, decode 50%, resize 33%",
        "encode": "60% busy, 100.0 items/s, queue 164, fill 90%, 25% of the ceiling",
        "commit": "20% busy, 80.0 items/s, queue 250",
    }
    assert found.in_short() == (
        "preprocess 100% busy, encode 60%, queue 164, fill 90%, 25% of the ceiling"
    )


def stage(
    busy: float,
    *,
    items_s: float = 100.0,
    actors: int = 1,
    blocks: int = 50,
    queue: int | None = 100,
) -> Stage:
    return Stage(actors=actors, blocks=blocks, items_s=items_s, busy=busy, queue=queue)


def figures(preprocess: Stage, encode: Stage, commit: float = 0.03, **others: Any) -> Figures:
    """Those of half a minute, in which the preprocessing actors mostly decode."""
    known = Figures(
        seconds=30.0,
        driver=0.1,
        source=stage(0.02, actors=8, queue=None),
        preprocess=preprocess,
        encode=encode,
        commit=stage(commit),
        fetch=0.01,
        decode=0.6,
        resize=0.3,
        cpu=0.95,
        tokens_s=5000.0,
        fill=0.95,
        ceiling=None,
        on_gpus=False,
    )
    return replace(known, **others)


def named(found: Figures | None) -> str:
    return limit(found, items=4504, seconds=45.0)


def test_a_busy_preprocess_before_an_idle_encoder_wants_actors() -> None:
    assert named(figures(stage(0.96, actors=3), stage(0.6))) == (
        "preprocess (preprocess 96% busy, encode 60%, commit 3%): more --preprocess-actors (3 now; "
        "about 5 would keep the encoder busy) if CPUs are idle, or more CPUs"
    )


def test_one_that_waits_for_files_is_limited_by_storage() -> None:
    assert named(figures(stage(0.96, actors=3), stage(0.6), fetch=0.7, decode=0.1)) == (
        "fetch (preprocess 96% busy, encode 60%, commit 3%): more --preprocess-actors (3 now), "
        "each of which reads ahead, or storage that answers sooner"
    )


@pytest.mark.parametrize(
    ("others", "change"),
    [
        ({}, "a GPU, or more --encoder-actors (2 now) and CPUs for them"),
        ({"on_gpus": True}, "more GPUs (2 now)"),
        ({"on_gpus": True, "cpu": 0.5}, "more GPUs (2 now)"),
        ({"fill": 0.6}, "its packs were 60% full: raise --token-budget"),
        ({"on_gpus": True, "fill": 0.6}, "its packs were 60% full: raise --token-budget"),
    ],
)
def test_a_busy_encoder_is_the_limit(others: dict[str, Any], change: str) -> None:
    found = figures(stage(0.5), stage(0.97, actors=2), **others)
    assert named(found) == f"encode (preprocess 50% busy, encode 97%, commit 3%): {change}"


def test_a_preprocess_that_only_runs_ahead_is_not_the_limit() -> None:
    # Both work all the time, but what the one makes queues up before the other.
    found = figures(stage(0.97, items_s=200.0), stage(0.97, items_s=100.0))
    assert named(found).startswith("encode (")


def test_stages_that_keep_up_with_each_other_are_limits_both() -> None:
    both = stage(0.97), stage(0.93)
    assert named(figures(*both)) == (
        "preprocess and encode alike (preprocess 97% busy, encode 93%, commit 3%): more CPUs, or a "
        "GPU to encode on"
    )
    assert named(figures(*both, on_gpus=True)).endswith(": more CPUs and GPUs")


@pytest.mark.parametrize(
    ("stages", "on_gpus"),
    [((0.97, 0.97), False), ((0.97, 0.6), False), ((0.6, 0.97), False), ((0.97, 0.6), True)],
)
def test_work_that_gets_too_little_of_its_cpu_is_limited_by_the_machine(
    stages: tuple[float, float], on_gpus: bool
) -> None:
    found = figures(*map(stage, stages), on_gpus=on_gpus, cpu=0.62)
    assert named(found).startswith("the machine's CPUs (")
    add = "add CPUs" if on_gpus else "add CPUs, or a GPU to encode on"
    assert named(found).endswith(
        f"): work that needs a whole CPU had 62% of one; more actors would only share them: {add}"
    )


def test_commits_that_are_always_under_way_are_the_limit() -> None:
    assert named(figures(stage(0.3), stage(0.4), 0.99)) == (
        "commit (preprocess 30% busy, encode 40%, commit 99%): storage for --output that answers "
        "sooner, or larger --shard-rows anew"
    )


def test_where_no_stage_is_busy_none_is_named() -> None:
    assert named(figures(stage(0.5), stage(0.6))) == (
        "not known: none of the stages was busy enough to be the limit (preprocess 50% busy, "
        "encode 60%, commit 3%)"
    )


def test_where_no_stage_is_busy_a_busy_driver_is_the_limit() -> None:
    assert named(figures(stage(0.5), stage(0.6), driver=0.93)) == (
        "the driver, which had 93% of a CPU (preprocess 50% busy, encode 60%, commit 3%): start "
        "several, each with its own --shards"
    )
    assert named(figures(stage(0.5), stage(0.97), driver=0.93)).startswith("encode (")


def test_where_actors_have_several_decoders_more_actors_are_no_advice() -> None:
    many = stage(0.96, actors=1536, blocks=9999)
    assert named(figures(many, stage(0.6), on_gpus=True)).endswith("): more CPUs")
    slow = figures(many, stage(0.6), on_gpus=True, fetch=0.7, decode=0.1)
    assert named(slow).endswith("): storage that answers sooner")


def test_source_tasks_that_always_read_are_the_limit() -> None:
    source = stage(0.9, actors=8, queue=None)
    assert named(figures(stage(0.5), stage(0.6), source=source)) == (
        "source (preprocess 50% busy, encode 60%, commit 3%): storage for --output that answers "
        "sooner: shards of the manifest lie there"
    )


def test_an_encoder_that_had_nothing_to_do_counts_for_no_actors() -> None:
    assert "(1 now) if" in named(figures(stage(0.97), stage(0.0)))


@pytest.mark.parametrize(
    "found",
    [
        None,
        figures(stage(0.97), stage(0.5), seconds=9.0),
        figures(stage(0.97, blocks=3), stage(0.5), seconds=11.0),
        figures(stage(0.97), stage(0.5, blocks=7, actors=2), seconds=11.0),
    ],
)
def test_a_run_that_mostly_starts_is_too_short_to_tell(found: Figures | None) -> None:
    assert named(found) == (
        "starting up, for most of the time: 4,504 items are too few to tell more"
    )


def test_few_blocks_that_take_long_are_too_few_to_tell() -> None:
    found = figures(stage(0.97, blocks=3), stage(0.5, blocks=3), seconds=40.0)
    assert named(found) == "not known: 4,504 items in 45 s are too few to tell"
