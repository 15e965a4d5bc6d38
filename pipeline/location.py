"""Locations: absolute local paths and `s3://bucket/key`, which are also items' canonical URIs."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import UsageError

DIGEST_BYTES = 16
_BUCKET = re.compile(r"s3://[A-Za-z0-9._-]{1,255}(/|$)")


def canonical(location: str) -> str:
    """The canonical URI of what a person typed or a manifest holds.

    Local paths become absolute (symbolic links stay); `s3://` keys are taken letter for
    letter. A local name that is no UTF-8 becomes a percent-encoded `file://` URI.

    Raises:
        UsageError: The scheme is neither a local path nor `s3://`.
    """
    scheme = re.match(r"([a-zA-Z][a-zA-Z0-9+.-]*)://", location)
    if scheme is None:
        return local_uri(os.path.abspath(location))  # noqa: PTH100 (Path would resolve `//`)
    if scheme[1] == "s3":
        if not _BUCKET.match(location):
            raise UsageError(f"{location!r} names no bucket: write s3://BUCKET/PREFIX")
        return location
    if scheme[1] == "file":
        return local_uri(os.path.abspath(local_path(location)))  # noqa: PTH100
    raise UsageError(f"{location!r}: {scheme[1]}:// is not supported; use a local path or s3://")


def local_path(uri: str) -> str:
    """The path of a canonical local URI, as the operating system takes it."""
    if uri.startswith("file://"):
        return os.fsdecode(unquote_to_bytes(uri.removeprefix("file://")))
    return uri


def local_uri(path: str) -> str:
    """The canonical URI of an absolute path."""
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


def digest(data: bytes | memoryview) -> str:
    """128-bit blake2b, hex: item ids, content hashes and checksums alike."""
    return hashlib.blake2b(data, digest_size=DIGEST_BYTES).hexdigest()


def file_digest(file: BinaryIO) -> str:
    """`digest` of what is left of a file, read as a stream."""
    found = hashlib.blake2b(digest_size=DIGEST_BYTES)
    while chunk := file.read(2**20):
        found.update(chunk)
    return found.hexdigest()


def item_id(uri: str) -> str:
    """The id of the item at a canonical `uri`."""
    return digest(uri.encode("utf-8"))
