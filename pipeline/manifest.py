"""Frozen manifests: a generation is written once, then read shard by shard in tasks.

A generation's rows lie in Parquet parts of `SHARDS_A_PART` shards, one row group a shard, and
`g000000.json` is written last: without it the parts are nothing. Its creation is exclusive and
its parts carry a name of their own, so of two planners at once one wins and none mixes. A part's
name ends with the checksum of its content.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import layout
from pipeline.errors import StorageError
from pipeline.location import file_digest, join
from pipeline.reach import Reach
from pipeline.schema import check_plain
from pipeline.sealed import seal, unseal
from pipeline.storage import storage_for

# One footer and one ranged read give a shard: small enough a footer, few enough objects.
SHARDS_A_PART = 64


@dataclass(frozen=True, kw_only=True)
class Generation:
    """What `g000000.json` says: how many shards, how long each, and where their rows are."""

    number: int
    rows: int
    size_bytes: int
    shards: int
    shard_rows: int
    short_shards: dict[int, int]
    """Rows of the shards that have fewer than `shard_rows`, by index."""
    partition_by: tuple[str, ...]
    columns: dict[str, str]
    """The caller's own columns and their Arrow types."""
    parts: tuple[str, ...]
    inputs: tuple[str, ...]
    roots: tuple[str, ...]
    """Where its items may lie."""
    follow_links: bool
    """Whether symbolic links may lead elsewhere."""
    created_at: str

    def rows_of(self, index: int) -> int:
        """Items of the shard `index`."""
        return self.short_shards.get(index, self.shard_rows)

    def to_json(self) -> bytes:
        """One JSON object."""
        return seal(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Generation:
        """The generation that `to_json` wrote.

        Raises:
            ValueError: It is no such thing.
        """
        try:
            raw = unseal(data)
            raw["short_shards"] = {int(key): rows for key, rows in raw["short_shards"].items()}
            for name in ("partition_by", "parts", "inputs", "roots"):
                raw[name] = tuple(raw[name])
            return cls(**raw)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"no generation: {error}") from error


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One shard to be done: enough to read its rows in a task."""

    id: str
    generation: int
    rows: int
    part: str
    row_group: int


def generations(output: str) -> list[Generation]:
    """Every generation of an output, oldest first; none where nothing is planned.

    Raises:
        StorageError: Storage failed, or a generation is missing or damaged.
    """
    storage = storage_for(output)
    try:
        names = [info.uri for info in storage.list(join(output, layout.MANIFESTS))]
    except FileNotFoundError:
        return []
    found = {
        number: uri
        for uri in names
        if (number := layout.generation_number(uri.rsplit("/", 1)[1])) is not None
    }
    if sorted(found) != list(range(len(found))):
        raise StorageError(f"{output}: generations are missing; found {sorted(found)}")
    return [_generation(found[number]) for number in sorted(found)]


def _generation(uri: str) -> Generation:
    try:
        return Generation.from_json(storage_for(uri).read(uri))
    except ValueError as error:
        raise StorageError(f"{uri} is damaged: {error}") from error


def committed(output: str) -> set[str]:
    """The ids of all committed shards, by one listing."""
    try:
        listing = storage_for(output).list(join(output, layout.COMMITS))
        names = {info.uri.rsplit("/", 1)[1].removesuffix(".json") for info in listing}
    except FileNotFoundError:
        return set()
    return {name for name in names if layout.parse_shard(name)}


def reach_of(planned: list[Generation], *, follow_links: bool = False) -> Reach:
    """Where the items of all generations may lie: what one of them allows holds for all."""
    roots = dict.fromkeys(root for generation in planned for root in generation.roots)
    followed = any(generation.follow_links for generation in planned)
    return Reach(roots=tuple(roots), follow_links=follow_links or followed)


def shards_of(
    generation: Generation, *, without: set[str], start: int = 0, stop: int | None = None
) -> Iterator[Shard]:
    """The shards of a generation within [start, stop) that are not in `without`, in order."""
    end = generation.shards if stop is None else min(stop, generation.shards)
    for index in range(start, end):
        name = layout.shard(generation.number, index)
        if name not in without:
            yield Shard(
                id=name,
                generation=generation.number,
                rows=generation.rows_of(index),
                part=generation.parts[index // SHARDS_A_PART],
                row_group=index % SHARDS_A_PART,
            )


def read_shard(output: str, shard: Shard) -> pa.Table:
    """A shard's manifest rows: `schema.MANIFEST` and the caller's columns."""
    with _part(output, shard.part) as part:
        return part.read_row_group(shard.row_group)


def read_columns(
    output: str, generation: Generation, columns: list[str]
) -> Iterator[pa.RecordBatch]:
    """Some columns of a whole generation, as a stream."""
    for name in generation.parts:
        with _part(output, name) as part:
            yield from part.iter_batches(columns=columns)


def is_whole(output: str, part: str) -> bool:
    """Whether a part holds what it was frozen with, which its name says.

    Raises:
        FileNotFoundError: There is none.
        StorageError: Storage failed.
    """
    place = join(output, part)
    try:
        with storage_for(output).open(place) as file:
            return part.endswith(f"-{file_digest(file)}.parquet")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{place} cannot be read: {error}") from error


@contextmanager
def _part(output: str, name: str) -> Iterator[pq.ParquetFile]:
    try:
        with storage_for(output).open(join(output, name)) as file:
            part = pq.ParquetFile(file)
            check_plain(part.schema_arrow, join(output, name))
            yield part
    except (pa.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise StorageError(f"{join(output, name)} cannot be read: {reason}") from error
