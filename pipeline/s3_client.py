"""Requests to S3, each sent again until it is answered or given up.

A request that fails for what may pass (5xx, 429, no connection, no answer, an answer that breaks
off) is sent again, up to ten times within two minutes, after up to 0.25, 0.5, 1, ... 10 s, drawn
at random: 23 s in all on average where the server answers at once. The server has 10 s to take a
connection, 30 s for every next byte of an answer, and 40 s for the whole of anything but a read,
with a second more for every MiB that it is sent. What fails after two minutes has failed for good.
A read is one request until its last byte has come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import aiohttp
import s3fs
from botocore.exceptions import BotoCoreError, ClientError, HTTPClientError, NoCredentialsError
from botocore.exceptions import ConnectionError as NoConnectionError
from fsspec.asyn import sync
from tenacity import (
    AsyncRetrying,
    retry_if_exception,
    stop_after_attempt,
    stop_after_delay,
    wait_random_exponential,
)

from pipeline.errors import ItemError, RefusedError, StorageError
from pipeline.objects import Fetched

# botocore's own retries draw on a budget that a run of failures uses up for everyone, and do not
# cover bodies: every retry is ours.
_CLIENT = {"retries": {"total_max_attempts": 1}, "connect_timeout": 10, "read_timeout": 30}

_ANSWER_S, _SLOWEST_BYTES_S = 40, 2**20

_TRANSIENT = (NoConnectionError, HTTPClientError, aiohttp.ClientError, TimeoutError)
_TRANSIENT_STATUS = {429, 500, 502, 503, 504}
# The last says that another conditional PUT of the same key is under way: one of them wins.
_TRANSIENT_CODES = {"SlowDown", "RequestTimeout", "ConditionalRequestConflict"}

_FORBIDDEN = 403
_EXPIRED = {"ExpiredToken", "TokenRefreshRequired"}


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ClientError):
        return _status(error) in _TRANSIENT_STATUS or code_of(error) in _TRANSIENT_CODES
    return isinstance(error, _TRANSIENT)


WAIT = wait_random_exponential(multiplier=0.25, max=10)
PATIENTLY = AsyncRetrying(
    retry=retry_if_exception(_may_pass),
    wait=WAIT,
    stop=stop_after_attempt(10) | stop_after_delay(120),
    reraise=True,
)
# For asking how things are now.
BRIEFLY = PATIENTLY.copy(stop=stop_after_attempt(3))


class S3Client:
    """The client of s3fs, which knows the environment's credentials, and a way of retrying."""

    def __init__(self, retrying: AsyncRetrying) -> None:
        self._fs = s3fs.S3FileSystem(config_kwargs=_CLIENT)
        self._retrying = retrying

    def call(self, method: str, bucket: str, **arguments: Any) -> dict[str, Any]:
        """Any request by its name in botocore, but those whose answer is a stream.

        Raises:
            Exception: Whatever the client raises; `told` turns it into ours.
        """

        limit_s = _ANSWER_S + len(arguments.get("Body", b"")) / _SLOWEST_BYTES_S

        async def attempt() -> dict[str, Any]:
            # The client's own timeouts begin once the server has taken what it is sent.
            async with asyncio.timeout(limit_s):
                client = await self._connected(bucket)
                answer: dict[str, Any] = await getattr(client, method)(Bucket=bucket, **arguments)
            return answer

        return cast(dict[str, Any], sync(self._fs.loop, self._retrying.copy(), attempt))

    def get(self, bucket: str, max_bytes: int | None = None, **arguments: str) -> Fetched:
        """A GET with its whole body, which is `max_bytes` long at most.

        Raises:
            ItemError: `too_large`.
            Exception: Whatever the client raises; `told` turns it into ours.
        """

        async def attempt() -> Fetched:
            client = await self._connected(bucket)
            response = await client.get_object(Bucket=bucket, **arguments)
            size_bytes = response["ContentLength"]
            async with response["Body"] as body:
                if max_bytes is not None and size_bytes > max_bytes:
                    body.close()
                    raise ItemError("too_large", f"{size_bytes} bytes, the limit is {max_bytes}")
                data = await body.read()
            return Fetched(data=data, version=response["ETag"].strip('"'))

        return cast(Fetched, sync(self._fs.loop, self._retrying.copy(), attempt))

    async def _connected(self, bucket: str) -> Any:
        await self._fs.set_session()
        return await self._fs.get_s3(bucket)


def code_of(error: BaseException | None) -> str | None:
    """The S3 error code of what the client raised, where there is one."""
    return str(error.response["Error"].get("Code")) if isinstance(error, ClientError) else None


def _status(error: ClientError) -> int:
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])


@contextmanager
def told(uri: str, *, missing: type[Exception] = FileNotFoundError) -> Iterator[None]:
    """Turns what the client raises into StorageError, or `missing` where nothing is."""
    try:
        yield
    except NoCredentialsError as error:
        raise StorageError(
            f"{uri}: no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        ) from error
    except ClientError as error:
        code, said = code_of(error), " ".join(error.response["Error"].get("Message", "").split())
        if code == "NoSuchBucket":
            bucket = uri.removeprefix("s3://").partition("/")[0]
            raise missing(f"the bucket {bucket!r} does not exist") from error
        if code in ("NoSuchKey", "404"):
            raise missing(uri) from error
        if code in _EXPIRED:
            said = "the credentials have expired; renew them and run the same command again"
        kind = RefusedError if _status(error) == _FORBIDDEN else StorageError
        raise kind(f"{uri}: {code}: {said}") from error
    except (OSError, BotoCoreError, aiohttp.ClientError) as error:
        said = " ".join(str(error).split()) or "no answer in time"
        raise StorageError(f"{uri}: {said}") from error
