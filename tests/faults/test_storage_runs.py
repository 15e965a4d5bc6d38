"""Whole runs of `embed` from and to an S3 server that fails, at random or for good."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.proxy import Asked, Fault, FaultyS3, at_random

pytestmark = pytest.mark.whole

Row = dict[str, Any]
PHOTOS = "s3://media/faulty"
MIXED = [
    Fault("status", 503, "SlowDown"),
    Fault("status", 500, "InternalError"),
    Fault("reset"),
    Fault("reset after"),
    Fault("cut body"),
    Fault("reset body"),
    Fault("break upload"),
]
SHARDS = 6


@pytest.fixture(scope="module")
def stored(s3, collection) -> dict[str, bytes]:
    """The collection's bad files and half of its good ones, by key in the bucket `media`."""
    paths = [*collection.good[::2], *(collection.folder / name for name in collection.bad)]
    files = {f"faulty/{path.relative_to(collection.folder)}": path.read_bytes() for path in paths}
    s3.put(files)
    return files


@pytest.fixture
def proxy(s3) -> Iterator[FaultyS3]:
    with FaultyS3(s3.env["AWS_ENDPOINT_URL"]) as faulty:
        yield faulty


@pytest.fixture
def place(request) -> str:
    name = hashlib.blake2b(request.node.name.encode(), digest_size=8).hexdigest()
    return f"s3://embeddings/{name}"


@pytest.fixture
def run(stored, commands, s3, proxy, place):
    """Runs `embed` through the proxy, again and again the same command."""

    def embed() -> Any:
        return commands.run(
            "embed",
            *(PHOTOS, "--output", place, "--shard-rows", 13, "--max-pixels", 50176),
            env=s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint},
        )

    return embed


@pytest.fixture
def output(s3, place, tmp_path):
    """Downloads what is there now, past the proxy."""

    def download(name: str = "now") -> Any:
        return s3.download(place.removeprefix("s3://embeddings/"), tmp_path / name)

    return download


@pytest.fixture
def expected(stored, collection, clean_run) -> tuple[list[Row], list[Row]]:
    """The clean run's embeddings and errors, as they are for the same bytes on S3."""

    def moved(row: Row) -> Row:
        key = "faulty/" + str(Path(row["uri"]).relative_to(collection.folder))
        uri = f"s3://media/{key}"
        return row | {
            "item_id": hashlib.blake2b(uri.encode(), digest_size=16).hexdigest(),
            "uri": uri,
            "version": hashlib.md5(stored[key], usedforsecurity=False).hexdigest(),
        }

    names = {str(collection.folder / key.removeprefix("faulty/")) for key in stored}
    good, bad = (
        [moved(row) for row in rows if row["uri"] in names]
        for rows in (clean_run.rows, clean_run.errors)
    )
    return good, sorted(bad, key=lambda row: row["uri"])


def told(done: Any) -> str:
    """The one line of a run that failed."""
    assert done.code == 1, str(done)
    lines = done.err.splitlines()
    assert [line for line in lines if line.startswith("patchflow embed: ")] == lines[-1:], done.err
    assert "Traceback" not in done.err, done.err
    assert done.left_behind == []
    return str(lines[-1])


def test_a_fifth_of_all_requests_fails_in_mixed_ways_and_the_output_is_a_clean_run_s(
    run, proxy, output, expected, assert_rows
) -> None:
    proxy.rule = at_random(20, 0.2, MIXED)
    done = run()
    assert done.code == 0, str(done)
    assert set(proxy.faults()) == {fault.kind for fault in MIXED}
    assert sum(proxy.faults().values()) > 0.15 * len(proxy.requests)
    # What killed writers left was looked for.
    assert any("uploads" in answered.query for answered in proxy.requests)
    assert_rows(output().rows(), expected[0])
    assert output().rows("errors") == expected[1]
    assert len(output().commits()) == SHARDS


def media_answers(proxy: FaultyS3) -> int:
    return sum(answered.key.startswith("media/faulty/") for answered in proxy.requests)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault("status", 503, "SlowDown"), "SlowDown"),
        (Fault("status", 400, "ExpiredToken"), "the credentials have expired; renew them"),
    ],
    ids=["an outage", "expired credentials"],
)
def test_what_stays_down_stops_the_run_without_an_error_row_and_it_resumes(
    run, proxy, output, expected, assert_rows, fault: Fault, says: str
) -> None:
    proxy.rule = lambda asked: fault if media_answers(proxy) > 50 else None
    assert says in told(run())
    stopped = output("stopped")
    assert len(stopped.commits()) < SHARDS
    bad = {row["uri"] for row in expected[1]}
    assert {row["uri"] for row in stopped.rows("errors")} <= bad
    proxy.heal()
    done = run()
    assert done.code == 0, str(done)
    assert_rows(output().rows(), expected[0])
    assert output().rows("errors") == expected[1]


def test_objects_that_alone_cannot_be_read_are_one_error_row_each(
    run, proxy, output, expected, assert_rows
) -> None:
    good, bad = expected
    first, other = good[0]["uri"], good[40]["uri"]
    failing = {
        first: (Fault("status", 500, "InternalError"), "read_failed"),
        other: (Fault("status", 403, "AccessDenied"), "access_denied"),
    }

    def rule(asked: Asked) -> Fault | None:
        fault, _ = failing.get(f"s3://{asked.key}", (None, ""))
        return fault if asked.method == "GET" else None

    proxy.rule = rule
    done = run()
    assert done.code == 0, str(done)
    assert_rows(output().rows(), [row for row in good if row["uri"] not in failing])
    errors = {row["uri"]: row["error_code"] for row in output().rows("errors")}
    assert errors == {row["uri"]: row["error_code"] for row in bad} | {
        uri: code for uri, (_, code) in failing.items()
    }
