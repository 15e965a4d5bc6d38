"""Every picture and clip that strangers made to harm, in one run: each costs itself only.

What each does to a decoder is in `test_bombs` and `test_liars`; here they stand between good files.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.verify import verify
from tests.support.clips import PATTERN, X264, ClipMaker
from tests.support.crowd import moved

pytestmark = pytest.mark.whole
EVERY = 5
"""Good files are one in so many."""


@dataclass(frozen=True)
class Mixed:
    """A folder of good and hostile files, and a manifest of all."""

    manifest: Path
    good: dict[str, Path]
    """Every good item's URI, and the file that it is."""
    hostile: dict[str, str | None]
    """Every hostile item's URI, and its error's code: None for those that do no harm."""


@pytest.fixture(scope="module")
def mixed(collection, clips: ClipMaker, picture_bombs, liars, tmp_path_factory) -> Mixed:
    folder = tmp_path_factory.mktemp("strangers")
    cases = [*picture_bombs.items(), *liars.items()]
    originals = [*collection.good[:20], clips.make("good.mp4", *PATTERN, *X264)]
    good = islice(cycle(originals), len(cases) // EVERY)
    found = Mixed(folder / "items.parquet", {}, {})
    for number, (name, (data, code)) in enumerate(cases):
        path = folder / f"{number:04d} {name}"
        path.write_bytes(data)
        found.hostile[str(path)] = code
        if number % EVERY == 0 and (original := next(good, None)):
            beside = folder / f"{number:04d} good{original.suffix}"
            beside.hardlink_to(original)
            found.good[str(beside)] = original
    uris = sorted([*found.hostile, *found.good])
    # A clip that is called a picture would be refused for that.
    kinds = ["video" if is_clip(uri, [*liars]) else "image" for uri in uris]
    pq.write_table(pa.table({"uri": uris, "media_type": kinds}), found.manifest)
    return found


def is_clip(uri: str, names: list[str]) -> bool:
    return uri.endswith(".mp4") or Path(uri).name[5:] in names


@pytest.fixture(scope="module")
def ran(mixed, commands, output_at, tmp_path_factory) -> Any:
    output = output_at(tmp_path_factory.mktemp("hostile files") / "output")
    options = ("--output", output.folder, "--max-pixels", 50176, "--shard-rows", 64)
    done = commands.run("embed", mixed.manifest, *options)
    assert done.code == 0, str(done)
    return output


def test_every_file_has_one_terminal_row_with_its_code(mixed, ran, score) -> None:
    assert len(mixed.hostile) > 300
    score.rows([*mixed.good, *mixed.hostile], ran.terminal())
    score.objects(verify(str(ran.folder)).breaches)
    codes = {row["uri"]: row["error_code"] for row in ran.rows("errors")}
    # What does no harm may still be of a shape that the model does not take.
    odd = {uri for uri, code in codes.items() if code == "aspect_ratio"}
    assert all(mixed.hostile[uri] is None for uri in odd)
    expected = {uri: code for uri, code in mixed.hostile.items() if code is not None}
    assert {uri: code for uri, code in codes.items() if uri not in odd} == expected


def test_their_neighbours_are_embedded_as_if_alone(mixed, ran, alone, assert_rows) -> None:
    rows = [row for row in ran.rows() if row["uri"] in mixed.good]
    expected = [moved(alone(original), uri) for uri, original in mixed.good.items()]
    assert_rows(rows, expected)
