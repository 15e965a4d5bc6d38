"""`embed` from and to a real S3 server."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import pytest

Row = dict[str, Any]
PLACE = "s3://embeddings/runs/first"
KEY, SECRET, ENDPOINT = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL"


@pytest.fixture(scope="module")
def stored(s3, collection) -> dict[str, bytes]:
    """Some forty of the collection's files, bad ones among them, by key in the bucket `media`."""
    paths = [*collection.good[::4], *(collection.folder / name for name in collection.bad)]
    files = {f"photos/{path.relative_to(collection.folder)}": path.read_bytes() for path in paths}
    s3.put(files | {"elsewhere/x.jpg": paths[0].read_bytes(), "photos.old/y.jpg": b""})
    return files


@pytest.fixture(scope="module")
def run(s3, stored, commands) -> Any:
    done = commands.run(
        "embed",
        *("s3://media/photos", "--output", PLACE, "--shard-rows", 16, "--max-pixels", 50176),
        env=s3.env,
    )
    assert done.code == 0, str(done)
    return done


@pytest.fixture(scope="module")
def output(run, s3, tmp_path_factory) -> Any:
    return s3.download("runs/first", tmp_path_factory.mktemp("downloaded"))


def moved(row: Row, stored: dict[str, bytes], collection) -> Row:
    """A local run's row as it must be for the same bytes on S3."""
    key = "photos/" + row["uri"].removeprefix(f"{collection.folder}/")
    uri = f"s3://media/{key}"
    return row | {
        "item_id": hashlib.blake2b(uri.encode(), digest_size=16).hexdigest(),
        "uri": uri,
        "version": hashlib.md5(stored[key], usedforsecurity=False).hexdigest(),
    }


def test_rows_equal_a_local_run_s_for_the_same_bytes(
    output, stored, collection, clean_run, assert_rows
) -> None:
    def here(rows: list[Row]) -> list[Row]:
        prefix = f"{collection.folder}/"
        return [
            moved(row, stored, collection)
            for row in rows
            if f"photos/{row['uri'].removeprefix(prefix)}" in stored
        ]

    good, bad = here(clean_run.rows), here(clean_run.errors)
    assert (len(good), len(bad)) == (33, len(collection.bad))
    assert_rows(output.rows(), good)
    assert output.rows("errors") == sorted(bad, key=lambda row: row["uri"])


def test_every_object_below_the_prefix_gets_exactly_one_terminal_row(output, stored) -> None:
    assert output.terminal() == sorted(f"s3://media/{key}" for key in stored)


def test_verify_holds_on_s3(run, s3, stored, commands) -> None:
    audit = commands.run("verify", "--output", PLACE, env=s3.env)
    assert (audit.code, audit.err) == (0, ""), str(audit)
    assert audit.out.startswith(f"3 of 3 shards committed: {len(stored)} rows, 33 embedded")


def test_a_second_run_embeds_nothing_and_changes_no_object(run, s3, commands) -> None:
    before = s3.objects("runs/first")
    done = commands.run(
        "embed", "s3://media/photos", "--output", PLACE, "--max-pixels", 50176, env=s3.env
    )
    assert done.code == 0, str(done)
    assert "nothing to do" in done.out
    assert done.seconds < 15
    assert s3.objects("runs/first") == before


def test_credentials_are_neither_said_nor_stored(run, output, s3) -> None:
    secret = s3.env["AWS_SECRET_ACCESS_KEY"]
    assert secret not in run.out + run.err
    texts = [path for path in output.folder.rglob("*") if path.suffix in (".json", ".parquet")]
    assert len(texts) > 6
    assert [path for path in texts if secret.encode() in path.read_bytes()] == []


PHOTOS, NEW = "s3://media/photos", "s3://embeddings/new"


@dataclass(frozen=True)
class Refused:
    """A command that storage refuses, and what is said of it."""

    code: int
    said: str
    source: str = PHOTOS
    target: str = NEW
    env: dict[str, str] = field(default_factory=dict)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.whole] * (name == "no server"))
        for name, case in {
            "missing bucket": Refused(2, "no-such-bucket", source="s3://no-such-bucket/photos"),
            "missing prefix": Refused(2, "s3://media/not here", source="s3://media/not here"),
            "missing output bucket": Refused(2, "no-such-bucket", target="s3://no-such-bucket/new"),
            "wrong secret": Refused(1, "SignatureDoesNotMatch", env={SECRET: "wrong"}),
            "unknown key": Refused(1, "InvalidAccessKeyId", env={KEY: "nobody"}),
            "no key": Refused(1, KEY, env={KEY: "", SECRET: ""}),
            "no server": Refused(1, "127.0.0.1:9", env={ENDPOINT: "http://127.0.0.1:9"}),
        }.items()
    ],
)
def test_what_storage_refuses_is_one_clear_line_and_writes_nothing(
    case, stored, s3, commands
) -> None:
    done = commands.run("embed", case.source, "--output", case.target, env=s3.env | case.env)
    assert done.code == case.code, str(done)
    (line,) = done.err.splitlines()
    assert line.startswith("patchflow embed: ") and case.said in line
    assert s3.objects("new") == {}
