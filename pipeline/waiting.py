"""Rows that wait for their shards to be full: in memory, and what is too much for it on disk."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path

import pyarrow as pa

# What all of them may take in memory.
_MOST_BYTES = 2**28
# What Arrow keeps of a column, however few its rows are.
_COLUMN_BYTES = 2**10


class Waiting:
    """Rows by the folder that their partition values name, each folder's in their order."""

    def __init__(self, folder: Path) -> None:
        self.rows: Counter[str] = Counter()
        """How many there are of each folder that has some, in the order in which they came."""
        self._place = folder
        self._tables: defaultdict[str, list[pa.Table]] = defaultdict(list)
        self._bytes = 0
        self._files: list[pa.RecordBatchFileReader] = []
        # By folder: the number of a file, and of the batch in it.
        self._batches: defaultdict[str, list[tuple[int, int]]] = defaultdict(list)

    def add(self, folder: str, rows: pa.Table) -> None:
        """Takes in rows, after those that are there."""
        self.rows[folder] += rows.num_rows
        self._tables[folder].append(rows)
        self._bytes += _size(rows)
        if self._bytes > _MOST_BYTES:
            self._make_room()

    def take(self, folder: str) -> pa.Table:
        """Gives back all of a folder's rows."""
        del self.rows[folder]
        held = self._tables.pop(folder, [])
        self._bytes -= sum(map(_size, held))
        stored = [self._files[file].get_batch(n) for file, n in self._batches.pop(folder, [])]
        return pa.concat_tables([*(pa.Table.from_batches([batch]) for batch in stored), *held])

    def _make_room(self) -> None:
        """Puts a folder's small tables together, and all of them on disk, if that is too little."""
        for folder, tables in self._tables.items():
            self._tables[folder] = [pa.concat_tables(tables).combine_chunks()]
        self._bytes = sum(_size(table) for (table,) in self._tables.values())
        if self._bytes > _MOST_BYTES // 2:
            self._store()

    def _store(self) -> None:
        path, number = self._place / f"waiting-{len(self._files):06d}.arrow", 0
        first = next(iter(self._tables.values()))[0]
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, first.schema) as writer:
            for folder, (table,) in self._tables.items():
                for batch in table.to_batches():
                    writer.write_batch(batch)
                    self._batches[folder].append((len(self._files), number))
                    number += 1
        self._files.append(pa.ipc.open_file(pa.OSFile(str(path))))
        self._tables.clear()
        self._bytes = 0


def _size(rows: pa.Table) -> int:
    chunks = sum(column.num_chunks for column in rows.columns)
    size: int = rows.nbytes + _COLUMN_BYTES * chunks
    return size
