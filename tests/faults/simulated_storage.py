"""A disk and an S3 whose every primitive operation is a step of a simulated process."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from pipeline import storage
from pipeline.errors import ItemError, StorageError
from pipeline.objects import Fetched, ObjectInfo, Storage, read_whole
from pipeline.reach import Links, Reach
from tests.faults.simulation import operate

# Which argument of a system call says where it changes something.
_CALLS = {"mkdir": 0, "stat": 0, "scandir": 0, "unlink": 0}
_CALLS |= {"link": 1, "replace": 1, "rename": 1}


def step_on_disk(patch: pytest.MonkeyPatch) -> None:
    """Makes a step of every system call by which a simulated process uses its output."""
    for name, position in _CALLS.items():
        patch.setattr(os, name, _stepping(name, position, getattr(os, name)))
    patch.setattr(os, "fsync", _fsync)
    patch.setattr(io, "open", _stepping_open(io.open))


def _stepping(name: str, position: int, call: Callable[..., Any]) -> Callable[..., Any]:
    def step(*args: Any, **options: Any) -> Any:
        place = args[position]
        if not isinstance(place, str | os.PathLike):
            return call(*args, **options)
        place = os.fspath(place)
        return operate(name, place, lambda: call(*args, **options), _disk_error(place))

    return step


def _stepping_open(call: Callable[..., Any]) -> Callable[..., Any]:
    def step(file: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
        if not isinstance(file, str | os.PathLike):
            return call(file, mode, *args, **options)
        place, writing = os.fspath(file), set(mode) & set("xwa")
        name = "create file" if writing else "open file"
        opened = operate(
            name, place, lambda: call(file, mode, *args, **options), _disk_error(place)
        )
        return _Halves(opened, place) if writing else opened

    return step


def _fsync(descriptor: int) -> None:
    """A process that dies takes nothing with it that it has written: nothing needs to be done."""
    place = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    operate("fsync", place, lambda: None, _disk_error(place))


def _disk_error(place: str) -> OSError:
    return OSError(errno.EIO, os.strerror(errno.EIO), place)


class _Halves:
    """A file open for writing; what is written goes out in two halves, each a step."""

    def __init__(self, file: BinaryIO, place: str) -> None:
        self._file, self._place = file, place

    def write(self, data: bytes) -> int:
        half = len(data) // 2
        for part in (data[:half], data[half:]):
            operate("fill", self._place, lambda part=part: self._fill(part), _disk_error("content"))
        return len(data)

    def _fill(self, part: bytes) -> None:
        self._file.write(part)
        self._file.flush()

    def flush(self) -> None:
        self._file.flush()

    def fileno(self) -> int:
        return self._file.fileno()

    def __enter__(self) -> _Halves:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def step_on_s3(patch: pytest.MonkeyPatch, server: Storage) -> None:
    """Makes `server` what `s3://` names, and a step of every request to it."""
    usual = storage._storage
    requests = Requests(server)
    patch.setattr(storage, "_storage", lambda kind: requests if kind == "s3" else usual(kind))


class Requests:
    """A `Storage` of which every call is one request."""

    def __init__(self, server: Storage) -> None:
        self._server = server

    def check_root(self, root: str) -> None:
        _request("list", root, lambda: self._server.check_root(root))

    def list(self, prefix: str, links: Links | None = None) -> Iterator[ObjectInfo]:
        yield from _request("list", prefix, lambda: [*self._server.list(prefix)])

    def stat(self, uri: str) -> ObjectInfo | None:
        return _request("stat", uri, lambda: self._server.stat(uri))

    def fetch(
        self,
        uri: str,
        *,
        version: str | None = None,
        max_bytes: int | None = None,
        reach: Reach | None = None,
    ) -> Fetched:
        def apply() -> Fetched:
            return self._server.fetch(uri, version=version, max_bytes=max_bytes)

        return _request("fetch", uri, apply)

    def read(self, uri: str) -> bytes:
        return read_whole(self, uri)

    def open(self, uri: str) -> BinaryIO:
        return _request("open", uri, lambda: self._server.open(uri))

    def write(self, uri: str, data: bytes) -> None:
        _request("write", uri, lambda: self._server.write(uri, data))

    def create(self, uri: str, data: bytes) -> bool:
        return _request("create", uri, lambda: self._server.create(uri, data))

    def delete(self, uri: str) -> None:
        _request("delete", uri, lambda: self._server.delete(uri))

    def upload(self, uri: str, path: str) -> None:
        _request("upload", uri, lambda: self._server.upload(uri, path))

    def answers(self, beside: str) -> bool:
        return self._server.answers(beside)

    def clean(self, root: str) -> None:
        _request("clean", root, lambda: self._server.clean(root))


def _request(name: str, uri: str, apply: Callable[[], Any]) -> Any:
    return operate(name, uri, apply, StorageError(f"{uri}: the request failed"))


class MemoryS3:
    """What S3 promises of whole objects, in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def check_root(self, root: str) -> None:
        """Its buckets are all there."""

    def list(self, prefix: str, links: Links | None = None) -> Iterator[ObjectInfo]:
        found = sorted(uri for uri in self.objects if uri.startswith(f"{prefix}/"))
        if not found:
            raise FileNotFoundError(prefix)
        yield from (_info(uri, self.objects[uri]) for uri in found)

    def stat(self, uri: str) -> ObjectInfo | None:
        return _info(uri, self.objects[uri]) if uri in self.objects else None

    def fetch(
        self,
        uri: str,
        *,
        version: str | None = None,
        max_bytes: int | None = None,
        reach: Reach | None = None,
    ) -> Fetched:
        assert version is max_bytes is None, "our own objects are read in whatever version"
        if uri not in self.objects:
            raise ItemError("not_found", "the object is gone")
        data = self.objects[uri]
        return Fetched(data=data, version=_info(uri, data).version)

    def read(self, uri: str) -> bytes:
        return read_whole(self, uri)

    def open(self, uri: str) -> BinaryIO:
        if uri not in self.objects:
            raise FileNotFoundError(uri)
        return io.BytesIO(self.objects[uri])

    def write(self, uri: str, data: bytes) -> None:
        self.objects[uri] = data

    def create(self, uri: str, data: bytes) -> bool:
        if uri in self.objects:
            return False
        self.objects[uri] = data
        return True

    def delete(self, uri: str) -> None:
        self.objects.pop(uri, None)

    def upload(self, uri: str, path: str) -> None:
        self.write(uri, Path(path).read_bytes())

    def answers(self, beside: str) -> bool:
        return True

    def clean(self, root: str) -> None:
        """Nothing is ever left of a PUT that is not done."""


def _info(uri: str, data: bytes) -> ObjectInfo:
    return ObjectInfo(uri=uri, size_bytes=len(data), version=hashlib.md5(data).hexdigest())
