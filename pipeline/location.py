"""Locations: absolute local paths and `s3://bucket/key`, which are also items' canonical URIs."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import PurePosixPath
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from pipeline.errors import UsageError, shown

DIGEST_BYTES = 16
_BUCKET = re.compile(r"s3://[A-Za-z0-9._-]{1,255}(/|$)")
# Some are known without their slashes: nobody calls a file so by accident.
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]{0,31})://|(data|file|ftp|gs|https?|s3):", re.IGNORECASE)
_DRIVE = re.compile(r"[A-Za-z]:[\\/]")


def canonical(location: str, folder: str | None = None) -> str:
    """The canonical URI of what a person typed or a manifest holds.

    Local paths become absolute (symbolic links stay); `s3://` keys are taken letter for
    letter. A local name that is no UTF-8 becomes a percent-encoded `file://` URI.

    Args:
        location: A path, `s3://BUCKET/KEY` or `file:///PATH`.
        folder: What relative paths are taken from, canonical; None takes the current folder.

    Raises:
        UsageError: The scheme is neither a local path nor `s3://`.
    """
    scheme = _SCHEME.match(location)
    if scheme is not None:
        return _with_scheme(location, scheme[0])
    if location.startswith("//") and not location.startswith("///"):
        raise UsageError(f"{shown(location)} names another machine; mount it and give its path")
    if _DRIVE.match(location):
        raise UsageError(f"{shown(location)} is a path of Windows; give the path as it is here")
    if folder is not None and not location.startswith("/"):
        location = join(local_path(folder), location)
        if folder.startswith("s3://"):
            return location
    return local_uri(os.path.abspath(location))  # noqa: PTH100 (Path would resolve `//`)


def _with_scheme(location: str, scheme: str) -> str:
    if location.startswith("s3://"):
        if not _BUCKET.match(location):
            raise UsageError(f"{shown(location)} names no bucket: write s3://BUCKET/PREFIX")
        return location
    if location.startswith("file://"):
        path = local_path(location)
        if not path.startswith("/") or (path.startswith("//") and not path.startswith("///")):
            raise UsageError(f"{shown(location)} names another machine: write file:///PATH")
        return local_uri(os.path.abspath(path))  # noqa: PTH100
    if scheme.lower().startswith(("http", "ftp")):
        raise UsageError(
            f"{shown(location)}: nothing is fetched from the web; copy it to S3 or to a disk first"
        )
    raise UsageError(f"{shown(location)}: {scheme} is not supported; use a local path or s3://")


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


def parent(uri: str) -> str:
    """The folder or prefix that a canonical URI lies in."""
    return uri.rsplit("/", 1)[0] or "/"


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
