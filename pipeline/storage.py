"""Where bytes live: one small interface over a disk and over S3.

A location is an absolute local path or `s3://bucket/key`; that is also an item's canonical
URI. Every write is whole or not at all (invariant 3), every failure is an exception of
`pipeline.errors`, and credentials come from the environment that s3fs reads.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import BinaryIO, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import UsageError

DIGEST_BYTES = 16
_BUCKET = re.compile(r"s3://[A-Za-z0-9._-]{1,255}(/|$)")


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One listed object: its canonical `uri`, its size, and a `version` that changes with it."""

    uri: str
    size_bytes: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A whole object and the version that it was read in."""

    data: bytes
    version: str


class Storage(Protocol):
    """One kind of storage. Locations are canonical URIs of that kind."""

    def check_root(self, root: str) -> None:
        """Makes sure that objects can lie below `root`, without writing anything.

        Raises:
            FileNotFoundError: They cannot; the message says why.
            StorageError: Storage failed.
        """

    def list(self, prefix: str) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in one stable order, as a stream.

        Raises:
            FileNotFoundError: The folder, bucket or prefix does not exist.
            StorageError: Storage failed.
        """

    def stat(self, uri: str) -> ObjectInfo | None:
        """The object at `uri`, or None where there is none."""

    def fetch(
        self, uri: str, *, version: str | None = None, max_bytes: int | None = None
    ) -> Fetched:
        """The whole object.

        Args:
            uri: The object's location.
            version: Refuse any other version; None takes what is there.
            max_bytes: Refuse a larger object without reading it.

        Raises:
            ItemError: `not_found`, `access_denied`, `version_changed`, `too_large` or
                `read_failed`: true of this object alone.
            StorageError: Storage failed.
        """

    def read(self, uri: str) -> bytes:
        """The bytes of `fetch`, in whatever version is there."""

    def open(self, uri: str) -> BinaryIO:
        """A seekable reader that fetches ranges as they are asked for."""

    def write(self, uri: str, data: bytes) -> None:
        """Publish `data` at `uri`, whole or not at all, over whatever is there."""

    def create(self, uri: str, data: bytes) -> bool:
        """Publish `data` at `uri` only if nothing is there; False where something is."""

    def upload(self, uri: str, path: str) -> None:
        """Publish the local file `path` at `uri`, whole or not at all."""


@lru_cache(maxsize=8)
def _storage(scheme: str) -> Storage:
    # s3fs and its HTTP client take most of a second to import: only where they are needed.
    if scheme == "s3":
        from pipeline.s3 import S3Storage  # noqa: PLC0415

        return S3Storage()
    from pipeline.local import LocalStorage  # noqa: PLC0415

    return LocalStorage()


def storage_for(uri: str) -> Storage:
    """The storage that holds a canonical `uri`."""
    return _storage("s3" if uri.startswith("s3://") else "file")


def canonical(location: str) -> str:
    """The canonical URI of what a person typed or a manifest holds.

    Local paths become absolute (symbolic links stay); `s3://` keys are taken letter for
    letter. A local name that is no UTF-8 becomes a percent-encoded `file://` URI.

    Raises:
        UsageError: The scheme is neither a local path nor `s3://`.
    """
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", location)
    if scheme is None:
        return _local_uri(os.path.abspath(location))  # noqa: PTH100 (Path would resolve `//`)
    if scheme[1] == "s3":
        if not _BUCKET.match(location):
            raise UsageError(f"{location!r} names no bucket: write s3://BUCKET/PREFIX")
        return location
    if scheme[1] == "file":
        return _local_uri(os.path.abspath(local_path(location)))  # noqa: PTH100
    raise UsageError(f"{location!r}: {scheme[1]}:// is not supported; use a local path or s3://")


def output_root(location: str) -> str:
    """The canonical location of an output.

    Raises:
        UsageError: No output can be there.
        StorageError: Storage failed.
    """
    root = canonical(location)
    try:
        storage_for(root).check_root(root)
    except FileNotFoundError as error:
        raise UsageError(f"--output {location}: {error}") from None
    return root


def local_path(uri: str) -> str:
    """The path of a canonical local URI, as the operating system takes it."""
    if uri.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    return uri


def _local_uri(path: str) -> str:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return "file://" + quote_from_bytes(os.fsencode(path), safe="/*?[]!")
    return path


def join(root: str, name: str) -> str:
    """`name` below the location `root`."""
    return f"{root.rstrip('/')}/{name}"


def suffix(uri: str) -> str:
    """The lower-case suffix of a URI's last part, with its dot."""
    return PurePosixPath(uri).suffix.lower()


def digest(data: bytes) -> str:
    """128-bit blake2b, hex: item ids, content hashes and checksums alike."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def item_id(uri: str) -> str:
    """The id of the item at a canonical `uri`."""
    return digest(uri.encode("utf-8"))
