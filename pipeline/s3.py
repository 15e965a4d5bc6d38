"""Storage on S3 and what speaks its protocol.

Keys are taken letter for letter (no globbing, no `..`, no versions in the name), so requests
go to the client by bucket and key. `pipeline.s3_client` says what is retried, and for how long.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

from pipeline.errors import ItemError, StorageError
from pipeline.location import join
from pipeline.objects import ABANDONED_S, Fetched, ObjectInfo, read_whole
from pipeline.reach import Links, Reach
from pipeline.s3_client import BRIEFLY, PATIENTLY, S3Client, code_of, told

_PART_BYTES = 64 * 2**20
_READ_AHEAD_BYTES = 2**20
# How many objects of a listing stand for all in `answers`.
_OTHERS = 4


class S3Storage:
    """Buckets reached with the credentials and the endpoint of the environment."""

    def __init__(self) -> None:
        self._client = S3Client(PATIENTLY)
        self._probe = S3Client(BRIEFLY)
        # The key that was last read well, by bucket.
        self._read: dict[str, str] = {}

    def check_root(self, root: str) -> None:
        """The bucket must exist and answer; prefixes need no making."""
        bucket, _ = _split(root)
        with told(root):
            self._client.call("list_objects_v2", bucket, MaxKeys=1)

    def list(self, prefix: str, links: Links | None = None) -> Iterator[ObjectInfo]:
        """Every object below `prefix`, by key, a page of 1,000 at a time; there are no links."""
        bucket, key = _split(prefix)
        if key and not key.endswith("/"):
            key += "/"
        found = False
        more: dict[str, str] = {}
        while True:
            with told(prefix):
                page = self._client.call("list_objects_v2", bucket, Prefix=key, **more)
            for entry in page.get("Contents", []):
                found = True
                # Consoles make empty objects named like folders.
                if not entry["Key"].endswith("/"):
                    yield _info(bucket, entry["Key"], entry["Size"], entry["ETag"])
            if not page.get("IsTruncated"):
                break
            more = {"ContinuationToken": page["NextContinuationToken"]}
        if not found and key:
            raise FileNotFoundError(prefix)

    def stat(self, uri: str) -> ObjectInfo | None:
        """The object at `uri`, or None: the server does not tell a missing bucket apart."""
        bucket, key = _split(uri)
        try:
            with told(uri):
                head = self._client.call("head_object", bucket, Key=key)
        except FileNotFoundError:
            return None
        return _info(bucket, key, head["ContentLength"], head["ETag"])

    def fetch(
        self,
        uri: str,
        *,
        version: str | None = None,
        max_bytes: int | None = None,
        reach: Reach | None = None,
    ) -> Fetched:
        """The whole object in one request, refused by the server itself in any other version."""
        bucket, key = _split(uri)
        match = {"IfMatch": f'"{version}"'} if version is not None else {}
        try:
            with told(uri):
                found = self._client.get(bucket, max_bytes, Key=key, **match)
        except FileNotFoundError as error:
            if code_of(error.__cause__) == "NoSuchBucket":
                raise StorageError(str(error)) from error
            raise ItemError("not_found", "the object is gone") from None
        except StorageError as error:
            code = code_of(error.__cause__)
            if code == "PreconditionFailed":
                raise ItemError(
                    "version_changed", f"planned as version {version}, found another"
                ) from None
            if code == "KeyTooLongError":
                raise ItemError("not_found", "no object can have so long a key") from None
            if code == "InvalidObjectState":
                raise ItemError("access_denied", str(error)) from None
            raise
        if found.data:
            self._read[bucket] = key
        return found

    def answers(self, beside: str) -> bool:
        """One byte of the object that was read last, or of some listed beside or in the bucket."""
        bucket, key = _split(beside)
        for other in self._others(bucket, key):
            with suppress(StorageError, FileNotFoundError), told(beside):
                self._probe.get(bucket, Key=other, Range="bytes=0-0")
                return True
        return False

    def _others(self, bucket: str, key: str) -> Iterator[str]:
        if (last := self._read.get(bucket, key)) != key:
            yield last
        folder = key[: key.rfind("/") + 1]
        for prefix in dict.fromkeys((folder, "")):
            page: dict[str, Any] = {}
            with suppress(StorageError, FileNotFoundError), told(bucket):
                some = {"Prefix": prefix, "MaxKeys": _OTHERS + 1}
                page = self._probe.call("list_objects_v2", bucket, **some)
            for entry in page.get("Contents", []):
                if entry["Size"] and entry["Key"] != key:
                    yield entry["Key"]

    def read(self, uri: str) -> bytes:
        """The bytes of the whole object."""
        return read_whole(self, uri)

    def open(self, uri: str) -> BinaryIO:
        """A reader that fetches only the ranges asked for, all of one version."""
        info = self.stat(uri)
        if info is None:
            raise FileNotFoundError(uri)
        return cast(BinaryIO, io.BufferedReader(_Ranges(self, info), _READ_AHEAD_BYTES))

    def read_range(self, info: ObjectInfo, start: int, stop: int) -> bytes:
        """The bytes [start, stop) of the object in that very version."""
        bucket, key = _split(info.uri)
        part, match = f"bytes={start}-{stop - 1}", f'"{info.version}"'
        with told(info.uri, missing=StorageError):
            data = self._client.get(bucket, Key=key, Range=part, IfMatch=match).data
        if len(data) != stop - start:
            raise StorageError(f"{info.uri}: {len(data)} bytes came for {part}")
        return data

    def write(self, uri: str, data: bytes) -> None:
        """One PUT."""
        self._put(uri, data)

    def create(self, uri: str, data: bytes) -> bool:
        """One PUT with `If-None-Match: *`; False also where its lost answer was that it is made."""
        try:
            self._put(uri, data, IfNoneMatch="*")
        except StorageError as error:
            if code_of(error.__cause__) == "PreconditionFailed":
                return False
            raise
        return True

    def delete(self, uri: str) -> None:
        """One DELETE, which the server also answers where nothing is."""
        bucket, key = _split(uri)
        with told(uri, missing=StorageError):
            self._client.call("delete_object", bucket, Key=key)

    def upload(self, uri: str, path: str) -> None:
        """One PUT, or a multipart upload that is completed or aborted."""
        with Path(path).open("rb") as file:
            part = file.read(_PART_BYTES)
            if len(part) < _PART_BYTES:
                self._put(uri, part)
            else:
                file.seek(0)
                self._put_parts(uri, file)

    def clean(self, root: str) -> None:
        """Aborts multipart uploads, whose parts nobody sees and everybody pays for."""
        bucket, key = _split(root)
        # Nothing else is ever uploaded in parts, by us.
        key = join(key, "_patchflow/").lstrip("/")
        oldest = datetime.now(UTC) - timedelta(seconds=ABANDONED_S)
        with told(root, missing=StorageError):
            page = self._client.call("list_multipart_uploads", bucket, Prefix=key)
            for upload in page.get("Uploads", []):
                if upload["Initiated"] < oldest:
                    self._abort(bucket, upload["Key"], upload["UploadId"])

    def _put(self, uri: str, data: bytes, **conditions: str) -> None:
        bucket, key = _split(uri)
        with told(uri, missing=StorageError):
            self._client.call("put_object", bucket, Key=key, Body=data, **conditions)

    def _put_parts(self, uri: str, file: BinaryIO) -> None:
        bucket, key = _split(uri)
        with told(uri, missing=StorageError):
            upload = self._client.call("create_multipart_upload", bucket, Key=key)["UploadId"]
            ids = {"Key": key, "UploadId": upload}
            parts: list[dict[str, Any]] = []
            try:
                while data := file.read(_PART_BYTES):
                    part = {"PartNumber": len(parts) + 1}
                    put = self._client.call("upload_part", bucket, Body=data, **part, **ids)
                    parts.append(part | {"ETag": put["ETag"]})
                whole = {"MultipartUpload": {"Parts": parts}}
                self._client.call("complete_multipart_upload", bucket, **whole, **ids)
            except BaseException:
                self._abort(bucket, key, upload)
                raise

    def _abort(self, bucket: str, key: str, upload: str) -> None:
        # What cannot be aborted now is left to `clean`.
        with suppress(StorageError), told(f"s3://{bucket}/{key}", missing=StorageError):
            self._probe.call("abort_multipart_upload", bucket, Key=key, UploadId=upload)


class _Ranges(io.RawIOBase):
    """Positions and ranges; `io.BufferedReader` makes a file of it."""

    def __init__(self, storage: S3Storage, info: ObjectInfo) -> None:
        self._storage, self._info, self._at = storage, info, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._info.size_bytes)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        stop = min(self._at + len(buffer), self._info.size_bytes)
        if stop <= self._at:
            return 0
        data = self._storage.read_range(self._info, self._at, stop)
        buffer[: len(data)] = data
        self._at = stop
        return len(data)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _info(bucket: str, key: str, size_bytes: int, etag: str) -> ObjectInfo:
    return ObjectInfo(uri=f"s3://{bucket}/{key}", size_bytes=size_bytes, version=etag.strip('"'))
