"""What a person names as INPUT, as a stream of tables of candidates in one stable order.

A candidate table has `uri, version, size_bytes, media_type` and, from a Parquet manifest, the
caller's own columns. A folder or prefix is listed, a glob is matched against the listing of
its fixed part, and a `.parquet` file is read as a manifest.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import glob_translate

from pipeline.errors import ItemError, StorageError, UsageError
from pipeline.location import canonical, join, local_path, suffix
from pipeline.objects import ObjectInfo
from pipeline.schema import MANIFEST, check_caller_columns
from pipeline.storage import storage_for

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".gif",
    ]
)
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
    ]
)

BATCH_ROWS = 8192
_CANDIDATE = pa.schema([MANIFEST.field(n) for n in ("uri", "version", "size_bytes", "media_type")])
_GLOB = re.compile(r"[*?\[]")


@dataclass
class Skipped:
    """What was seen and left out: files that are no media by name, counted by suffix."""

    by_suffix: Counter[str] = field(default_factory=Counter)


def candidates(inputs: tuple[str, ...], skipped: Skipped) -> Iterator[pa.Table]:
    """Every candidate of every input, in order, duplicates included.

    Raises:
        UsageError: An input does not exist, or is no manifest.
        StorageError: Storage failed.
    """
    for text in inputs:
        location = canonical(text)
        try:
            if _is_glob(location):
                yield from _matched(location, skipped)
            elif location.lower().endswith(".parquet"):
                yield from _manifest(location)
            else:
                yield from _listed(location, skipped)
        except FileNotFoundError as error:
            reason = f": {error}" if "bucket" in str(error) else ""
            raise UsageError(f"{text!r} does not exist{reason}") from None


def media_type(uri: str) -> str | None:
    """`image` or `video` by the name's suffix, None for neither."""
    kind = suffix(uri)
    if kind in IMAGE_SUFFIXES:
        return "image"
    return "video" if kind in VIDEO_SUFFIXES else None


def _is_glob(location: str) -> bool:
    # A name that exists is taken as it is, whatever characters it holds.
    if not _GLOB.search(location):
        return False
    try:
        return next(iter(_objects(location)), None) is None
    except FileNotFoundError:
        return True


def _objects(location: str) -> Iterator[ObjectInfo]:
    """The objects below a folder or prefix, or the one object there."""
    storage = storage_for(location)
    try:
        yield from storage.list(location)
    except FileNotFoundError:
        single = storage.stat(location)
        if single is None:
            raise
        yield single


def _listed(location: str, skipped: Skipped) -> Iterator[pa.Table]:
    return _tables(_media(_objects(location), skipped))


def _matched(pattern: str, skipped: Skipped) -> Iterator[pa.Table]:
    fixed = pattern[: _first_wildcard(pattern)]
    root = fixed.rsplit("/", 1)[0] or "/"
    if root == "s3:/":
        raise UsageError(f"{pattern!r}: a bucket's name cannot hold wildcards")
    try:
        matches = re.compile(glob_translate(local_path(pattern))).fullmatch
    except ValueError as error:
        raise UsageError(f"{pattern!r}: {error}") from None
    found = (info for info in storage_for(root).list(root) if matches(local_path(info.uri)))
    if pattern.lower().endswith(".parquet"):
        for info in found:
            yield from _manifest(info.uri)
    else:
        yield from _tables(_media(found, skipped))


def _first_wildcard(pattern: str) -> int:
    match = _GLOB.search(pattern)
    assert match is not None
    return match.start()


def _media(objects: Iterator[ObjectInfo], skipped: Skipped) -> Iterator[tuple[ObjectInfo, str]]:
    for info in objects:
        kind = media_type(info.uri)
        if kind is None:
            skipped.by_suffix[suffix(info.uri) or "no suffix"] += 1
        else:
            yield info, kind


def _tables(media: Iterator[tuple[ObjectInfo, str]]) -> Iterator[pa.Table]:
    while batch := list(islice(media, BATCH_ROWS)):
        infos = [info for info, _ in batch]
        yield pa.table(
            [
                [info.uri for info in infos],
                [info.version for info in infos],
                [info.size_bytes for info in infos],
                [kind for _, kind in batch],
            ],
            schema=_CANDIDATE,
        )


def _manifest(location: str) -> Iterator[pa.Table]:
    """The rows of a Parquet manifest; relative URIs are taken from its own folder."""
    with _open_manifest(location) as file:
        try:
            parquet = pq.ParquetFile(file)
            _check_columns(parquet.schema_arrow, location)
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                yield _from_manifest(pa.Table.from_batches([batch]), location)
        except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise UsageError(f"{location} is not a readable Parquet file: {reason}") from None


def _open_manifest(location: str) -> BinaryIO:
    if storage_for(location).stat(location) is None:
        raise FileNotFoundError(location)
    try:
        return storage_for(location).open(location)
    except ItemError as error:
        raise StorageError(f"{location}: {error}") from None


def _check_columns(schema: pa.Schema, location: str) -> None:
    if "uri" not in schema.names:
        raise UsageError(f"{location} has no `uri` column; it has {', '.join(schema.names)}")
    for name in _CANDIDATE.names:
        if schema.get_all_field_indices(name)[1:]:
            raise UsageError(f"{location} has several columns {name!r}")
        if name not in schema.names:
            continue
        kind, wanted = schema.field(name).type, _CANDIDATE.field(name).type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        number = pa.types.is_integer(kind)
        if not (number if wanted == pa.int64() else text or (number and name == "version")):
            words = "strings" if pa.types.is_string(wanted) else "integers"
            raise UsageError(f"{location}: the `{name}` column must be {words}, it is {kind}")
    check_caller_columns([n for n in schema.names if n not in _CANDIDATE.names], location)


def _from_manifest(rows: pa.Table, location: str) -> pa.Table:
    uris = rows["uri"].to_pylist()
    if None in uris:
        raise UsageError(f"{location}: a `uri` is null; every row must name an item")
    folder = local_path(location).rsplit("/", 1)[0]
    uris = [canonical(u if u.startswith("/") or "://" in u else join(folder, u)) for u in uris]
    kinds = rows["media_type"].to_pylist() if "media_type" in rows.column_names else uris
    table = pa.table({"uri": pa.array(uris, pa.string())})
    for name in ("version", "size_bytes"):
        kind = MANIFEST.field(name).type
        given = rows[name].cast(kind) if name in rows.column_names else pa.nulls(len(uris), kind)
        table = table.append_column(name, given)
    # A manifest names its items one by one: what nothing tells the kind of is tried as an image.
    types = [_stated_type(k) or media_type(u) or "image" for k, u in zip(kinds, uris, strict=True)]
    table = table.append_column("media_type", pa.array(types, pa.string()))
    for name in rows.column_names:
        if name not in _CANDIDATE.names:
            table = table.append_column(name, _plain(rows[name]))
    return table


def _stated_type(value: object) -> str | None:
    """The kind that a manifest states, as `video` or as a MIME type, `video/mp4`."""
    kind = str(value).partition("/")[0].strip().lower()
    return kind if kind in ("image", "video") else None


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Categories become their values: their numbers differ from one row group to the next."""
    kind = column.type
    return column.cast(kind.value_type) if pa.types.is_dictionary(kind) else column
