"""Storage on S3 and what speaks its protocol, through s3fs.

Keys are taken letter for letter (no globbing, no `..`, no versions in the name), so requests
go to the client by bucket and key. botocore retries what is worth retrying, with backoff and
jitter; what still fails here has failed for good.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO, cast

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError
from fsspec.asyn import sync
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from pipeline.errors import ItemError, StorageError
from pipeline.objects import Fetched, ObjectInfo, read_whole

# "standard" is botocore's exponential backoff with full jitter, for named transient errors.
_CLIENT = {"retries": {"mode": "standard", "max_attempts": 5}, "connect_timeout": 10}

_FORBIDDEN = 403
# The server does not take such a key; any other failure may pass, and is not the item's.
_BAD_REQUEST = {400, 405, 414}


class S3Storage:
    """Buckets reached with the credentials and the endpoint of the environment."""

    def __init__(self) -> None:
        self._fs = s3fs.S3FileSystem(config_kwargs=_CLIENT, use_listings_cache=False)
        # s3fs would retry on top of botocore: five times five attempts hide an outage for minutes.
        self._fs.retries = 1
        # Buckets of which this process has read an object.
        self._readable: set[str] = set()

    def check_root(self, root: str) -> None:
        """The bucket must exist and answer; prefixes need no making."""
        bucket, _ = _split(root)
        with _s3(root):
            self._fs.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below `prefix`, by key, a page of 1,000 at a time."""
        bucket, key = _split(prefix)
        if key and not key.endswith("/"):
            key += "/"
        found = False
        more: dict[str, str] = {}
        while True:
            with _s3(prefix):
                page = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, **more)
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
            with _s3(uri):
                head = self._fs.call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return None
        return _info(bucket, key, head["ContentLength"], head["ETag"])

    def fetch(
        self, uri: str, *, version: str | None = None, max_bytes: int | None = None
    ) -> Fetched:
        """The whole object in one request, refused by the server itself in any other version."""
        bucket, key = _split(uri)
        match = {"IfMatch": f'"{version}"'} if version is not None else {}
        try:
            with _s3(uri):
                found = sync(self._fs.loop, self._get, bucket, key, max_bytes, match)
            self._readable.add(bucket)
            return cast(Fetched, found)
        except FileNotFoundError as error:
            if _code(error.__cause__) == "NoSuchBucket":
                raise StorageError(str(error)) from error
            raise ItemError("not_found", "the object is gone") from None
        except StorageError as error:
            self._blame_item(bucket, version, error)
            raise

    def _blame_item(self, bucket: str, version: str | None, error: StorageError) -> None:
        """Raises ItemError if `error` is true of one object; storage is at fault otherwise."""
        code, status = _code(error.__cause__), _status(error.__cause__)
        if code == "PreconditionFailed":
            raise ItemError("version_changed", f"planned as version {version}, found another")
        # Refused where others were not; were it the credentials, all would be.
        if status == _FORBIDDEN and (bucket in self._readable or code == "InvalidObjectState"):
            raise ItemError("access_denied", str(error))
        if status in _BAD_REQUEST:
            raise ItemError("read_failed", str(error))

    # botocore retries a request until its headers have come; a body that breaks off is ours.
    @retry(
        retry=retry_if_exception_type(aiohttp.ClientPayloadError),
        wait=wait_random_exponential(multiplier=0.2, max=10),
        stop=stop_after_attempt(5),
        reraise=True,
    )
    async def _get(
        self, bucket: str, key: str, max_bytes: int | None, match: dict[str, str]
    ) -> Fetched:
        await self._fs.set_session()
        client = await self._fs.get_s3(bucket)
        response = await client.get_object(Bucket=bucket, Key=key, **match)
        size_bytes = response["ContentLength"]
        async with response["Body"] as body:
            if max_bytes is not None and size_bytes > max_bytes:
                body.close()
                raise ItemError("too_large", f"{size_bytes} bytes, the limit is {max_bytes}")
            data = b"".join([chunk async for chunk in _chunks(body)])
        return Fetched(data=data, version=response["ETag"].strip('"'))

    def read(self, uri: str) -> bytes:
        """The bytes of the whole object."""
        return read_whole(self, uri)

    def open(self, uri: str) -> BinaryIO:
        """A reader that fetches only the ranges asked for."""
        with _s3(uri):
            return cast(BinaryIO, self._fs.open(uri, "rb", cache_type="readahead"))

    def write(self, uri: str, data: bytes) -> None:
        """One PUT."""
        self._put(uri, data)

    def create(self, uri: str, data: bytes) -> bool:
        """One PUT with `If-None-Match: *`."""
        try:
            self._put(uri, data, IfNoneMatch="*")
        except StorageError as error:
            # 409: another conditional PUT of the same key is under way, and one of them wins.
            if _code(error.__cause__) in ("PreconditionFailed", "ConditionalRequestConflict"):
                return False
            raise
        return True

    def delete(self, uri: str) -> None:
        """One DELETE, which the server also answers where nothing is."""
        bucket, key = _split(uri)
        with _s3(uri, missing=StorageError):
            self._fs.call_s3("delete_object", Bucket=bucket, Key=key)

    def upload(self, uri: str, path: str) -> None:
        """A multipart upload of a local file, completed or aborted."""
        with _s3(uri, missing=StorageError):
            self._fs.put_file(path, uri)

    def _put(self, uri: str, data: bytes, **conditions: str) -> None:
        bucket, key = _split(uri)
        with _s3(uri, missing=StorageError):
            self._fs.call_s3("put_object", Bucket=bucket, Key=key, Body=data, **conditions)


async def _chunks(body: Any) -> AsyncIterator[bytes]:
    while chunk := await body.read(2**20):
        yield chunk


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _info(bucket: str, key: str, size_bytes: int, etag: str) -> ObjectInfo:
    return ObjectInfo(uri=f"s3://{bucket}/{key}", size_bytes=size_bytes, version=etag.strip('"'))


def _code(error: BaseException | None) -> str | None:
    """The S3 error code behind an exception of s3fs, where there is one."""
    while error is not None:
        if isinstance(error, ClientError):
            return str(error.response["Error"].get("Code"))
        error = error.__cause__
    return None


def _status(error: BaseException | None) -> int | None:
    """The HTTP status behind an exception of s3fs, where there is one."""
    while error is not None:
        if isinstance(error, ClientError):
            return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
        error = error.__cause__
    return None


@contextmanager
def _s3(uri: str, *, missing: type[Exception] = FileNotFoundError) -> Iterator[None]:
    """Turns what s3fs and botocore raise into StorageError, or `missing` where nothing is."""
    try:
        yield
    except (ItemError, StorageError):
        raise
    except NoCredentialsError as error:
        raise StorageError(
            f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except (OSError, BotoCoreError, ClientError, aiohttp.ClientError) as error:
        code = _code(error)
        if code == "NoSuchBucket":
            bucket = _split(uri)[0]
            raise missing(f"the bucket {bucket!r} does not exist") from error
        if code in ("NoSuchKey", "404") or isinstance(error, FileNotFoundError):
            raise missing(uri) from error
        line = " ".join(str(error).split())
        raise StorageError(f"{uri}: {f'{code}: ' if code else ''}{line}") from error
