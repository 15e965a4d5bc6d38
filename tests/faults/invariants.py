"""What must hold of an output at any moment, and what once everything is done.

Parquet and JSON are read as anybody would, with nothing of ours but the bytes' storage.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from itertools import pairwise
from typing import Any
from urllib.parse import quote

import pyarrow.parquet as pq

from pipeline.location import join
from pipeline.storage import storage_for

Row = dict[str, Any]

_COMMITS, _MANIFEST = "_patchflow/commits/", "_patchflow/manifest/"


class Promises:
    """What is planned and what is committed, once there, stays as it is."""

    def __init__(self, output: str) -> None:
        self._output = output
        self.markers: dict[str, bytes] = {}
        self._objects: dict[str, tuple[int, str]] = {}
        self._planned: dict[str, bytes] = {}

    def check(self, place: str) -> None:
        """Looks at the object at `place`."""
        name = place.removeprefix(join(self._output, ""))
        if name in self._objects:
            self._check_object(name, self._read(name))
        elif name.endswith((".json", ".parquet")) and name.startswith(_MANIFEST):
            self._check_frozen(self._planned, name)
        elif (
            name.endswith(".json")
            and name.startswith(_COMMITS)
            and self._check_frozen(self.markers, name)
        ):
            for stored in json.loads(self.markers[name])["objects"]:
                self._objects[stored["name"]] = stored["size_bytes"], stored["checksum"]
                self._check_object(stored["name"], self._read(stored["name"]))

    def _check_frozen(self, known: dict[str, bytes], name: str) -> bool:
        """Whether it is there for the first time."""
        data = self._read(name)
        if name in known:
            assert data == known[name], f"{name} was there, and changed"
        elif data is not None:
            known[name] = data
            return True
        return False

    def _check_object(self, name: str, data: bytes | None) -> None:
        assert data is not None, f"{name} is in a marker, but is not there"
        found = len(data), hashlib.blake2b(data, digest_size=16).hexdigest()
        assert found == self._objects[name], f"{name} is not what its marker says"

    def _read(self, name: str) -> bytes | None:
        try:
            return storage_for(self._output).read(join(self._output, name))
        except FileNotFoundError:
            return None


def contents(output: str) -> dict[str, bytes]:
    """Every object of an output, by name."""
    storage = storage_for(output)
    uris = [info.uri for info in storage.list(output)]
    return {uri.removeprefix(join(output, "")): storage.read(uri) for uri in uris}


def check_complete(output: str, promises: Promises, collection: dict[str, Row]) -> None:
    """Everything is planned and done, once, and nothing else is there.

    `collection` has each item's `version` and `label`, by URI, as last planned.
    """
    files = contents(output)
    assert not [name for name in files if name.startswith("_patchflow/intents/")]
    markers = {name: data for name, data in files.items() if name.startswith(_COMMITS)}
    assert markers == promises.markers
    named: set[str] = set()
    versions: dict[str, list[str]] = {}
    for generation in _generations(files):
        for shard, rows in _shards(files, generation).items():
            named |= _check_shard(files, shard, rows, generation["partition_by"])
            for row in rows:
                versions.setdefault(row["uri"], []).append(row["version"])
    stored = {name for name in files if name.startswith(("embeddings/", "errors/"))}
    assert stored == named
    for uri, found in versions.items():
        again = [one for one, next_one in pairwise(found) if one == next_one]
        assert not again, f"{uri} was planned twice as version {again}"
    newest = {uri: found[-1] for uri, found in versions.items()}
    assert newest == {uri: item["version"] for uri, item in collection.items()}


def _generations(files: dict[str, bytes]) -> list[Row]:
    names = [n for n in files if n.startswith(_MANIFEST) and n.endswith(".json")]
    assert sorted(names) == [f"{_MANIFEST}g{n:06d}.json" for n in range(len(names))]
    return [json.loads(files[name]) for name in sorted(names)]


def _shards(files: dict[str, bytes], generation: Row) -> dict[str, list[Row]]:
    """A generation's manifest rows by shard, each item once."""
    rows = [row for part in generation["parts"] for row in _rows(files[part])]
    assert len({row["item_id"] for row in rows}) == len(rows) == generation["rows"]
    shards: dict[str, list[Row]] = {}
    for row in rows:
        shards.setdefault(row["shard"], []).append(row)
    number = generation["number"]
    assert list(shards) == [f"g{number:06d}-{n:08d}" for n in range(generation["shards"])]
    assert max(map(len, shards.values())) <= generation["shard_rows"]
    return shards


def _check_shard(
    files: dict[str, bytes], shard: str, rows: list[Row], partition_by: list[str]
) -> set[str]:
    """One terminal row for each of `rows`, all of one run; returns its objects' names."""
    marker = json.loads(files[f"{_COMMITS}{shard}.json"])
    folders = "".join(f"{n}={quote(rows[0][n], safe='')}/" for n in partition_by)
    names = [f"embeddings/{folders}{shard}.parquet", f"errors/{shard}.parquet"]
    assert [stored["name"] for stored in marker["objects"]] == names
    for stored in marker["objects"]:
        data = files[stored["name"]]
        found = len(data), hashlib.blake2b(data, digest_size=16).hexdigest()
        assert found == (stored["size_bytes"], stored["checksum"])
    good, bad = (_rows(files[name]) for name in names)
    assert (len(good), len(bad)) == (marker["embedded"], marker["failed"])
    terminal = Counter((row["item_id"], row["uri"], row["version"]) for row in good + bad)
    assert terminal == Counter((row["item_id"], row["uri"], row["version"]) for row in rows)
    runs = {row["content_hash"] for row in good} | {row["error_message"] for row in bad}
    assert runs == {marker["run"]}, f"{shard} is a mixture of {runs}"
    number = int(marker["run"].rpartition("-")[2])
    assert {value for row in good for value in row["embedding"]} <= {float(number)}
    return set(names)


def _rows(data: bytes) -> list[Row]:
    rows: list[Row] = pq.ParquetFile(io.BytesIO(data)).read().to_pylist()
    return rows
