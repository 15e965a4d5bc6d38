"""What only S3 does, against a real server."""

import os
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tenacity import stop_after_attempt

from pipeline.blame import fetch_item
from pipeline.errors import ItemError, StorageError, UsageError
from pipeline.known import PlanReport
from pipeline.manifest import Generation
from pipeline.marker import Marker
from pipeline.reach import Reach
from pipeline.s3 import S3Storage
from pipeline.sources import Skipped, candidates
from pipeline.storage import storage_for
from pipeline.verify import verify
from tests.faults.proxy import Fault, once, this_process_through


def test_a_listing_goes_on_past_a_page(s3_media: str) -> None:
    store = storage_for(s3_media)
    names = [f"{s3_media}/{n:04}.jpg" for n in range(1001)]
    with ThreadPoolExecutor(16) as writers:
        list(writers.map(lambda uri: store.write(uri, b"x"), names))
    assert [info.uri for info in store.list(s3_media)] == names


def test_the_version_is_the_etag(s3_media: str) -> None:
    store = storage_for(s3_media)
    store.write(f"{s3_media}/x", b"hello")
    info = store.stat(f"{s3_media}/x")
    assert info is not None
    assert info.version == "5d41402abc4b2a76b9719d911017c592"  # The MD5 of the content.
    assert list(store.list(s3_media)) == [info]


def test_a_double_slash_is_part_of_the_key(s3_media: str) -> None:
    store = storage_for(s3_media)
    store.write(f"{s3_media}/a//x.jpg", b"data")
    assert store.read(f"{s3_media}/a//x.jpg") == b"data"


def test_a_version_in_the_name_is_part_of_the_key(s3_media: str) -> None:
    store, uri = storage_for(s3_media), f"{s3_media}/x.jpg?versionId=7"
    store.write(uri, b"data")
    assert store.read(uri) == b"data"


def test_a_key_that_the_server_refuses_is_an_error_of_that_item(s3_media: str) -> None:
    # SeaweedFS takes no `..`; that it was asked for one shows that the key went out as it was.
    store = storage_for(s3_media)
    store.write(f"{s3_media}/elsewhere/y.jpg", b"data")
    with pytest.raises(ItemError, match="InvalidRequest") as caught:
        fetch_item(store, f"{s3_media}/a/../x.jpg", version=None, max_bytes=None)
    assert caught.value.code == "read_failed"


def test_a_console_made_folder_is_no_object(s3_media: str) -> None:
    store = storage_for(s3_media)
    store.write(f"{s3_media}/folder/x.jpg", b"data")
    assert isinstance(store, S3Storage)
    bucket, key = s3_media.removeprefix("s3://").split("/")
    store._client.call("put_object", bucket, Key=f"{key}/empty/", Body=b"")
    assert [info.uri for info in store.list(s3_media)] == [f"{s3_media}/folder/x.jpg"]


def test_an_input_in_a_bucket_that_does_not_exist_is_wrong_use(s3_media: str) -> None:
    with pytest.raises(UsageError, match="'nowhere' does not exist"):
        list(candidates(("s3://nowhere/photos",), Reach(roots=()), Skipped()))


def test_an_input_prefix_that_does_not_exist_is_wrong_use(s3_media: str) -> None:
    with pytest.raises(UsageError, match=f"'{s3_media}/none' does not exist"):
        list(candidates((f"{s3_media}/none",), Reach(roots=()), Skipped()))


@pytest.mark.parametrize("verb", ["write", "create", "upload"])
def test_writing_to_a_bucket_that_does_not_exist_is_a_storage_error(
    s3_media: str, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "x").write_bytes(b"")
    data = str(tmp_path / "x") if verb == "upload" else b""
    with pytest.raises(StorageError, match="'nowhere' does not exist"):
        getattr(storage_for(s3_media), verb)("s3://nowhere/out/x", data)


def test_no_item_is_blamed_for_a_bucket_that_does_not_exist(s3_media: str) -> None:
    with pytest.raises(StorageError, match="'nowhere' does not exist"):
        storage_for(s3_media).read("s3://nowhere/x.jpg")


def test_a_bucket_name_that_no_bucket_has_is_one_line(s3_media: str) -> None:
    with pytest.raises((StorageError, UsageError)) as caught:
        list(candidates(("s3://Bad_Bucket!/photos",), Reach(roots=()), Skipped()))
    assert "Bad_Bucket!" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AWS_ACCESS_KEY_ID", "nobody", "InvalidAccessKeyId"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "SignatureDoesNotMatch"),
        ("AWS_ACCESS_KEY_ID", None, "no S3 credentials; set AWS_ACCESS_KEY_ID"),
        ("AWS_ENDPOINT_URL", "http://127.0.0.1:9", "127.0.0.1:9"),
    ],
)
def test_wrong_credentials_or_endpoint_are_a_storage_error_in_one_line(
    s3_media: str,
    fresh_s3_clients: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str | None,
    says: str,
) -> None:
    storage_for(s3_media).write(f"{s3_media}/x", b"")
    if value is None:
        monkeypatch.delenv(name)
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    else:
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("pipeline.s3_client.PATIENTLY.stop", stop_after_attempt(1))
    fresh_s3_clients()
    store = storage_for(s3_media)
    attempts = [
        lambda: list(store.list(s3_media)),
        lambda: store.read(f"{s3_media}/x"),
        lambda: store.create(f"{s3_media}/y", b""),
    ]
    for attempt in attempts:
        with pytest.raises(StorageError, match=says) as caught:
            attempt()
        assert "\n" not in str(caught.value)


def test_a_plan_and_commits_whose_every_answer_is_lost_once_are_whole(
    s3_media: str,
    write_manifest: Callable[..., str],
    freeze: Callable[..., tuple[PlanReport, Generation | None]],
    commit: Callable[..., list[Marker]],
) -> None:
    environment = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
    names = [f"/media/{n}.jpg" for n in range(7)]
    with this_process_through(environment) as proxy:
        proxy.rule = once(Fault("reset after"), "PUT", "DELETE")
        _, generation = freeze(s3_media, write_manifest({"uri": names}), shard_rows=3)
        assert generation is not None
        markers = commit(s3_media, generation, failed={1: "corrupt"})
        # `run.json`, a part and a generation; of each shard an intent, put and deleted, and three
        # objects.
        assert proxy.faults() == {"reset after": 3 + 3 * 5}
        assert [(marker.embedded, marker.failed) for marker in markers] == [(2, 1), (2, 1), (1, 0)]
        assert verify(s3_media).breaches == []
        with pytest.raises(FileNotFoundError):
            list(storage_for(s3_media).list(f"{s3_media}/_patchflow/intents"))


def test_a_server_that_takes_a_connection_and_nothing_else_is_given_up(
    s3_media: str, monkeypatch: pytest.MonkeyPatch, fresh_s3_clients: Callable[[], None]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setattr("pipeline.s3_client._ANSWER_S", 0.3)
        monkeypatch.setattr("pipeline.s3_client.PATIENTLY.stop", stop_after_attempt(2))
        fresh_s3_clients()
        with pytest.raises(StorageError, match="no answer in time"):
            storage_for(s3_media).write(f"{s3_media}/x", b"x" * 1000)
