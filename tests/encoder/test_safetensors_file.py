import json
import struct
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from encoder import CheckpointError
from encoder.safetensors_file import Header, TensorEntry, read_header, read_range

DATA = bytes(range(12))


def write(path: Path, header: Any, data: bytes = DATA, length: int | None = None) -> str:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return str(path)


def entry(start: int, end: int, dtype: str = "U8", shape: tuple[int, ...] = ()) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [end - start], "data_offsets": [start, end]}


def test_a_header_gives_places_from_the_start_of_the_file(tmp_path: Path) -> None:
    header = {"__metadata__": {"k": "v"}, "a": entry(0, 8, "F32", (1, 2)), "b": entry(8, 12)}
    path = write(tmp_path / "x", header)
    start = tmp_path.joinpath("x").stat().st_size - 12
    assert read_header(LocalFileSystem(), path) == Header(
        entries={
            "a": TensorEntry(path=path, dtype="F32", shape=(1, 2), start=start, end=start + 8),
            "b": TensorEntry(path=path, dtype="U8", shape=(4,), start=start + 8, end=start + 12),
        },
        metadata={"k": "v"},
    )


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (b"{", "corrupt header: Expecting"),
        (b"\xff\xfe", "corrupt header: 'utf-8' codec"),
        ([1], "corrupt header"),
        ({"a": 1}, "corrupt header"),
        ({"a": {"dtype": "U8", "shape": [1]}}, "corrupt header: no 'data_offsets' in an entry"),
        ({"a": entry(0, 13)}, "bytes 0 to 13 of a tensor, where the file holds 12"),
        ({"a": entry(8, 4, shape=(4,))}, "bytes 8 to 4 of a tensor"),
        ({"a": entry(-4, 0, shape=(4,))}, "-4 where a size or an offset belongs"),
        ({"a": entry(0, 4, shape=(2.0, 2))}, "2.0 where a size or an offset belongs"),
        ({"a": entry(0, 4, "F32", (2,))}, r"4 bytes for F32 of shape \(2,\)"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, "a and b overlap"),
        ({"a": entry(0, 12), "b": entry(4, 6)}, "a and b overlap"),
        ({"__metadata__": 3}, "__metadata__ is not an object"),
        (b"[" * 100_000, "corrupt header"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, header: Any, message: str) -> None:
    path = write(tmp_path / "x.safetensors", header)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_header(LocalFileSystem(), path)
    assert str(caught.value).startswith(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("length", [23, 2**63, 100_000_001])
def test_a_header_longer_than_the_file_is_not_read(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "x", {}, length=length)
    with pytest.raises(CheckpointError, match=f"corrupt: a header of {length} bytes in a file of"):
        read_header(LocalFileSystem(), path)


def test_an_empty_header_is_not_asked_for(tmp_path: Path) -> None:
    """An object store has an error of its own for a range of no bytes."""
    path = write(tmp_path / "x", b"")
    with pytest.raises(CheckpointError, match="corrupt: a header of 0 bytes in a file of 20 bytes"):
        read_header(LocalFileSystem(), path)


def test_a_header_over_100_mb_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 100_000_001))
        file.truncate(200_000_000)
    with pytest.raises(CheckpointError, match="a header of 100000001 bytes"):
        read_header(LocalFileSystem(), str(path))


def test_what_is_no_file_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="x: no such file"):
        read_header(LocalFileSystem(), str(tmp_path / "x"))
    (tmp_path / "x").write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="not safetensors: only 7 bytes"):
        read_header(LocalFileSystem(), str(tmp_path / "x"))


def test_a_pointer_of_git_lfs_is_told_from_the_weights(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    (tmp_path / "x").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"x: a Git LFS pointer, not .*: run git lfs pull$"):
        read_header(LocalFileSystem(), str(tmp_path / "x"))


def test_a_range_past_the_end_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(DATA)
    assert read_range(LocalFileSystem(), str(path), 3, 12) == DATA[3:]
    with pytest.raises(CheckpointError, match="x: truncated: ends within bytes 3 to 13"):
        read_range(LocalFileSystem(), str(path), 3, 13)
