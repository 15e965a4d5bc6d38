"""What has become of every item, over all generations.

An item's state is what the newest generation that lists it says: embedded, failed, or open as long
as its shard is. Older rows of it are superseded. With one generation the markers tell it all; with
several, every item's newest is looked up on disk, so that memory grows with the shards alone.
"""

from __future__ import annotations

import io
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import layout
from pipeline.ahead import ahead
from pipeline.errors import StorageError
from pipeline.known import scratch
from pipeline.location import digest, join
from pipeline.manifest import Generation, Shard, read_columns
from pipeline.marker import Marker
from pipeline.schema import check_plain
from pipeline.storage import storage_for


@dataclass
class States:
    """How many items are in which state."""

    embedded: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Failed items by code."""
    open: int = 0

    @property
    def failed(self) -> int:
        """Items whose newest row is an error."""
        return self.errors.total()

    @property
    def items(self) -> int:
        """Every item that was ever planned, once."""
        return self.embedded + self.failed + self.open


class Newest:
    """The newest generation that lists each item, on disk. Generations come newest first."""

    def __init__(self, path: Path) -> None:
        self._db = scratch(path, "newest (id BLOB PRIMARY KEY, generation INT, seen INT)")
        self.live: Counter[str] = Counter()
        """Items of each shard that no newer generation lists."""

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def add(self, generation: int, shard: str, ids: list[str]) -> int:
        """Takes in items of a shard; returns how many its generation has not listed before."""
        new = 0
        self._db.execute("BEGIN")
        for key in map(bytes.fromhex, ids):
            old = self._db.execute("SELECT seen FROM newest WHERE id = ?", (key,)).fetchone()
            if old is None:
                self._db.execute(
                    "INSERT INTO newest VALUES (?, ?, ?)", (key, generation, generation)
                )
                self.live[shard] += 1
            elif old[0] != generation:
                self._db.execute("UPDATE newest SET seen = ? WHERE id = ?", (generation, key))
            else:
                continue
            new += 1
        self._db.execute("COMMIT")
        return new

    def current(self, generation: int, rows: pa.Table) -> pa.Table:
        """Those of a generation's rows, with their `item_id`, that none newer supersedes."""
        query = "SELECT generation FROM newest WHERE id = ?"
        found = (
            self._db.execute(query, (bytes.fromhex(key),)).fetchone()
            for key in rows["item_id"].to_pylist()
        )
        return rows.filter(pa.array([row == (generation,) for row in found], pa.bool_()))


@contextmanager
def scratch_newest() -> Iterator[Newest]:
    """An empty `Newest`, for as long as the block."""
    with (
        tempfile.TemporaryDirectory(prefix="patchflow-states-") as folder,
        closing(Newest(Path(folder) / "newest.sqlite")) as found,
    ):
        yield found


@contextmanager
def newest_of(output: str, planned: list[Generation]) -> Iterator[Newest | None]:
    """The newest generation of every item; None where there is only one."""
    if len(planned) == 1:
        yield None
        return
    with scratch_newest() as found:
        for generation in reversed(planned):
            try:
                _load(output, generation, found)
            except (ValueError, TypeError) as error:
                place = join(output, layout.generation(generation.number))
                raise StorageError(f"a part of {place} is damaged; `verify` tells more") from error
        yield found


def _load(output: str, generation: Generation, newest: Newest) -> None:
    for batch in read_columns(output, generation, ["shard", "item_id"]):
        rows = zip(*(batch[name].to_pylist() for name in batch.schema.names), strict=True)
        for shard, group in groupby(rows, key=itemgetter(0)):
            newest.add(generation.number, shard, [key for _, key in group])


def states(
    output: str, shards: Iterable[tuple[Shard, Marker | None]], newest: Newest | None
) -> States:
    """Counts every item once, in its current state.

    Args:
        output: Canonical location of the output.
        shards: Every planned shard and its marker, None where it is open.
        newest: From `newest_of`.

    Raises:
        StorageError: Storage failed, or an errors object is missing or damaged.
    """
    found = States()
    partly = []
    for shard, marker in shards:
        live = shard.rows if newest is None else newest.live[shard.id]
        if marker is None:
            found.open += live
        elif live == shard.rows:
            found.embedded += marker.embedded
            found.errors.update(marker.errors)
        else:
            found.embedded += live
            if live and marker.failed:
                partly.append((shard, marker))
    for _, rows in failures(output, partly, newest):
        found.embedded -= rows.num_rows
        found.errors.update(rows["error_code"].to_pylist())
    return found


def failures(
    output: str, shards: Iterable[tuple[Shard, Marker]], newest: Newest | None
) -> Iterator[tuple[Shard, pa.Table]]:
    """The items of each committed shard that are failed now, as `item_id` and `error_code`.

    Raises:
        StorageError: Storage failed, or an errors object is missing or damaged.
    """

    def read(done: tuple[Shard, Marker]) -> tuple[Shard, pa.Table]:
        return done[0], _errors(output, done[1])

    for shard, rows in ahead(read, shards):
        yield shard, rows if newest is None else newest.current(shard.generation, rows)


def _errors(output: str, marker: Marker) -> pa.Table:
    name = layout.errors(marker.shard)
    place = join(output, name)
    try:
        data = storage_for(output).read(place)
    except FileNotFoundError as error:
        raise StorageError(f"{place} is missing; `verify` tells more") from error
    if digest(data) not in [stored.checksum for stored in marker.objects if stored.name == name]:
        raise StorageError(f"{place} is damaged; `verify` tells more")
    rows = pq.read_table(io.BytesIO(data), columns=["item_id", "error_code"])
    check_plain(rows.schema, place)
    return rows
