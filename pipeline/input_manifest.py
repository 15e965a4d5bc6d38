"""A person's Parquet manifest as candidates: every column and every URI looked at."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import StorageError, UsageError, shown
from pipeline.location import canonical, parent
from pipeline.media_types import media_type
from pipeline.objects import ObjectInfo
from pipeline.parquet_reader import ParquetError, ParquetReader
from pipeline.reach import Reach
from pipeline.schema import MANIFEST, check_caller_columns
from pipeline.storage import storage_for

BATCH_ROWS = 8192
CANDIDATE = pa.schema([MANIFEST.field(n) for n in ("uri", "version", "size_bytes", "media_type")])

# Keys have 1,024 bytes at most and paths 4,096, of which each may become three in a file:// URI.
_MOST_URI_BYTES = 16 * 2**10
# A name stands in every object's footer, and in folders' names.
_MOST_NAME_BYTES = 256
# No storage takes an object as large, and the sum of as many as there may be is a number.
_MOST_SIZE_BYTES = 2**50


def manifest_rows(location: str, reach: Reach, reader: ParquetReader) -> Iterator[pa.Table]:
    """The candidates of a manifest; relative URIs are taken from its own folder.

    Args:
        location: The manifest's canonical location.
        reach: Where its items may lie.
        reader: Of the one who calls, for all manifests.

    Raises:
        UsageError: It is no manifest, or not one that can be planned: naming what and why.
        FileNotFoundError: There is none.
        StorageError: Storage failed.
    """
    before = _stat(location)
    try:
        with storage_for(location).open(location) as file:
            tables = reader.read(file, before.size_bytes, BATCH_ROWS)
            _check_columns(next(tables).schema, location)
            for rows in tables:
                yield _candidates(rows, location, reach)
    except (ParquetError, StorageError, OSError) as error:
        _check_unchanged(before, location)
        if isinstance(error, ParquetError):
            raise UsageError(f"{location} {error}") from None
        if isinstance(error, StorageError | FileNotFoundError):
            raise
        raise StorageError(f"{location}: {error.strerror}") from error
    _check_unchanged(before, location)


def _stat(location: str) -> ObjectInfo:
    storage = storage_for(location)
    found = storage.stat(location)
    if found is not None:
        return found
    if next(storage.list(location), None) is not None:
        raise UsageError(
            f"{location} is a folder; name the manifests in it as '{location}/*.parquet'"
        )
    raise FileNotFoundError(location)


def _check_unchanged(before: ObjectInfo, location: str) -> None:
    if storage_for(location).stat(location) != before:
        raise UsageError(f"{location} changed while it was read; run the same command again")


def _check_columns(schema: pa.Schema, location: str) -> None:
    """Refuses a manifest whose columns are not what they must be.

    Raises:
        UsageError: Naming the column and the manifest.
    """
    if "uri" not in schema.names:
        has = shown(", ".join(schema.names))
        raise UsageError(f"{location} has no `uri` column; it has {has}")
    for name in CANDIDATE.names:
        if schema.get_all_field_indices(name)[1:]:
            raise UsageError(f"{location} has several columns {name!r}")
        if name not in schema.names:
            continue
        kind, wanted = schema.field(name).type, CANDIDATE.field(name).type
        text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
        number = pa.types.is_integer(kind)
        if not (number if wanted == pa.int64() else text or (number and name == "version")):
            words = "strings" if pa.types.is_string(wanted) else "integers"
            found = shown(str(kind))[1:-1]
            raise UsageError(f"{location}: the `{name}` column must be {words}, it is {found}")
    own = [name for name in schema.names if name not in CANDIDATE.names]
    for name in own:
        if not 0 < len(name.encode()) <= _MOST_NAME_BYTES:
            raise UsageError(
                f"{location}: the name of the column {shown(name)} is empty, or longer than "
                f"{_MOST_NAME_BYTES} bytes; rename it"
            )
    check_caller_columns(own, location)


def _candidates(rows: pa.Table, location: str, reach: Reach) -> pa.Table:
    try:
        uris = _uris(rows["uri"], location, reach)
        kinds = rows["media_type"].to_pylist() if "media_type" in rows.column_names else uris
        table = pa.table({"uri": pa.array(uris, pa.string())})
        for name in ("version", "size_bytes"):
            kind = MANIFEST.field(name).type
            given = rows[name] if name in rows.column_names else pa.nulls(len(uris), kind)
            table = table.append_column(name, given.cast(kind))
    except pa.ArrowInvalid as error:
        raise UsageError(f"{location}: {str(error).splitlines()[0]}") from None
    sizes = pc.min_max(table["size_bytes"]).as_py()
    if not 0 <= (sizes["min"] or 0) <= (sizes["max"] or 0) <= _MOST_SIZE_BYTES:
        raise UsageError(
            f"{location}: every `size_bytes` must be within 0 and {_MOST_SIZE_BYTES:,}, one is "
            f"{sizes['min'] if sizes['min'] < 0 else sizes['max']:,}"
        )
    # A manifest names its items one by one: what nothing tells the kind of is tried as an image.
    types = [_stated_type(k) or media_type(u) or "image" for k, u in zip(kinds, uris, strict=True)]
    table = table.append_column("media_type", pa.array(types, pa.string()))
    for name in rows.column_names:
        if name not in CANDIDATE.names:
            table = table.append_column(name, rows[name])
    return table


def _uris(column: pa.ChunkedArray, location: str, reach: Reach) -> list[str]:
    if column.null_count:
        raise UsageError(f"{location}: a `uri` is null; every row must name an item")
    longest = pc.max(pc.binary_length(column)).as_py()
    if longest and longest > _MOST_URI_BYTES:
        raise UsageError(
            f"{location}: a `uri` has {longest:,} bytes; the most is {_MOST_URI_BYTES:,}"
        )
    folder, found = parent(location), []
    for given in column.to_pylist():
        if not given:
            raise UsageError(f"{location}: a `uri` is empty; every row must name an item")
        try:
            uri = canonical(given, folder)
        except UsageError as error:
            raise UsageError(f"{location}: {error}") from None
        if not reach.covers(uri):
            raise UsageError(
                f"{location}: the `uri` {shown(given)} lies outside of the inputs' folders; "
                "--root LOCATION says where else items may lie"
            )
        found.append(uri)
    return found


def _stated_type(value: object) -> str | None:
    """The kind that a manifest states, as `video` or as a MIME type, `video/mp4`."""
    kind = str(value).partition("/")[0].strip().lower()
    return kind if kind in ("image", "video") else None
