import threading
from collections.abc import Iterable
from pathlib import Path

import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.local import LocalFileSystem
from hypothesis import given
from hypothesis import strategies as st

from encoder import CheckpointError, byte_ranges
from encoder.byte_ranges import Part, Piece, plan_parts, read_pieces, read_tensors
from encoder.safetensors_file import ITEM_BYTES, TensorEntry

DATA = bytes(range(12))


def entry(start: int, end: int, path: str = "x", dtype: str = "U8") -> TensorEntry:
    shape = ((end - start) // ITEM_BYTES[dtype],)
    return TensorEntry(path=path, dtype=dtype, shape=shape, start=start, end=end)


def bytes_of(ranges: Iterable[Part | TensorEntry]) -> list[tuple[str, int]]:
    return sorted((each.path, byte) for each in ranges for byte in range(each.start, each.end))


def test_neighbours_share_a_part_and_gaps_are_in_none() -> None:
    entries = {"a": entry(0, 2), "c": entry(8, 12), "b": entry(2, 5)}
    assert list(plan_parts(entries)) == [
        Part(
            path="x",
            start=0,
            end=5,
            pieces=(
                Piece(name="a", offset=0, start=0, end=2),
                Piece(name="b", offset=0, start=2, end=5),
            ),
        ),
        Part(path="x", start=8, end=12, pieces=(Piece(name="c", offset=0, start=0, end=4),)),
    ]


def test_neighbouring_offsets_in_two_files_are_no_neighbours() -> None:
    parts = plan_parts({"a": entry(0, 4, "1"), "b": entry(4, 8, "2")})
    assert [(part.path, part.start, part.end) for part in parts] == [("1", 0, 4), ("2", 4, 8)]


def test_long_tensors_are_cut_between_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(byte_ranges, "PART_BYTES", 6)
    parts = list(plan_parts({"a": entry(0, 2), "b": entry(2, 14, dtype="F32"), "c": entry(14, 16)}))
    assert [(part.start, part.end) for part in parts] == [(0, 6), (6, 10), (10, 16)]
    assert [part.pieces[-1] for part in parts] == [
        Piece(name="b", offset=0, start=2, end=6),
        Piece(name="b", offset=4, start=0, end=4),
        Piece(name="c", offset=0, start=4, end=6),
    ]


@given(
    tensors=st.lists(
        st.tuples(st.sampled_from("12"), st.sampled_from(["U8", "BF16", "F32"]), st.integers(1, 9)),
        min_size=1,
        max_size=8,
    ),
    gaps=st.lists(st.integers(0, 1), min_size=8, max_size=8),
    limit=st.integers(4, 20),
)
def test_parts_cover_every_tensor_once_and_nothing_else(
    tensors: list[tuple[str, str, int]], gaps: list[int], limit: int
) -> None:
    entries, at = {}, {"1": 0, "2": 0}
    for index, ((path, dtype, length), gap) in enumerate(zip(tensors, gaps, strict=False)):
        start = at[path] + gap
        at[path] = start + length * ITEM_BYTES[dtype]
        entries[str(index)] = entry(start, at[path], path, dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(byte_ranges, "PART_BYTES", limit)
        parts = list(plan_parts(entries))
    assert bytes_of(parts) == bytes_of(entries.values())
    assert all(part.end - part.start <= limit for part in parts)
    for part in parts:
        assert part.pieces[0].start == 0
        assert part.pieces[-1].end == part.end - part.start
        for piece in part.pieces:
            tensor = entries[piece.name]
            assert (piece.end - piece.start) % ITEM_BYTES[tensor.dtype] == 0
            assert part.start + piece.start == tensor.start + piece.offset


class WatchedFilesystem(AbstractFileSystem):
    """Files of this machine; notes the ranges that are read, and how many at a time."""

    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.ranges: list[tuple[int, int]] = []
        self.under_way = self.most = 0
        self.full = threading.Event()
        self._lock = threading.Lock()

    def cat_file(self, path: str, start: int, end: int) -> bytes:
        with self._lock:
            self.ranges.append((start, end))
            self.under_way += 1
            self.most = max(self.most, self.under_way)
            if self.under_way == 8:
                self.full.set()
        try:
            return self.read(path, start, end)
        finally:
            with self._lock:
                self.under_way -= 1

    def read(self, path: str, start: int, end: int) -> bytes:
        return Path(path).read_bytes()[start:end]


@pytest.fixture
def long_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[TensorEntry, bytes]:
    """A tensor of a hundred parts."""
    monkeypatch.setattr(byte_ranges, "PART_BYTES", 10)
    data = bytes(range(250)) * 4
    (tmp_path / "x").write_bytes(data)
    return entry(0, 1000, str(tmp_path / "x")), data


def reading_threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name.startswith("byte-ranges")]


def test_tensors_are_read_whole_in_order_and_nothing_beside(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    path = str(tmp_path / "x")
    fs = WatchedFilesystem()
    entries = {"c": entry(8, 12, path), "a": entry(0, 2, path), "b": entry(2, 5, path)}
    read = [(name, bytes(data)) for name, data in read_tensors(fs, entries)]
    assert read == [("a", DATA[:2]), ("b", DATA[2:5]), ("c", DATA[8:])]
    assert sorted(fs.ranges) == [(0, 5), (8, 12)]


def test_a_tensor_that_was_cut_is_joined_and_the_callers_own(
    long_file: tuple[TensorEntry, bytes],
) -> None:
    tensor, data = long_file
    ((name, whole),) = read_tensors(WatchedFilesystem(), {"a": tensor})
    assert (name, bytes(whole)) == ("a", data)
    whole[0] = 7


def test_eight_parts_are_read_at_a_time_and_no_more(long_file: tuple[TensorEntry, bytes]) -> None:
    class Meeting(WatchedFilesystem):
        def read(self, path: str, start: int, end: int) -> bytes:
            # Nobody goes on before eight are there.
            assert self.full.wait(30)
            return super().read(path, start, end)

    fs = Meeting()
    tensor, data = long_file
    ((_, whole),) = read_tensors(fs, {"a": tensor})
    assert bytes(whole) == data
    assert fs.most == 8


def test_no_part_is_begun_while_nobody_takes_those_that_are_there(
    long_file: tuple[TensorEntry, bytes],
) -> None:
    fs = WatchedFilesystem()
    pieces = read_pieces(fs, {"a": long_file[0]}, in_order=True)
    next(pieces)
    for thread in reading_threads():
        thread.join(0.1)
    assert len(fs.ranges) <= 8
    pieces.close()  # type: ignore[attr-defined]
    assert reading_threads() == []


def test_a_slow_part_holds_up_no_other_unless_order_is_asked_for(
    long_file: tuple[TensorEntry, bytes],
) -> None:
    class FirstIsSlow(WatchedFilesystem):
        def __init__(self) -> None:
            super().__init__()
            self.go_on = threading.Event()

        def read(self, path: str, start: int, end: int) -> bytes:
            assert start != 0 or self.go_on.wait(30)
            return super().read(path, start, end)

    fs = FirstIsSlow()
    tensor, data = long_file
    found = bytearray(len(data))
    offsets = []
    for piece, values in read_pieces(fs, {"a": tensor}, in_order=False):
        offsets.append(piece.offset)
        found[piece.offset : piece.offset + len(values)] = values
        if len(offsets) == 99:
            fs.go_on.set()
    assert offsets[-1] == 0
    assert found == data


@pytest.mark.parametrize("in_order", [True, False])
def test_a_failure_stops_the_rest_and_leaves_no_thread(
    long_file: tuple[TensorEntry, bytes], in_order: bool
) -> None:
    class Failing(WatchedFilesystem):
        def read(self, path: str, start: int, end: int) -> bytes:
            if start == 100:
                raise PermissionError("storage says no")
            return super().read(path, start, end)

    fs = Failing()
    with pytest.raises(PermissionError, match="storage says no"):
        list(read_pieces(fs, {"a": long_file[0]}, in_order=in_order))
    assert len(fs.ranges) <= 11 + 2 * 8
    assert reading_threads() == []


def test_a_file_that_ends_early_is_named(long_file: tuple[TensorEntry, bytes]) -> None:
    tensor, data = long_file
    Path(tensor.path).write_bytes(data[:-3])
    with pytest.raises(CheckpointError, match="x: truncated: ends within bytes 990 to 1000"):
        list(read_tensors(LocalFileSystem(), {"a": tensor}))
