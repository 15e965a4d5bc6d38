"""The program that parses Parquet files that strangers made, and reaches nothing but its parent.

python -m pipeline.parquet_child SOCKET PARENT_PID

It asks its parent for ranges of a file and answers with tables; `pipeline.parquet_reader` is the
parent's side. What a file makes of the memory limit or of the parser, it makes of this process.
"""

from __future__ import annotations

import io
import os
import struct
import sys
from multiprocessing.connection import Connection
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from processors.sandbox.lockdown import load_filter, lock_down

# The first byte of a message, and what follows: a range, a schema, a table, nothing, a sentence.
READY, READ, SCHEMA, ROWS, DONE, REFUSED = b"!", b"R", b"S", b"T", b"D", b"E"
OPEN = struct.Struct("<QQ")
"""From the parent: the size of a file in bytes, and the rows of a table."""
RANGE = struct.Struct("<QQ")
OUT_OF_MEMORY_STATUS = 77

# Planned in twenty minutes: 12 us a row, measured. Run lengths can make billions of rows out of
# one kilobyte.
MOST_ROWS = 10**8
# A schema costs each shard, part and object its place in a footer.
MOST_COLUMNS = 1024
# 16 KiB a row of a full table: a shard of them stays small beside its patches. A dictionary can
# repeat a megabyte in every row.
MOST_TABLE_BYTES = 2**27
# What a file may become: a gigabyte, and a thousand times its size. Of names that are counted up,
# a hundred times is seen; the same long one over and over is a million times, and takes hours.
MOST_BYTES = 2**30
MOST_GROWTH = 1000
# Beyond what the libraries hold. Files as writers make them take a few pages of 1 MiB a column.
MEMORY_BYTES = 2**30

_READ_BYTES = 2**20
_REASON_CHARS = 200


class _RefusedError(Exception):
    """Why a file is not read on, as the end of a sentence that begins with its name."""


def main() -> None:
    """Reads files for the parent process, one after the other, until it hangs up."""
    parent = Connection(int(sys.argv[1]))
    load_filter()
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in (1, 2):  # What a file makes a library print goes nowhere.
        os.dup2(nowhere, standard)
    measures = lock_down(MEMORY_BYTES, template=int(sys.argv[2]))
    parent.send_bytes(READY if measures["memory limit"] else REFUSED)
    while True:
        try:
            size, rows = OPEN.unpack(parent.recv_bytes())
        except EOFError:
            return
        try:
            _send_tables(parent, _Remote(parent, size), rows)
        except MemoryError:
            os._exit(OUT_OF_MEMORY_STATUS)
        except Exception as error:
            parent.send_bytes(REFUSED + _told(error).encode())
        else:
            parent.send_bytes(DONE)


def _told(error: Exception) -> str:
    if isinstance(error, _RefusedError):
        return str(error)
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return f"is not a readable Parquet file: {reason[:_REASON_CHARS]}"


def _send_tables(parent: Connection, remote: _Remote, batch_rows: int) -> None:
    file = io.BufferedReader(remote, _READ_BYTES)
    # In small reads, as a row group's column may be larger than memory; and without threads, which
    # a locked down process cannot start.
    parquet = pq.ParquetFile(file, buffer_size=_READ_BYTES, pre_buffer=False)
    schema, promised = parquet.schema_arrow, parquet.metadata.num_rows
    if promised > MOST_ROWS:
        raise _RefusedError(f"says that it has {promised:,} rows; the most is {MOST_ROWS:,}")
    if len(schema) > MOST_COLUMNS:
        raise _RefusedError(f"has {len(schema):,} columns; the most is {MOST_COLUMNS:,}")
    plain = pa.schema([pa.field(f.name, _plain(f.type)) for f in schema])
    parent.send_bytes(SCHEMA + memoryview(plain.serialize()))
    found = taken = 0
    for batch in parquet.iter_batches(batch_size=batch_rows, use_threads=False):
        found += batch.num_rows
        columns = [pc.cast(c, f.type) for c, f in zip(batch.columns, plain, strict=True)]
        rows = pa.RecordBatch.from_arrays(columns, schema=plain)
        if rows.nbytes > MOST_TABLE_BYTES:
            size, most = rows.nbytes // rows.num_rows, MOST_TABLE_BYTES // batch_rows
            raise _RefusedError(f"has rows of {size:,} bytes on average; the most is {most:,}")
        taken += rows.nbytes
        if taken > MOST_BYTES + MOST_GROWTH * remote.size:
            raise _RefusedError(
                f"becomes more than {taken:,} bytes, of {remote.size:,}: that is no list of files"
            )
        parent.send_bytes(ROWS + memoryview(rows.serialize()))
    if found != promised:
        raise _RefusedError(f"says that it has {promised:,} rows, and has {found:,}")


def _plain(kind: pa.DataType) -> pa.DataType:
    """What values of a type are stored as, all the way down.

    Categories become their values, as their numbers differ from one row group to the next. Metadata
    of fields goes: it can name a class that whoever reads them on makes objects of, by unpickling.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _plain(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([_plain_field(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_plain_field(kind.key_field), _plain_field(kind.item_field))
    if pa.types.is_list(kind):
        return pa.list_(_plain_field(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain_field(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain_field(kind.value_field), kind.list_size)
    if pa.types.is_nested(kind):
        raise _RefusedError(f"has a column of a type that is not known here: {kind}")
    return kind


def _plain_field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, _plain(field.type), field.nullable)


class _Remote(io.RawIOBase):
    """A file that the parent holds."""

    def __init__(self, parent: Connection, size: int) -> None:
        self.size = size
        self._parent, self._at = parent, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.size)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        if not 0 <= self._at < self.size:
            return 0
        wanted = min(len(buffer), self.size - self._at, _READ_BYTES)
        self._parent.send_bytes(READ + RANGE.pack(self._at, wanted))
        data = self._parent.recv_bytes()
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


if __name__ == "__main__":
    main()
