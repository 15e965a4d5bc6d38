"""Parquet files whose words are chosen one by one: Thrift's compact protocol, and no checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MAGIC = b"PAR1"


class Long(int):
    """A 64-bit field, where a plain number is one of 32."""


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*out, number])


def zigzag(number: int) -> bytes:
    return varint((number << 1) ^ (number >> 63))


def kind_of(value: Any) -> int:
    """The protocol's number of a type."""
    kinds = {Long: 6, int: 5, bytes: 8, list: 9, dict: 12}
    return kinds[type(value)]


def body(value: Any) -> bytes:
    if isinstance(value, dict):
        fields = (bytes([kind_of(v)]) + zigzag(n) + body(v) for n, v in value.items())
        return b"".join(fields) + b"\0"
    if isinstance(value, list):
        kind = kind_of(value[0]) if value else 12
        head = bytes([len(value) << 4 | kind]) if len(value) < 15 else b""
        return (head or bytes([0xF0 | kind]) + varint(len(value))) + b"".join(map(body, value))
    if isinstance(value, bytes):
        return varint(len(value)) + value
    return zigzag(value)


def parquet(pages: bytes, footer: bytes, size: int | None = None) -> bytes:
    """A file; `size` is what it says of its footer."""
    length = len(footer) if size is None else size
    return MAGIC + pages + footer + (length & 0xFFFFFFFF).to_bytes(4, "little") + MAGIC


def footer(
    *, schema: Sequence[dict[int, Any]] | None = None, rows: int = 1, groups: Sequence[Any] = ()
) -> bytes:
    """A file's metadata, of one column `uri` of strings unless a schema is given."""
    root = {4: b"schema", 5: 1}
    column = {1: 6, 3: 0, 4: b"uri", 6: 0}
    elements = [root, column] if schema is None else list(schema)
    return body({1: 1, 2: elements, 3: Long(rows), 4: list(groups)})


def group(
    *, rows: int, size: int, codec: int = 0, unpacked: int | None = None, start: int = 4
) -> dict[int, Any]:
    """A row group of the column `uri`: one chunk of `size` bytes, from `start`."""
    meta = {
        1: 6,
        2: [0],
        3: [b"uri"],
        4: codec,
        5: Long(rows),
        6: Long(size if unpacked is None else unpacked),
        7: Long(size),
        9: Long(start),
    }
    return {1: [{2: Long(start), 3: meta}], 2: Long(size), 3: Long(rows)}


def page(
    data: bytes, *, rows: int, unpacked: int | None = None, packed: int | None = None
) -> bytes:
    """A data page of plain strings; the sizes are what its header says."""
    header = {
        1: 0,
        2: len(data) if unpacked is None else unpacked,
        3: len(data) if packed is None else packed,
        5: {1: rows, 2: 0, 3: 3, 4: 3},
    }
    return body(header) + data


def text(value: bytes) -> bytes:
    """A plain string of a page."""
    return len(value).to_bytes(4, "little") + value
