"""Credentials and storage: one object of each input read, one object written to the output."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress

from pipeline.doctor.finding import Finding, Result, first_line
from pipeline.doctor.options import Options

# More of a clock's difference is worth a word, and S3 refuses requests that are 15 minutes off.
SKEW_S = 2.0
WRONG_SKEW_S = 300.0
_MOST_BYTES = 64 * 2**20
_DATA = b"patchflow doctor\n"


def output(options: Options) -> Iterator[Finding]:
    """Creates, reads, lists and deletes one small object, and compares clocks by it."""
    from pipeline.errors import PatchflowError  # noqa: PLC0415
    from pipeline.location import join  # noqa: PLC0415
    from pipeline.storage import output_root, storage_for  # noqa: PLC0415

    assert options.output is not None
    doing = "reach"
    try:
        root = output_root(options.output)
        storage, folder = storage_for(root), join(root, "_patchflow")
        uri = join(folder, f"doctor-{uuid.uuid4().hex}")
        doing, start = "write", time.monotonic()
        created, now_s = storage.create(uri, _DATA), time.time()
        try:
            doing = "read"
            read = storage.fetch(uri).data
            doing = "list"
            listed = any(info.uri == uri for info in storage.list(folder))
            clock = _clock(uri, now_s)
            doing = "delete"
        finally:
            storage.delete(uri)
        left = storage.stat(uri) is not None
    except (PatchflowError, OSError) as error:
        advice = "check credentials, permissions and the location"
        figure = f"cannot {doing}: {first_line(error)}"
        yield Finding(step="output", result="broken", figure=figure, advice=advice)
        return
    faults = [
        text
        for fault, text in (
            (not created, "an object that was not there could not be created"),
            (read != _DATA, "other bytes are read than were written"),
            (not listed, "a new object is not listed"),
            (left, "a deleted object is still there"),
        )
        if fault
    ]
    taken_ms = 1000 * (time.monotonic() - start)
    yield Finding(
        step="output",
        result="broken" if faults else "ok",
        figure="; ".join(faults) or f"written, read, listed and deleted in {taken_ms:.0f} ms",
        advice="use storage that is consistent after each request" if faults else "",
    )
    if clock is not None:
        yield judge_skew(clock, "the output's storage")


def inputs(options: Options) -> Iterator[Finding]:
    """Reads one object of each input."""
    for location in options.inputs:
        yield _read_one(location)


def judge_skew(skew_s: float, other: str) -> Finding:
    """Judges by how many seconds this machine's clock is ahead of another one."""
    off = abs(skew_s)
    result: Result = "broken" if off > WRONG_SKEW_S else "warning" if off > SKEW_S else "ok"
    way = "ahead of" if skew_s > 0 else "behind"
    figure = f"{off:.1f} s {way} {other}" if off > SKEW_S else f"as {other}, to {SKEW_S:g} s"
    advice = "set the clock by NTP: stores refuse requests 15 minutes off" if off > SKEW_S else ""
    values = {"skew_s": round(skew_s, 3)}
    return Finding(step="clock", result=result, figure=figure, advice=advice, values=values)


def _clock(uri: str, now_s: float) -> float | None:
    """Seconds that this machine is ahead of the storage that has just written an object.

    None where storage does not say when that was. S3 says so to a second.
    """
    from fsspec.core import url_to_fs  # noqa: PLC0415

    from pipeline.location import local_path  # noqa: PLC0415

    if not uri.startswith("s3://"):
        return now_s - os.stat(local_path(uri)).st_mtime  # noqa: PTH116 (a path may be no UTF-8)
    with suppress(Exception):  # Every file system of fsspec's has exceptions of its own.
        fs, path = url_to_fs(uri)
        return now_s - float(fs.info(path)["LastModified"].timestamp())
    return None


def _read_one(location: str) -> Finding:
    from pipeline.errors import ItemError, PatchflowError  # noqa: PLC0415
    from pipeline.storage import storage_for  # noqa: PLC0415

    storage, name = storage_for(location), f"{location}: "
    # A glob's fixed folder.
    fixed = (
        location[: found.start()].rpartition("/")[0] if (found := _GLOB.search(location)) else ""
    )
    try:
        info = (None if fixed else storage.stat(location)) or next(
            iter(storage.list(fixed or location)), None
        )
        if info is None:
            advice = "is it the right folder or prefix?"
            return Finding(step="input", result="broken", figure=f"{name}empty", advice=advice)
        if info.size_bytes > _MOST_BYTES:
            with storage.open(info.uri) as file:
                size = len(file.read(2**20))
        else:
            size = len(storage.fetch(info.uri).data)
    except (PatchflowError, ItemError, OSError) as error:
        figure = f"{name}{first_line(error)}"
        advice = "check credentials, permissions and the location"
        return Finding(step="input", result="broken", figure=figure, advice=advice)
    return Finding(step="input", result="ok", figure=f"{name}read {size:,} bytes of one object")


_GLOB = re.compile(r"[*?\[]")
