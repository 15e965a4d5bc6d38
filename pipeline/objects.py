"""What every kind of storage offers: whole objects, listed, read and published."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Protocol

from pipeline.errors import ItemError, StorageError
from pipeline.reach import Links, Reach

# No writer takes a day over one object.
ABANDONED_S = 24 * 3600.0


@dataclass(frozen=True, kw_only=True)
class ObjectInfo:
    """One listed object: its canonical `uri`, its size, and a `version` that changes with it."""

    uri: str
    size_bytes: int
    version: str


@dataclass(frozen=True, kw_only=True)
class Fetched:
    """A whole object and the version that it was read in."""

    data: bytes
    version: str


class Storage(Protocol):
    """One kind of storage. Locations are canonical URIs of that kind."""

    def check_root(self, root: str) -> None:
        """Makes sure that objects can lie below `root`, without writing anything.

        Raises:
            FileNotFoundError: They cannot; the message says why.
            StorageError: Storage failed.
        """

    def list(self, prefix: str, links: Links | None = None) -> Iterator[ObjectInfo]:
        """Every object below the folder `prefix`, in one stable order, as a stream.

        Args:
            prefix: The folder's location.
            links: Which symbolic links to follow; None takes those to files, wherever they lead.

        Raises:
            FileNotFoundError: The folder, bucket or prefix does not exist.
            StorageError: Storage failed.
        """

    def stat(self, uri: str) -> ObjectInfo | None:
        """The object at `uri`, or None where there is none."""

    def fetch(
        self,
        uri: str,
        *,
        version: str | None = None,
        max_bytes: int | None = None,
        reach: Reach | None = None,
    ) -> Fetched:
        """The whole object.

        Args:
            uri: The object's location.
            version: Refuse any other version; None takes what is there.
            max_bytes: Refuse a larger object without reading it.
            reach: Refuse a file that a symbolic link leads to out of there; None takes any.

        Raises:
            ItemError: `not_found`, `access_denied`, `version_changed`, `too_large` or
                `read_failed`: true of this object alone.
            RefusedError: Access was refused, to this object or to all.
            StorageError: Storage failed, for this object or for all.
        """

    def answers(self, beside: str) -> bool:
        """Whether another object can be read right now, from where the object `beside` lies."""

    def read(self, uri: str) -> bytes:
        """The bytes of an object of our own, in whatever version is there.

        Raises:
            FileNotFoundError: There is none.
            StorageError: It cannot be read.
        """

    def open(self, uri: str) -> BinaryIO:
        """A seekable reader that fetches ranges as they are asked for."""

    def write(self, uri: str, data: bytes) -> None:
        """Publish `data` at `uri`, whole or not at all, over whatever is there."""

    def create(self, uri: str, data: bytes) -> bool:
        """Publish `data` at `uri` only if nothing is there; False where something is."""

    def delete(self, uri: str) -> None:
        """Remove one object of our own; nothing happens where there is none."""

    def upload(self, uri: str, path: str) -> None:
        """Publish the local file `path` at `uri`, whole or not at all."""

    def clean(self, root: str) -> None:
        """Remove what killed writers left below `root` more than `ABANDONED_S` ago.

        Raises:
            StorageError: Storage failed, or does not let us see what is left.
        """


def read_whole(storage: Storage, uri: str) -> bytes:
    """`Storage.read` by way of `fetch`: of our own objects, nothing is an item's fault."""
    try:
        return storage.fetch(uri).data
    except ItemError as error:
        if error.code == "not_found":
            raise FileNotFoundError(uri) from None
        raise StorageError(f"{uri}: {error.message}") from None
