"""Parquet files that strangers made, read in a process of their own: the parent's side.

A page of some kilobytes may become gigabytes, a footer may say anything, and no check that could
be made here sees it before the parser does. So that one runs where memory is limited, with no
credentials, files or sockets (`pipeline.parquet_child`), and here only what it sends is looked at.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import BinaryIO

import pyarrow as pa

from pipeline.errors import MachineError, printable
from pipeline.parquet_child import (
    DONE,
    MEMORY_BYTES,
    MOST_TABLE_BYTES,
    OPEN,
    OUT_OF_MEMORY_STATUS,
    RANGE,
    READ,
    READY,
    REFUSED,
    ROWS,
    SCHEMA,
)
from processors.sandbox.processes import clean_environment

# Imports take half a second; many times that where a machine is busy.
_START_LIMIT_S = 60.0
# A file may keep us waiting so long, and a second more for each MiB: tens of times what it takes.
_FILE_LIMIT_S = 60.0
_SECOND_BYTES = 2**20
# A table, and what a schema and its offsets add.
_MOST_MESSAGE_BYTES = 2 * MOST_TABLE_BYTES
# Read by pyarrow itself, which asks the class that is registered for the name that follows.
_EXTENSION = b"ARROW:extension:name"


class ParquetError(Exception):
    """A file cannot be read: the end of a sentence that begins with its name."""


class ParquetReader:
    """Reads files one after the other in one process, which the first of them starts.

    A file that ends it, or keeps it too long, costs itself; the next one gets another process.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None

    def close(self) -> None:
        """Ends the process."""
        if self._child is not None:
            self._child.close()
            self._child = None

    def read(self, file: BinaryIO, size_bytes: int, batch_rows: int) -> Iterator[pa.Table]:
        """The tables of a file: first an empty one, then those of `batch_rows` rows or fewer.

        Raises:
            ParquetError: It cannot be read, or not within the limits.
            MachineError: A process for it cannot be had here.
            Exception: Whatever reading `file` raises.
        """
        child = self._child or _Child()
        self._child = None
        limit_s = _FILE_LIMIT_S + size_bytes / _SECOND_BYTES
        is_through = False
        try:
            child.connection.send_bytes(OPEN.pack(size_bytes, batch_rows))
            while True:
                kind, body = child.receive(limit_s)
                if kind == READ:
                    child.connection.send_bytes(_range(file, body))
                elif kind == SCHEMA:
                    schema = _schema(body)
                    yield schema.empty_table()
                elif kind == ROWS:
                    yield _table(body, schema)
                else:
                    is_through = True
                    break
            if kind == REFUSED:
                raise ParquetError(printable(str(body, "utf-8", "replace")))
            assert kind == DONE
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise ParquetError(child.epitaph()) from None
        except pa.ArrowException as error:
            reason = printable(str(error).splitlines()[0])
            raise ParquetError(f"is not a readable Parquet file: {reason}") from None
        finally:
            if is_through:
                child.spent_s = 0.0
                self._child = child
            else:
                child.close()


class _Child:
    """The process, which is new or waits for a file."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            name = "pipeline.parquet_child"
            self._process = subprocess.Popen(
                [sys.executable, "-m", name, str(theirs.fileno()), str(os.getpid())],
                # Of the memory pools this one takes no more address space than it needs.
                env=clean_environment() | {"ARROW_DEFAULT_MEMORY_POOL": "system"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is this process's to deal with.
            )
        self.connection = Connection(ours.detach())
        self.spent_s = 0.0
        try:
            kind, _ = self.receive(_START_LIMIT_S)
        except (EOFError, ParquetError):
            self._process.kill()
            said = self._process.communicate()[1].decode(errors="replace").splitlines()
            self.close()
            last = said[-1] if said else "it does not start"
            raise MachineError(f"manifests cannot be read on this machine: {last}") from None
        if kind != READY:
            self.close()
            raise MachineError("manifests cannot be read on this machine: no memory limit is kept")
        self.spent_s = 0.0

    def receive(self, limit_s: float) -> tuple[bytes, memoryview]:
        """The next message: its kind and its body.

        Raises:
            ParquetError: It has kept us waiting for longer than `limit_s`, all in all.
            EOFError: There is none; it has ended.
        """
        began = time.monotonic()
        if not self.connection.poll(max(0.0, limit_s - self.spent_s)):
            raise ParquetError(f"takes longer than {limit_s:.0f} s to read")
        try:
            message = memoryview(self.connection.recv_bytes(_MOST_MESSAGE_BYTES))
        except OSError as error:
            raise EOFError from error
        self.spent_s += time.monotonic() - began
        return bytes(message[:1]), message[1:]

    def epitaph(self) -> str:
        """What its end says of the file."""
        status = self._process.wait()
        if status == OUT_OF_MEMORY_STATUS:
            return f"takes more than {MEMORY_BYTES // 2**20} MiB of memory to read"
        how = signal.Signals(-status).name if status < 0 else f"exit code {status}"
        return f"is not a readable Parquet file: it ends the process that reads it ({how})"

    def close(self) -> None:
        """Ends it."""
        self.connection.close()
        self._process.kill()
        self._process.wait()
        assert self._process.stderr is not None
        self._process.stderr.close()


def _range(file: BinaryIO, body: memoryview) -> bytes:
    start, size = RANGE.unpack(body)
    file.seek(start)
    return file.read(min(size, _SECOND_BYTES))


def _schema(body: memoryview) -> pa.Schema:
    if _EXTENSION in bytes(body):
        raise ParquetError("is not a readable Parquet file: it names a type to be loaded")
    return pa.ipc.read_schema(pa.py_buffer(body))


def _table(body: memoryview, schema: pa.Schema) -> pa.Table:
    table = pa.Table.from_batches([pa.ipc.read_record_batch(pa.py_buffer(body), schema)])
    # It may have been taken over by a file: offsets out of bounds would be ours to fall over.
    table.validate(full=True)
    return table
