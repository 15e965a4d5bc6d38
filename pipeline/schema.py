"""Every column, once: of the manifest, of a row on its way, and of the output tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.errors import StorageError, UsageError, shown

if TYPE_CHECKING:
    from pipeline.config import Level

# A manifest row. The caller's own columns follow. `shard` names the shard that it belongs to.
MANIFEST = pa.schema(
    [
        ("item_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("size_bytes", pa.int64()),
        ("media_type", pa.string()),
        ("shard", pa.string()),
    ]
)

# An item's place in its shard: blocks come in any order, and are put back in the manifest's.
PLACE = pa.field("shard_row", pa.int32())

ERRORS = pa.schema(
    [
        ("item_id", pa.string()),
        ("uri", pa.string()),
        ("version", pa.string()),
        ("media_type", pa.string()),
        ("stage", pa.string()),
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("attempts", pa.int32()),
    ]
)

# What Preprocess finds out of an item, and Encode passes on.
_MEDIA = [
    ("content_hash", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("num_frames", pa.int32()),
    ("duration_s", pa.float64()),
    ("grid_thw", pa.list_(pa.int32(), 3)),
    # Seconds from a clip's start to each segment's first frame; null for stills.
    ("timestamps", pa.list_(pa.float64())),
]
# Why a row has no embedding; null where it has one.
FAILURE = pa.schema([ERRORS.field(n) for n in ("stage", "error_code", "error_message", "attempts")])
# uint8 patches, `num_patches * bytes_a_patch` of them, segment by segment in merge-block order. A
# patch of a still has its one temporal slice once.
_PATCHES = [("patches", pa.large_binary())]


# What Encode finds out of a row's segments, at a level that has some.
SEGMENT_RESULTS = ("segment_embeddings", "token_embeddings")

# A row of `embeddings/`: these, then the caller's columns.
EMBEDDINGS = (
    *("item_id", "uri", "version", "media_type", "content_hash", "generation"),
    *("width", "height", "num_frames", "duration_s", "grid_thw", "num_tokens", "embedding"),
)


def preprocessed(manifest: pa.Schema) -> pa.Schema:
    """A row between Preprocess and Encode, for a manifest with the caller's columns."""
    return pa.schema([*manifest, *_fields(_MEDIA), *FAILURE, *_fields(_PATCHES)])


def encoded(preprocessed: pa.Schema, embedding: pa.DataType, level: Level = "item") -> pa.Schema:
    """A row between Encode and the commit.

    `embedding` is the values' type; the lists get their fixed size in the output, as of a fixed
    size even a failed row would have D values. `segment_embeddings` holds the vectors of a row's
    segments one after the other, `token_embeddings` those of its tokens; empty where a row has
    none. A block may have more such values than 32 bits count. `device_kernels` names the rung that
    a GPU was on (`pipeline.rungs`); it is null on a CPU.
    """
    kept = [field for field in preprocessed if field.name != "patches"]
    result = [
        ("num_tokens", pa.int32()),
        ("embedding", pa.list_(embedding)),
        ("device", pa.string()),
        ("device_kernels", pa.string()),
    ]
    if level != "item":
        result.append(("segment_embeddings", pa.large_list(embedding)))
    if level == "token":
        result.append(("token_embeddings", pa.large_list(pa.float16())))
    return pa.schema([*kept, *_fields(result)])


def embeddings(embedding: pa.DataType, own: Iterable[pa.Field]) -> pa.Schema:
    """An `embeddings/` object, with the caller's columns that are in no folder's name."""
    counts = [pa.field(name, pa.int32()) for name in ("generation", "num_tokens")]
    fields = [*preprocessed(MANIFEST), *counts, pa.field("embedding", embedding)]
    known = {field.name: field for field in fields}
    return pa.schema([*(known[name] for name in EMBEDDINGS), *own])


def segments(embedding: pa.DataType, level: Level) -> pa.Schema:
    """A `frames/` or `tokens/` object: a row a segment of every embedded item.

    `segment` counts an item's from 0, `timestamp_s` is null for a still. `grid_h` and `grid_w`
    are patches before merging, as in `grid_thw`; `tokens` are merged, in the encoder's order.
    """
    fields = [
        ("item_id", pa.string()),
        ("uri", pa.string()),
        ("segment", pa.int32()),
        ("timestamp_s", pa.float64()),
        ("embedding", embedding),
    ]
    if level == "token":
        fields += [("grid_h", pa.int32()), ("grid_w", pa.int32())]
        fields += [("tokens", pa.list_(pa.list_(pa.float16(), embedding.list_size)))]
    return pa.schema(fields)


def embedding_type(width: int, dtype: str) -> pa.DataType:
    """The `embedding` column of `width` values of float32 or float16."""
    return pa.list_(pa.float32() if dtype == "float32" else pa.float16(), width)


def check_caller_columns(names: Iterable[str], source: str) -> None:
    """Refuses caller's columns whose names are taken, and names that differ in case alone.

    Raises:
        UsageError: Naming the column and the manifest it came from.
    """
    taken = {*MANIFEST.names, *ERRORS.names, *EMBEDDINGS}
    taken |= {PLACE.name, "patches", "timestamps", "device", "device_kernels", *SEGMENT_RESULTS}
    seen: dict[str, str] = {}
    for name in names:
        # DuckDB and hive folders do not tell cases apart.
        if name.lower() in taken:
            raise UsageError(f"{source}: the column {name!r} is one of patchflow's; rename it")
        if name.lower() in seen:
            raise UsageError(f"{source}: columns {seen[name.lower()]!r} and {name!r} collide")
        seen[name.lower()] = name


def check_plain(found: pa.Schema, place: str) -> None:
    """Refuses what an output's Parquet never has: types that name the class of their values.

    Ray Data's unpickle them, and who may write to an output may not run code.

    Raises:
        StorageError: One is there, in the object `place`.
    """
    for field in found:
        if _names_class(field.type):
            raise StorageError(f"{place} is damaged: a column is {shown(str(field.type))}")


def _names_class(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _names_class(kind.value_type)
    inner = (kind.field(n).type for n in range(kind.num_fields))
    return isinstance(kind, pa.BaseExtensionType) or any(map(_names_class, inner))


def _fields(pairs: list[tuple[str, pa.DataType]]) -> list[pa.Field]:
    return [pa.field(name, kind) for name, kind in pairs]
