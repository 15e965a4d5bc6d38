"""What an output should hold, and what it holds, read with nothing of ours."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.support.commands import Commands, Done
from tests.support.photos import Collection

MAX_PIXELS = 50176

Row = dict[str, Any]


@pytest.fixture(scope="session")
def alone() -> Callable[[Path], Row]:
    """A photo or clip by itself in plain Python, as its row of `embeddings/` in generation 0."""
    from tests.support.plain import PlainPython

    plain = PlainPython(max_pixels=MAX_PIXELS)
    known: dict[tuple[Path, int], Row] = {}

    def embed(path: Path) -> Row:
        key = (path, path.stat().st_mtime_ns)
        if key not in known:
            row = plain(path).embedding
            kind = "image" if row["num_frames"] is None else "video"
            known[key] = row | {"media_type": kind}
        return dict(known[key])

    return embed


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Output:
    """An output on a disk, read object by object with nothing of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, table: str = "embeddings") -> list[Row]:
        """Every row of every object of a table, by URI, as often as it is there."""
        paths = sorted((self.folder / table).rglob("*.parquet"))
        found = [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]
        return sorted(found, key=lambda row: row["uri"])

    def terminal(self) -> list[str]:
        """The URI of every terminal row, in `embeddings/` or in `errors/`."""
        return sorted(row["uri"] for t in ("embeddings", "errors") for row in self.rows(t))

    def commits(self) -> set[str]:
        """The ids of the shards that have a marker."""
        folder = self.folder / "_patchflow" / "commits"
        return {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()

    def objects(self, shards: Iterable[str] | None = None) -> dict[str, tuple[int, int, str]]:
        """Inode, mtime and content of every object, or of those of some shards, by name."""
        names = None if shards is None else set(shards)
        return {
            str(path.relative_to(self.folder)): (
                path.stat().st_ino,
                path.stat().st_mtime_ns,
                _digest(path.read_bytes()),
            )
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and (names is None or path.stem in names)
        }


@pytest.fixture(scope="session")
def output_at() -> Callable[[Path], Output]:
    return Output


@pytest.fixture(scope="session")
def assert_rows() -> Callable[..., None]:
    """Compares whole rows: vectors within float rounding, everything else exactly."""

    def check(found: list[Row], expected: Iterable[Row], *, but: tuple[str, ...] = ()) -> None:
        wanted = sorted(expected, key=lambda row: row["uri"])
        apart = {"embedding", *but}
        assert [_without(row, apart) for row in found] == [_without(r, apart) for r in wanted]
        vectors, ours = ([row["embedding"] for row in rows] for rows in (found, wanted))
        np.testing.assert_allclose(vectors, ours, rtol=1e-4, atol=1e-5)

    return check


def _without(row: Row, names: set[str]) -> Row:
    return {name: value for name, value in row.items() if name not in names}


@dataclass(frozen=True, repr=False)
class Run:
    """A run that has ended, and what its output held right after it."""

    args: tuple[object, ...]
    done: Done
    output: Output
    rows: list[Row]
    errors: list[Row]
    objects: dict[str, tuple[int, int, str]]

    def __repr__(self) -> str:
        return repr(self.done)


@pytest.fixture(scope="session")
def run_embed(commands: Commands) -> Callable[..., Run]:
    """Runs `embed ARGS --output OUTPUT` to its end and reads what came of it."""

    def run(output: Path, *args: object, env: dict[str, str] | None = None) -> Run:
        done = commands.run("embed", *args, "--output", output, env=env)
        found = Output(output)
        return Run(args, done, found, found.rows(), found.rows("errors"), found.objects())

    return run


@pytest.fixture(scope="session")
def clean_run(
    collection: Collection,
    run_embed: Callable[..., Run],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """The whole collection embedded without any disturbance, on a local Ray."""
    run = run_embed(
        tmp_path_factory.mktemp("clean") / "output",
        *(collection.folder, collection.growing),
        *("--shard-rows", 16, "--max-pixels", MAX_PIXELS),
    )
    assert run.done.code == 0, str(run.done)
    return run
