"""Where bytes live: a disk or S3, chosen by the location.

Every write is whole or not at all (invariant 3), every failure is an exception of
`pipeline.errors`, and credentials come from the environment that s3fs reads.
"""

from __future__ import annotations

from functools import lru_cache

from pipeline.errors import UsageError
from pipeline.location import canonical
from pipeline.objects import Storage


@lru_cache(maxsize=8)
def _storage(scheme: str) -> Storage:
    # s3fs and its HTTP client take most of a second to import: only where they are needed.
    if scheme == "s3":
        from pipeline.s3 import S3Storage  # noqa: PLC0415

        return S3Storage()
    from pipeline.local import LocalStorage  # noqa: PLC0415

    return LocalStorage()


def storage_for(uri: str) -> Storage:
    """The storage that holds a canonical `uri`."""
    return _storage("s3" if uri.startswith("s3://") else "file")


def output_root(location: str) -> str:
    """The canonical location of an output.

    Raises:
        UsageError: No output can be there.
        StorageError: Storage failed.
    """
    root = canonical(location)
    try:
        storage_for(root).check_root(root)
    except FileNotFoundError as error:
        raise UsageError(f"--output {location}: {error}") from None
    return root
