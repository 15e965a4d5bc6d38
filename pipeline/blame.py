"""Whose fault it is that an item cannot be read (invariant 7): its own, or storage's.

Storage that is down, that refuses expired credentials or that has lost one object may answer the
same each time: 500, 403, EIO. What tells them apart is whether anything else there can be read
at that moment. An item is blamed if it fails twice, and each time another one does not.
"""

from __future__ import annotations

from pipeline.errors import ItemError, RefusedError, StorageError
from pipeline.objects import Fetched, Storage
from pipeline.reach import Reach

_TRIES = 2


def fetch_item(
    storage: Storage,
    uri: str,
    *,
    version: str | None,
    max_bytes: int | None,
    reach: Reach | None = None,
) -> Fetched:
    """`Storage.fetch`, which may fail for this item alone, for whatever reason.

    Raises:
        ItemError: True of this item alone: also `access_denied` or `read_failed` where others
            can be read.
        StorageError: Nothing else can be read there; the run must stop.
    """
    for _ in range(_TRIES):
        try:
            return storage.fetch(uri, version=version, max_bytes=max_bytes, reach=reach)
        except StorageError as error:
            if not storage.answers(uri):
                raise
            failure = error
    refused = isinstance(failure, RefusedError)
    raise ItemError("access_denied" if refused else "read_failed", str(failure)) from failure
