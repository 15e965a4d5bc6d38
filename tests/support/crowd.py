"""A collection that takes a while: small photos and bad files in twelve folders, large ones too."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

Row = dict[str, Any]

FOLDERS = 12
SHARD_ROWS = 6
SHARDS = 35


@dataclass(frozen=True)
class Crowd:
    """The collection, how to embed it, and what should come of it."""

    originals: dict[str, Path]
    """Every item's URI, and the file that it is a copy of."""
    options: tuple[object, ...]
    embeddings: list[Row]
    errors: list[Row]

    @property
    def folder(self) -> str:
        return os.path.commonpath(self.originals)

    @property
    def args(self) -> tuple[object, ...]:
        return (self.folder, *self.options)


@pytest.fixture(scope="session")
def crowd(collection, clean_run, alone, tmp_path_factory) -> Crowd:
    """The whole collection, with camera-sized photos in each folder, so that runs last."""
    root = tmp_path_factory.mktemp("crowd")
    large = camera_photos(tmp_path_factory.mktemp("large"))
    small = [*collection.good, *(collection.folder / name for name in collection.bad)]
    originals = {}
    for number in range(FOLDERS):
        for original in (*large, *small[number::FOLDERS]):
            copy = root / "photos" / f"{number:02d}" / original.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(original, copy)  # Of the same mtime, and so of the same version.
            originals[str(copy)] = original
    assert -(-len(originals) // SHARD_ROWS) == SHARDS
    errors = {row["uri"]: row for row in clean_run.errors}
    pairs = sorted(originals.items())
    return Crowd(
        originals=originals,
        options=("--shard-rows", SHARD_ROWS, *clean_run.args[-2:]),
        embeddings=[moved(alone(p), uri) for uri, p in pairs if str(p) not in errors],
        errors=[moved(errors[str(p)], uri) for uri, p in pairs if str(p) in errors],
    )


def moved(row: Row, uri: str, **others: object) -> Row:
    """The row that the same file has at another place."""
    name = hashlib.blake2b(uri.encode(), digest_size=16).hexdigest()
    return row | {"uri": uri, "item_id": name} | others


def camera_photos(folder: Path) -> list[Path]:
    """Six photos of 12 megapixels: enough work for a run to be caught in the middle of it."""
    sides = {"retina.jpg": (3464, 3464), "hubble_deep_field.jpg": (3709, 3234)}
    paths = []
    for name, size in sides.items():
        with Image.open(Path(data.data_dir) / name) as photo:
            large = photo.resize(size, Image.Resampling.BILINEAR)
        for quarter in range(3):
            paths.append(folder / f"{quarter} {name}")
            large.rotate(90 * quarter).save(paths[-1], quality=80)
    return paths
