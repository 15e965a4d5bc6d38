"""`kill -9` of the whole process tree at random instants, on a disk and on S3, until it is done.

A story is one output: ten kills, each at an instant that the story's seed chooses, between the
very start and the last shard, and then a run that is left alone. What every run reads is counted,
so that work done twice is bounded by what was under way.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import build
from pipeline.verify import verify
from pipeline.workers import Workers
from tests.faults.proxy import FaultyS3
from tests.support.crowd import SHARD_ROWS, SHARDS, Crowd, Row, moved
from tests.support.outputs import Output
from tests.support.preprocessing import preprocess_config

STORIES = [("disk", 0), ("disk", 1), ("s3", 2), ("s3", 3)]
KILLS = 10
# Until its first commit a run starts Python, plans, and starts Ray and its actors.
STARTING_S = 8.0
BUCKET = "media"


class OnDisk:
    """A story on a disk: a file has been read once its access time is not the one it was given."""

    def __init__(self, crowd: Crowd, folder: Path) -> None:
        self._crowd = crowd
        self._output = Output(folder)
        self.args = (*crowd.args, "--output", folder)
        self.env: dict[str, str] = {}
        self.embeddings, self.errors = crowd.embeddings, crowd.errors
        self.commits, self.objects = self._output.commits, self._output.objects

    def forget_reads(self) -> None:
        for uri in self._crowd.originals:
            os.utime(uri, ns=(0, Path(uri).stat().st_mtime_ns))

    def reads(self) -> int:
        return sum(Path(uri).stat().st_atime_ns != 0 for uri in self._crowd.originals)

    def downloaded(self) -> Output:
        return self._output


class OnS3:
    """A story on S3, through a proxy that has no faults and sees every request."""

    def __init__(self, crowd: Crowd, s3: Any, proxy: FaultyS3, prefix: str, folder: Path) -> None:
        self._s3, self._proxy, self._prefix, self._folder = s3, proxy, prefix, folder
        self.env = s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint}
        output = f"s3://embeddings/{prefix}"
        self.args = ("s3://media/crowd", *crowd.options, "--output", output)
        versions = {uri: f"s3://{BUCKET}/{key}" for uri, key in keys(crowd).items()}
        etags = {f"s3://{BUCKET}/{key}": etag for key, etag in s3.etags("crowd/").items()}

        def here(row: Row) -> Row:
            uri = versions[row["uri"]]
            return moved(row, uri, version=etags[uri])

        self.embeddings = [here(row) for row in crowd.embeddings]
        self.errors = [here(row) for row in crowd.errors]

    def commits(self) -> set[str]:
        names = self._s3.objects(f"{self._prefix}/_patchflow/commits/")
        return {name.rsplit("/", 1)[1].removesuffix(".json") for name in names}

    def objects(self) -> dict[str, Any]:
        found: dict[str, Any] = self._s3.objects(f"{self._prefix}/")
        return found

    def forget_reads(self) -> None:
        self._proxy.requests.clear()

    def reads(self) -> int:
        media = f"{BUCKET}/crowd/"
        asked = {r.key for r in self._proxy.requests if r.method == "GET"}
        return sum(key.startswith(media) and key != media for key in asked)

    def downloaded(self) -> Output:
        found: Output = self._s3.download(self._prefix, self._folder)
        return found


def keys(crowd: Crowd) -> dict[str, str]:
    return {uri: f"crowd/{Path(uri).relative_to(crowd.folder)}" for uri in crowd.originals}


@pytest.fixture(scope="module")
def uploaded(crowd: Crowd, s3: Any) -> Iterator[FaultyS3]:
    """The crowd in a bucket, behind the proxy."""
    s3.put({key: Path(uri).read_bytes() for uri, key in keys(crowd).items()})
    with FaultyS3(s3.env["AWS_ENDPOINT_URL"]) as proxy:
        yield proxy


@pytest.fixture(params=STORIES, ids=lambda story: f"{story[0]}-seed{story[1]}")
def story(request: pytest.FixtureRequest, crowd: Crowd, tmp_path: Path) -> tuple[Any, int]:
    kind, seed = request.param
    if kind == "disk":
        return OnDisk(crowd, tmp_path / "output"), seed
    proxy = request.getfixturevalue("uploaded")
    s3 = request.getfixturevalue("s3")
    return OnS3(crowd, s3, proxy, f"stories/{seed}", tmp_path / "downloaded"), seed


def under_way() -> int:
    """Items that a run of one actor of each kind may have under way, as it is laid out."""
    workers = Workers(
        preprocess=1,
        encode=1,
        preprocess_cpus=1,
        encode_cpus=1,
        encode_gpus=0,
        preprocess_bytes=1,
        encode_bytes=1,
        most_threads=1,
        commits=1,
        most_commits=1,
    )
    limits = build.call_limits(SHARDS * SHARD_ROWS, workers, "cpu", preprocess_config())
    return build.window(limits.rows, SHARD_ROWS, workers, calls=1) * SHARD_ROWS


@pytest.mark.whole
def test_killed_at_random_instants_a_run_ends_as_if_it_had_not_been(
    story: tuple[Any, int], commands, assert_rows, score, tmp_path
) -> None:
    place, seed = story
    chance = random.Random(seed)
    for _ in range(KILLS):
        done = place.commits()
        before = {n: v for n, v in place.objects().items() if is_of(n, done)}
        place.forget_reads()
        command = commands.job("embed", *place.args, env=place.env)
        goal = len(done) + chance.randint(1, SHARDS // KILLS)
        if chance.random() < 0.3 or goal > SHARDS - 6:
            time.sleep(chance.uniform(0.2, STARTING_S))
        else:
            command.wait_until(f"{goal} commits", lambda g=goal: len(place.commits()) >= g)
            time.sleep(chance.uniform(0, 1))
        killed = command.kill()
        assert killed.code == -signal.SIGKILL, f"seed {seed}: {killed}"
        score.kills += 1
        after = place.objects()
        assert before == {name: after.get(name) for name in before}, f"seed {seed}"
        wasted = place.reads() - SHARD_ROWS * len(place.commits() - done)
        assert wasted <= under_way(), f"seed {seed}: {wasted} items were read in vain"
    last = commands.run("embed", *place.args, env=place.env)
    assert last.code == 0, f"seed {seed}: {last}"
    finished = place.objects()
    again = commands.run("embed", *place.args, env=place.env)
    assert (again.code, "nothing to do" in again.out) == (0, True), str(again)
    assert place.objects() == finished
    output = place.downloaded()
    assert_rows(output.rows(), place.embeddings)
    assert output.rows("errors") == sorted(place.errors, key=lambda row: row["uri"])
    score.rows((row["uri"] for row in [*place.embeddings, *place.errors]), output.terminal())
    score.objects(verify(str(output.folder)).breaches)


def is_of(name: str, shards: set[str]) -> bool:
    """Whether an object is one that a commit of these shards leaves for good."""
    return Path(name).stem in shards and "/intents/" not in name
