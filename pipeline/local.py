"""Storage on a disk: a temporary file, fsync, rename."""

from __future__ import annotations

import ctypes
import errno
import itertools
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ItemError, RefusedError, StorageError
from pipeline.location import local_path, local_uri
from pipeline.objects import ABANDONED_S, Fetched, ObjectInfo, read_whole
from pipeline.open_file import open_file
from pipeline.reach import Links, Reach, real_path
from pipeline.walk import walk

# Errors that are true of one name alone; any other says something of the disk.
_NAME_ERRORS = {errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL}

# What `link` says where there are no hard links.
_NO_HARD_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
# From <fcntl.h> and <linux/fs.h>.
_AT_FDCWD, _RENAME_NOREPLACE = -100, 1

# A writer that was killed leaves its temporary file; the name keeps it out of every listing.
_PARTIAL = ".partial-"
_LEFT_BEHIND = re.compile(re.escape(_PARTIAL) + "[0-9a-f]{32}")

# How many files of a folder stand for all in `answers`.
_OTHERS = 4


class LocalStorage:
    """The local file system, and whatever is mounted on it."""

    def __init__(self) -> None:
        # The file that was last read well, by the mount that it is on.
        self._read: dict[str, str] = {}
        # The folder and the device of that file, and their mount: finding it takes 40 system calls,
        # over which threads that fetch would fight for the interpreter.
        self._place: tuple[tuple[str, int], str] | None = None

    def check_root(self, root: str) -> None:
        """The nearest thing that exists on the way to `root` must be a folder."""
        path = Path(local_path(root))
        with _disk(root):
            nearest = next(p for p in (path, *path.parents) if p.exists())
            if not nearest.is_dir():
                raise FileNotFoundError(f"{nearest} is a file, not a folder")

    def list(self, prefix: str, links: Links | None = None) -> Iterator[ObjectInfo]:
        """Every file below `prefix`, as `walk` finds them."""
        root = local_path(prefix)
        with _disk(prefix):
            if not Path(root).is_dir():
                raise FileNotFoundError(prefix)
        yield from _listed(root, links)

    def stat(self, uri: str) -> ObjectInfo | None:
        """The regular file at `uri`, or None."""
        path = Path(local_path(uri))
        with _disk(uri):
            try:
                return _info(str(path), path.stat()) if path.is_file() else None
            except (FileNotFoundError, NotADirectoryError):
                return None

    def fetch(
        self,
        uri: str,
        *,
        version: str | None = None,
        max_bytes: int | None = None,
        reach: Reach | None = None,
    ) -> Fetched:
        """The whole file; its version is checked before and after, as writers take no lock."""
        try:
            with open_file(local_path(uri), reach) as file:
                status = os.fstat(file.fileno())
                size, before = status.st_size, _version(status)
                if version is not None and before != version:
                    raise _changed(version, before)
                if max_bytes is not None and size > max_bytes:
                    raise ItemError("too_large", f"{size} bytes, the limit is {max_bytes}")
                # A file that grows meanwhile has another version; the kernel's own, which may go on
                # for ever, have no size.
                data = file.read(size)
                after = _version(os.fstat(file.fileno()))
        except (FileNotFoundError, NotADirectoryError):
            self._check_mounts(uri)
            raise ItemError("not_found", "the file is gone") from None
        except ValueError:
            raise ItemError("not_found", "no file can have this name") from None
        except PermissionError:
            raise RefusedError(f"{uri}: the file may not be read") from None
        except OSError as error:
            if error.errno not in _NAME_ERRORS:
                raise StorageError(f"{uri}: {error.strerror}") from error
            raise ItemError("not_found", f"no file can be read there: {error.strerror}") from None
        if after != before:
            raise _changed(before, after)
        if data:
            self._read[self._mount(uri, status.st_dev)] = uri
        return Fetched(data=data, version=after)

    def _mount(self, uri: str, device: int) -> str:
        # Such a one may lead to another mount of the device. Path's own raises what the disk does.
        if os.path.islink(local_path(uri)):  # noqa: PTH114
            return _mount(uri)
        known, place = self._place, (uri.rpartition("/")[0], device)
        if known is None or known[0] != place:
            known = self._place = place, _mount(uri)
        return known[1]

    def _check_mounts(self, uri: str) -> None:
        """Raises StorageError if `uri` is below a mount that was read from and is gone, or broken.

        The folder that a mount leaves behind would be taken for all that ever was.
        """
        path = Path(real_path(local_path(uri)))
        for mount in tuple(self._read):
            if path.is_relative_to(mount) and not _is_mount(mount):
                raise StorageError(
                    f"{mount} is no longer mounted; mount it and run the same command again"
                )

    def answers(self, beside: str) -> bool:
        """A byte of the file that was read last on that mount, or of some in the folder."""
        try:
            self._check_mounts(beside)
            last = self._read.get(_mount(beside), beside)
            listed = (info.uri for info in _listed(str(Path(local_path(beside)).parent)))
            others = itertools.chain([last], itertools.islice(listed, _OTHERS + 1))
            return any(_is_readable(other) for other in others if other != beside)
        except (OSError, StorageError):
            return False

    def read(self, uri: str) -> bytes:
        """The bytes of the whole file."""
        return read_whole(self, uri)

    def open(self, uri: str) -> BinaryIO:
        """The file, open for reading."""
        with _disk(uri):
            return open_file(local_path(uri))

    def write(self, uri: str, data: bytes) -> None:
        """Temporary file beside it, fsync, rename, fsync of the folder."""
        self._publish(uri, lambda file: file.write(data), exclusive=False)

    def create(self, uri: str, data: bytes) -> bool:
        """The same with a hard link, which fails where the name exists."""
        try:
            self._publish(uri, lambda file: file.write(data), exclusive=True)
        except FileExistsError:
            return False
        return True

    def delete(self, uri: str) -> None:
        """Unlinks the file."""
        with _disk(uri):
            Path(local_path(uri)).unlink(missing_ok=True)

    def upload(self, uri: str, path: str) -> None:
        """Copied beside `uri` first, as a rename cannot cross file systems."""
        with Path(path).open("rb") as source:
            self._publish(uri, lambda file: shutil.copyfileobj(source, file), exclusive=False)

    def clean(self, root: str) -> None:
        """Unlinks temporary files, which no listing shows."""
        oldest = time.time() - ABANDONED_S
        with _disk(root):
            for folder, _, names in os.walk(local_path(root)):
                for path in (Path(folder, n) for n in names if _LEFT_BEHIND.fullmatch(n)):
                    # Another run cleans, or this one was not left behind at all.
                    with suppress(FileNotFoundError):
                        if path.stat().st_mtime < oldest:
                            path.unlink()

    def _publish(self, uri: str, fill: Callable[[BinaryIO], object], *, exclusive: bool) -> None:
        target = Path(local_path(uri))
        with _disk(uri):
            _make_folder(target.parent)
            temporary = target.with_name(_PARTIAL + uuid.uuid4().hex)
            try:
                with temporary.open("xb") as file:
                    fill(file)
                    file.flush()
                    os.fsync(file.fileno())
                if exclusive:
                    _link(temporary, target)
                else:
                    temporary.replace(target)
            except FileNotFoundError:
                # By a clean-up whose clock is days ahead, or by hand.
                raise StorageError(f"{uri} was removed while it was written") from None
            finally:
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)


def _listed(folder: str, links: Links | None = None) -> Iterator[ObjectInfo]:
    try:
        for path, status in walk(folder, links):
            yield _info(path, status)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error


def _mount(uri: str) -> str:
    path = Path(real_path(local_path(uri)))
    return str(next(folder for folder in (path, *path.parents) if _is_mount(folder)))


def _is_mount(folder: str | Path) -> bool:
    try:
        return os.path.ismount(folder)
    except OSError:
        return False  # It was replaced under our eyes, which nobody does to a mount.


def _is_readable(uri: str) -> bool:
    with suppress(OSError), open_file(local_path(uri)) as file:
        # From the disk itself: what the kernel remembers says nothing of it.
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return len(file.read(1)) == 1
    return False


def _info(path: str, status: os.stat_result) -> ObjectInfo:
    return ObjectInfo(uri=local_uri(path), size_bytes=status.st_size, version=_version(status))


def _version(status: os.stat_result) -> str:
    return f"{status.st_size}-{status.st_mtime_ns}"


def _changed(expected: str, found: str) -> ItemError:
    return ItemError("version_changed", f"planned as version {expected}, found {found}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        # Told apart from "the object exists", which `create` reports.
        raise StorageError(f"{folder} is a file, not a folder") from None
    except FileNotFoundError:
        raise StorageError(f"{folder} cannot be made there") from None


def _link(temporary: Path, target: Path) -> None:
    """Names a file `target`, unless that exists: by a hard link, else by an exclusive rename.

    Raises:
        FileExistsError: `target` exists.
        OSError: It cannot be named, or the file system knows neither way.
    """
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        _rename_exclusively(temporary, target)


def _rename_exclusively(source: Path, target: Path) -> None:
    # Python has no name for it: FAT, exFAT and CIFS can, although they have no hard links.
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if libc.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_NOREPLACE) == 0:
        return
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS):
        raise OSError(
            number,
            "this file system has neither hard links nor exclusive renames, which commits need",
        )
    raise OSError(number, os.strerror(number))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk(uri: str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, FileExistsError):
        raise
    except OSError as error:
        raise StorageError(f"{uri}: {error.strerror}") from error
