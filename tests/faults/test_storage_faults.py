"""Requests to a real S3 server that fail in every way, one by one and at random, and then pass."""

from __future__ import annotations

import io
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tenacity import stop_after_attempt

from pipeline import s3_client
from pipeline.errors import StorageError
from pipeline.manifest import Shard, read_shard
from pipeline.s3 import S3Storage
from pipeline.storage import storage_for
from tests.faults.proxy import Asked, Fault, FaultyS3, at_random, once, this_process_through

DATA = bytes(range(256)) * 1200
REFUSED = [Fault("status", 503, "SlowDown"), Fault("status", 500, "InternalError")]
LOST = [Fault("reset"), Fault("reset after")]
IN_THE_BODY = [Fault("cut body"), Fault("reset body")]
# Each takes the second that an answer is waited for.
STALLS = [
    pytest.param(Fault("stall"), marks=pytest.mark.whole),
    pytest.param(Fault("stall body"), marks=pytest.mark.whole),
]


@pytest.fixture(scope="module")
def proxy(s3: Any) -> Iterator[FaultyS3]:
    with this_process_through(s3.env) as faulty:
        yield faulty


@pytest.fixture
def place(proxy: FaultyS3) -> str:
    """An empty prefix; nothing fails yet."""
    proxy.heal()
    return f"s3://media/{uuid.uuid4().hex}"


def name(fault: Fault) -> str:
    return f"{fault.kind} {fault.status}" if fault.kind == "status" else fault.kind


def read_by_range(store: S3Storage, place: str) -> bytes:
    with store.open(f"{place}/x") as file:
        file.seek(1000)
        return file.read(5)


def upload(store: S3Storage, place: str) -> None:
    store.upload(f"{place}/y", __file__)


READS: dict[str, Callable[[S3Storage, str], object]] = {
    "fetch": lambda store, place: store.fetch(f"{place}/x").data == DATA,
    "open": lambda store, place: read_by_range(store, place) == DATA[1000:1005],
    "list": lambda store, place: [info.size_bytes for info in store.list(place)] == [len(DATA)],
}
WRITES: dict[str, Callable[[S3Storage, str], object]] = {
    "write": lambda store, place: store.write(f"{place}/y", DATA),
    "create": lambda store, place: store.create(f"{place}/y", DATA),
    "upload": upload,
}


@pytest.mark.parametrize("fault", [*REFUSED, *LOST, *IN_THE_BODY, *STALLS], ids=name)
@pytest.mark.parametrize("verb", READS)
def test_a_read_that_fails_once_is_sent_again(
    proxy: FaultyS3, place: str, fault: Fault, verb: str
) -> None:
    store = storage_for(place)
    store.write(f"{place}/x", DATA)
    proxy.rule = once(fault, "GET")
    assert READS[verb](store, place)
    assert sum(proxy.faults().values()) == 1


@pytest.mark.parametrize("fault", [*REFUSED, *LOST, STALLS[0]], ids=name)
def test_a_stat_that_fails_once_is_sent_again(proxy: FaultyS3, place: str, fault: Fault) -> None:
    store = storage_for(place)
    store.write(f"{place}/x", DATA)
    proxy.rule = once(fault, "HEAD")
    info = store.stat(f"{place}/x")
    assert info is not None and info.size_bytes == len(DATA)
    assert sum(proxy.faults().values()) == 1


@pytest.mark.parametrize("fault", [*REFUSED, *LOST, Fault("break upload"), STALLS[0]], ids=name)
@pytest.mark.parametrize("verb", WRITES)
def test_a_write_that_fails_once_is_sent_again(
    proxy: FaultyS3, place: str, fault: Fault, verb: str
) -> None:
    store = storage_for(place)
    proxy.rule = once(fault, "PUT")
    made = WRITES[verb](store, place)
    assert sum(proxy.faults().values()) == 1
    expected = Path(__file__).read_bytes() if verb == "upload" else DATA
    assert store.read(f"{place}/y") == expected
    # Where the answer was lost, nobody can tell whose the object is; who cares compares it.
    assert made is (None if verb != "create" else fault.kind != "reset after")


@pytest.mark.parametrize("verb", [*READS, *WRITES])
def test_a_request_that_never_succeeds_is_given_up_after_ten_attempts(
    proxy: FaultyS3, place: str, verb: str
) -> None:
    store = storage_for(place)
    store.write(f"{place}/x", DATA)
    proxy.heal()
    proxy.rule = lambda asked: Fault("status", 503)
    with pytest.raises(StorageError, match=r"SlowDown|503") as caught:
        (READS | WRITES)[verb](store, place)
    assert "\n" not in str(caught.value)
    assert len(proxy.requests) == 10


def test_attempts_wait_ever_longer_and_at_random(
    proxy: FaultyS3, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits: list[float] = []

    async def note(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(s3_client.PATIENTLY, "wait", s3_client.WAIT)
    monkeypatch.setattr(s3_client.PATIENTLY, "sleep", note)
    proxy.rule = lambda asked: Fault("status", 500)
    for _ in range(20):
        with pytest.raises(StorageError):
            storage_for(place).write(f"{place}/x", b"")
    most = [max(waits[n::9]) for n in range(9)]
    bounds = [0.25, 0.5, 1, 2, 4, 8, 10, 10, 10]
    assert all(0.5 * bound < found <= bound for found, bound in zip(most, bounds, strict=True))
    assert len(set(waits)) == 20 * 9


@pytest.mark.parametrize("status", [400, 403])
def test_expired_credentials_are_told_at_once_and_what_to_do(
    proxy: FaultyS3, place: str, status: int
) -> None:
    store = storage_for(place)
    store.write(f"{place}/x", DATA)
    proxy.heal()
    proxy.rule = lambda asked: Fault("status", status, "ExpiredToken")
    for use_it in (lambda: store.read(f"{place}/x"), lambda: list(store.list(place))):
        with pytest.raises(StorageError, match="expired; renew them and run the same command"):
            use_it()
    assert len(proxy.requests) == 2


def test_what_is_given_to_nobody_is_not_asked_for_twice(proxy: FaultyS3, place: str) -> None:
    proxy.rule = lambda asked: Fault("status", 403, "AccessDenied")
    with pytest.raises(StorageError, match="AccessDenied"):
        storage_for(place).read(f"{place}/x")
    assert len(proxy.requests) == 1


def test_a_third_of_all_requests_may_fail_and_every_object_is_right(
    proxy: FaultyS3, place: str
) -> None:
    store = storage_for(place)
    objects = {f"{place}/{n:03}": bytes([n % 256]) * (1 + 97 * n) for n in range(200)}
    proxy.rule = at_random(7, 0.3, [*REFUSED, Fault("reset"), Fault("reset after")])
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda item: store.write(*item), objects.items()))
        assert dict(zip(objects, pool.map(store.read, objects), strict=True)) == objects
    assert {info.uri: info.size_bytes for info in store.list(place)} == {
        uri: len(data) for uri, data in objects.items()
    }
    assert sum(proxy.faults().values()) > 120


def test_a_manifest_is_read_whole_through_any_fault_or_not_at_all(
    proxy: FaultyS3, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = pa.table({"uri": [f"{n:07}" * 20 for n in range(40_000)]})
    sink = io.BytesIO()
    pq.write_table(rows, sink, compression="none", use_dictionary=False)
    store = storage_for(place)
    store.write(f"{place}/part", sink.getvalue())
    shard = Shard(id="g000000-00000000", generation=0, rows=40_000, part="part", row_group=0)
    for fault in (*IN_THE_BODY, *REFUSED, Fault("reset")):
        proxy.heal()
        proxy.rule = once(fault, "GET", "HEAD")
        assert read_shard(place, shard) == rows
        assert proxy.faults()
    monkeypatch.setattr(s3_client.PATIENTLY, "stop", stop_after_attempt(3))
    for fault in (Fault("cut body"), Fault("reset body")):
        proxy.rule = lambda asked, fault=fault: fault if asked.method == "GET" else None
        with pytest.raises(StorageError, match="part"):
            read_shard(place, shard)


def test_an_object_that_is_replaced_while_it_is_read_by_ranges_is_not_mixed(
    proxy: FaultyS3, place: str
) -> None:
    store = storage_for(place)
    store.write(f"{place}/x", bytes(2**22))
    with store.open(f"{place}/x") as file:
        assert file.read(3) == bytes(3)
        store.write(f"{place}/x", b"1" * 2**22)
        file.seek(2**21)
        with pytest.raises(StorageError, match="PreconditionFailed"):
            file.read(3)


def test_an_upload_broken_off_in_its_body_leaves_no_object(
    proxy: FaultyS3, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = storage_for(place)
    monkeypatch.setattr(s3_client.PATIENTLY, "stop", stop_after_attempt(2))
    proxy.rule = lambda asked: Fault("break upload") if asked.method == "PUT" else None
    for write in (store.write, store.create):
        with pytest.raises(StorageError):
            write(f"{place}/x", DATA)
    proxy.heal()
    assert store.stat(f"{place}/x") is None


# --- multipart uploads --------------------------------------------------------------------------


@pytest.fixture
def large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of three parts."""
    monkeypatch.setattr("pipeline.s3._PART_BYTES", 5 * 2**20)
    path = tmp_path / "large"
    path.write_bytes(DATA * (12 * 2**20 // len(DATA)))
    return path


def uploads(s3: Any, place: str) -> list[str]:
    prefix = place.removeprefix("s3://media/")
    found = s3.client.list_multipart_uploads(Bucket="media", Prefix=prefix)
    return [upload["Key"] for upload in found.get("Uploads", [])]


def test_a_large_file_is_uploaded_in_parts_that_may_fail(
    proxy: FaultyS3, place: str, s3: Any, large: Path
) -> None:
    store = storage_for(place)
    fails_once = once(Fault("reset after"), "PUT", "POST")
    # Were the request repeated that begins an upload, there would be two, and one for `clean`.
    proxy.rule = lambda asked: fails_once(asked) if "uploadId" in asked.query else None
    store.upload(f"{place}/x", str(large))
    assert store.read(f"{place}/x") == large.read_bytes()
    assert proxy.faults() == {"reset after": 4}
    assert {r.query.get("partNumber") for r in proxy.requests} == {"1", "2", "3", None}
    assert uploads(s3, place) == []


@pytest.mark.parametrize("failing", ["partNumber", "uploadId"])
def test_an_upload_in_parts_that_fails_leaves_neither_object_nor_upload(
    proxy: FaultyS3, place: str, s3: Any, large: Path, failing: str
) -> None:
    """The second part fails for good, or the request that completes."""
    store = storage_for(place)

    def rule(asked: Asked) -> Fault | None:
        second = asked.query.get("partNumber") == "2"
        completing = asked.method == "POST" and "uploadId" in asked.query
        return Fault("status", 500) if (second, completing)[failing == "uploadId"] else None

    proxy.rule = rule
    with pytest.raises(StorageError, match="SlowDown"):
        store.upload(f"{place}/x", str(large))
    assert proxy.faults()["status"] == 10
    assert store.stat(f"{place}/x") is None
    assert uploads(s3, place) == []


def test_uploads_that_killed_writers_left_are_aborted_after_a_day(
    proxy: FaultyS3, place: str, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = place.removeprefix("s3://media/")
    others = [f"{ours}-of-another/_patchflow/x", f"{ours}/of-another-tool"]
    for key in (f"{ours}/_patchflow/encoder/x", *others):
        begun = s3.client.create_multipart_upload(Bucket="media", Key=key)["UploadId"]
        s3.client.upload_part(
            Bucket="media", Key=key, UploadId=begun, PartNumber=1, Body=bytes(5 * 2**20)
        )
    store = storage_for(place)
    store.clean(place)
    assert len(uploads(s3, place)) == 3
    monkeypatch.setattr("pipeline.s3.ABANDONED_S", 0.0)
    time.sleep(1.1)  # The server tells whole seconds.
    store.clean(place)
    assert sorted(uploads(s3, place)) == others
