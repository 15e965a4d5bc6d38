"""What a person names as INPUT, as a stream of tables of candidates in one stable order.

A candidate table has `uri, version, size_bytes, media_type` and, from a Parquet manifest, the
caller's own columns. A folder or prefix is listed, a glob is matched against the listing of
its fixed part, and a `.parquet` file is read as a manifest (`pipeline.input_manifest`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice

import pyarrow as pa
from fsspec.utils import glob_translate

from pipeline.config import InputConfig
from pipeline.errors import UsageError
from pipeline.input_manifest import BATCH_ROWS, CANDIDATE, manifest_rows
from pipeline.location import canonical, local_path, parent, suffix
from pipeline.media_types import media_type
from pipeline.objects import ObjectInfo
from pipeline.parquet_reader import ParquetReader
from pipeline.reach import Links, Reach
from pipeline.storage import storage_for

_GLOB = re.compile(r"[*?\[]")
_MOST_SUFFIXES = 1000


@dataclass
class Skipped:
    """What was seen and left out: files that are no media by name, by suffix, and links."""

    by_suffix: Counter[str] = field(default_factory=Counter)
    links: int = 0
    """Symbolic links that lead to where no item may lie."""

    def add(self, uri: str) -> None:
        """Counts a file that is no media by its name."""
        kind = suffix(uri) or "no suffix"
        # Names are strangers': as many suffixes as files would fill the memory.
        known = kind in self.by_suffix or len(self.by_suffix) < _MOST_SUFFIXES
        self.by_suffix[kind if known else "others"] += 1


def reach_of_inputs(config: InputConfig) -> Reach:
    """Where the items of the inputs may lie.

    Each input has a root: a folder, prefix or file itself, a glob's fixed folder, a manifest's own.

    Raises:
        UsageError: An input cannot be.
        StorageError: Storage failed.
    """
    roots = [_root(canonical(text)) for text in config.inputs]
    roots += [canonical(text) for text in config.root]
    return Reach(roots=tuple(dict.fromkeys(roots)), follow_links=config.follow_links)


def candidates(inputs: tuple[str, ...], reach: Reach, skipped: Skipped) -> Iterator[pa.Table]:
    """Every candidate of every input, in order, duplicates included.

    Args:
        inputs: As a person named them.
        reach: Where their items may lie.
        skipped: Counts what is left out.

    Raises:
        UsageError: An input does not exist, or is no manifest.
        StorageError: Storage failed.
    """
    links = Links(reach)
    with closing(ParquetReader()) as reader:
        for text in inputs:
            location = canonical(text)
            try:
                if _is_glob(location):
                    yield from _matched(location, links, skipped, reader)
                elif _is_manifest(location):
                    yield from manifest_rows(location, reach, reader)
                else:
                    yield from _tables(_media(_objects(location, links), skipped))
            except FileNotFoundError as error:
                reason = f": {error}" if "bucket" in str(error) else ""
                raise UsageError(f"{text!r} does not exist{reason}") from None
            finally:
                skipped.links = links.left_out


def _is_glob(location: str) -> bool:
    # A name that exists is taken as it is, whatever characters it holds.
    if not _GLOB.search(location):
        return False
    try:
        return next(iter(_objects(location)), None) is None
    except FileNotFoundError:
        return True


def _is_manifest(location: str) -> bool:
    return location.lower().endswith(".parquet")


def _root(location: str) -> str:
    if _is_glob(location):
        return _fixed_folder(location)
    return parent(location) if _is_manifest(location) else location


def _objects(location: str, links: Links | None = None) -> Iterator[ObjectInfo]:
    """The objects below a folder or prefix, or the one object there."""
    storage = storage_for(location)
    try:
        yield from storage.list(location, links)
    except FileNotFoundError:
        single = storage.stat(location)
        if single is None:
            raise
        yield single


def _matched(
    pattern: str, links: Links, skipped: Skipped, reader: ParquetReader
) -> Iterator[pa.Table]:
    folder = _fixed_folder(pattern)
    try:
        matches = re.compile(glob_translate(local_path(pattern))).fullmatch
    except ValueError as error:
        raise UsageError(f"{pattern!r}: {error}") from None
    listed = storage_for(folder).list(folder, links)
    found = (info for info in listed if matches(local_path(info.uri)))
    if _is_manifest(pattern):
        for info in found:
            yield from manifest_rows(info.uri, links.reach, reader)
    else:
        yield from _tables(_media(found, skipped))


def _fixed_folder(pattern: str) -> str:
    folder = parent(pattern[: _first_wildcard(pattern)])
    if folder == "s3:/":
        raise UsageError(f"{pattern!r}: a bucket's name cannot hold wildcards")
    return folder


def _first_wildcard(pattern: str) -> int:
    match = _GLOB.search(pattern)
    assert match is not None
    return match.start()


def _media(objects: Iterator[ObjectInfo], skipped: Skipped) -> Iterator[tuple[ObjectInfo, str]]:
    for info in objects:
        kind = media_type(info.uri)
        if kind is None:
            skipped.add(info.uri)
        else:
            yield info, kind


def _tables(media: Iterator[tuple[ObjectInfo, str]]) -> Iterator[pa.Table]:
    while batch := list(islice(media, BATCH_ROWS)):
        infos = [info for info, _ in batch]
        yield pa.table(
            [
                [info.uri for info in infos],
                [info.version for info in infos],
                [info.size_bytes for info in infos],
                [kind for _, kind in batch],
            ],
            schema=CANDIDATE,
        )
