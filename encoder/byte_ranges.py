"""Tensors by byte range: cut into parts, several parts read at a time. No torch."""

from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import islice

from encoder.safetensors_file import ITEM_BYTES, Filesystem, TensorEntry, read_range

PART_BYTES = 8 * 2**20
_AT_A_TIME = 8  # an object store serves as many at several times the speed of one


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What a part holds of a tensor: whole values.

    Attributes:
        name: The tensor's.
        offset: The piece's first byte, counted from the tensor's.
        start: The same byte, counted from the part's.
        end: First byte behind the piece, counted from the part's.
    """

    name: str
    offset: int
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class Part:
    """A range of a file that is read at once; its pieces cover it.

    Attributes:
        path: The file, on its filesystem.
        start: First byte, counted from the beginning of the file.
        end: First byte behind it.
        pieces: In the order of their bytes.
    """

    path: str
    start: int
    end: int
    pieces: tuple[Piece, ...]


def in_file_order(entries: Mapping[str, TensorEntry]) -> dict[str, TensorEntry]:
    """Returns the same entries, file by file and in the order of their bytes."""
    return dict(sorted(entries.items(), key=lambda item: (item[1].path, item[1].start)))


def plan_parts(entries: Mapping[str, TensorEntry]) -> Iterator[Part]:
    """Cuts tensors into parts of at most 8 MiB, in the order of their bytes.

    Neighbours share a part, long tensors take several, and no byte beside them is in any.

    Args:
        entries: Tensors by name, none of them empty.
    """
    path, start, end = "", 0, 0
    pieces: list[Piece] = []
    for name, entry in in_file_order(entries).items():
        item_bytes = ITEM_BYTES.get(entry.dtype, 1)
        at = entry.start
        while at < entry.end:
            full = PART_BYTES - (end - start) < item_bytes
            if pieces and (entry.path != path or at != end or full):
                yield Part(path=path, start=start, end=end, pieces=tuple(pieces))
                pieces = []
            if not pieces:
                path, start, end = entry.path, at, at
            room = (PART_BYTES - (end - start)) // item_bytes * item_bytes
            end = min(at + room, entry.end)
            offset = at - entry.start
            pieces.append(Piece(name=name, offset=offset, start=at - start, end=end - start))
            at = end
    if pieces:
        yield Part(path=path, start=start, end=end, pieces=tuple(pieces))


def read_pieces(
    fs: Filesystem, entries: Mapping[str, TensorEntry], *, in_order: bool
) -> Iterator[tuple[Piece, memoryview]]:
    """Reads tensors piece by piece, and nothing beside them.

    Up to eight parts are read at a time, each in a thread, and none waits in memory beside them
    and the one whose pieces the caller is given. A failure is raised once the others that are
    under way have ended; no further one is begun.

    Args:
        fs: The filesystem.
        entries: Tensors by name, none of them empty.
        in_order: Whether pieces come in the order of their bytes, or as they arrive.

    Yields:
        A piece and its bytes, not to be written to.

    Raises:
        CheckpointError: A file ends before a tensor does.
        Exception: The filesystem's own.
    """
    parts = plan_parts(entries)
    waiting: dict[Future[memoryview], Part] = {}
    pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="byte-ranges")
    try:
        while True:
            for part in islice(parts, _AT_A_TIME - len(waiting)):
                future = pool.submit(read_range, fs, part.path, part.start, part.end)
                waiting[future] = part
            if not waiting:
                return
            if not in_order:
                wait(waiting, return_when=FIRST_COMPLETED)
            future = next(each for each in waiting if in_order or each.done())
            part = waiting.pop(future)
            data = future.result()
            for piece in part.pieces:
                yield piece, data[piece.start : piece.end]
    finally:
        pool.shutdown(cancel_futures=True)


def read_tensors(
    fs: Filesystem, entries: Mapping[str, TensorEntry]
) -> Iterator[tuple[str, memoryview]]:
    """Reads whole tensors, file by file and in the order of their bytes, and nothing beside them.

    Nine parts of 8 MiB and one tensor at most are in memory.

    Args:
        fs: The filesystem.
        entries: Tensors by name, none of them empty.

    Yields:
        Name and raw little-endian bytes, writable and the caller's own to keep.

    Raises:
        CheckpointError: A file ends before a tensor does.
        Exception: The filesystem's own.
    """
    whole = memoryview(b"")
    for piece, data in read_pieces(fs, entries, in_order=True):
        entry = entries[piece.name]
        if piece.offset == 0:
            whole = memoryview(bytearray(entry.end - entry.start))
        whole[piece.offset : piece.offset + len(data)] = data
        if piece.offset + len(data) == len(whole):
            yield piece.name, whole
