"""Clocks that jump between any two looks at them: nothing is decided by the time of day."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path

import pytest

from pipeline.commit import commit_shard, recover
from pipeline.errors import StorageError
from pipeline.manifest import committed, read_shard, shards_of
from pipeline.retry import plan_retry
from pipeline.status import status
from pipeline.storage import storage_for
from pipeline.verify import verify

YEARS = [2026, 1970, 2999, 2025, 2100, 1999]
DAY_S = 24 * 3600


@pytest.fixture
def jumping(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at the time of day says another year, and not always a later one."""
    years = itertools.cycle(YEARS)

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime(next(years), 1, 1, tzinfo=tz)

    for name in ("commit", "freeze", "record"):
        monkeypatch.setattr(f"pipeline.{name}.datetime", Clock)
    yield


def test_generations_commits_and_retries_do_not_ask_which_came_first(
    jumping, tmp_path: Path, write_manifest, freeze, commit, score
) -> None:
    output, uris = str(tmp_path / "output"), [f"/{n}.jpg" for n in range(5)]
    for number, version in enumerate(("old", "new")):
        location = write_manifest({"uri": uris, "version": [version] * 5})
        _, generation = freeze(output, location, shard_rows=2)
        assert generation.number == number
        commit(output, generation, failed={0: "corrupt"})
    report, existing = plan_retry(output)
    assert report.errors == {"corrupt": 3}
    commit(output, existing[-1])
    made = [json.loads(path.read_bytes())["committed_at"] for path in markers(tmp_path)]
    assert sorted(made) != made, "the clock did not jump back"
    items = status(output).items
    assert (items.items, items.embedded, items.failed, items.open) == (5, 5, 0, 0)
    score.objects(verify(output).breaches)


def markers(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "output" / "_patchflow" / "commits").iterdir())


def test_a_clock_that_is_days_ahead_costs_a_writer_at_most_its_attempt(
    tmp_path: Path, monkeypatch, write_manifest, freeze, begin, commit_config, encoded_block, score
) -> None:
    """Another run takes this one's temporary file for one that was left behind."""
    output = str(tmp_path / "output")
    _, generation = freeze(output, write_manifest({"uri": ["/a.jpg", "/b.jpg"]}), shard_rows=2)
    begin(output)
    (shard,) = shards_of(generation, without=set())
    block, config = encoded_block(read_shard(output, shard)), commit_config(output, generation)
    ahead = time.time() + 9 * DAY_S

    def fsync_amid_cleaning(descriptor: int) -> None:
        with monkeypatch.context() as patch:
            patch.setattr("pipeline.local.time.time", lambda: ahead)
            storage_for(output).clean(output)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.local.os.fsync", fsync_amid_cleaning)
        with pytest.raises(StorageError, match="was removed while it was written"):
            commit_shard(block, config)
    assert (committed(output), recover(output, set())) == (set(), set())
    commit_shard(block, config)
    assert committed(output) == {shard.id}
    score.objects(verify(output).breaches)
