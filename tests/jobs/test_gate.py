"""A run with many more shards than may be under way at once, on as little as one CPU."""

from __future__ import annotations

import secrets
import sys

import pytest
from PIL import Image

WINDOW = 3
SHARD_ROWS = 3
SHARDS = 5 * WINDOW

# The command itself, with the smallest window: only so are few photos enough.
NARROW = f"""
import sys
from jobs import embed
import pipeline.drive, pipeline.build
pipeline.build.window = lambda *sizes, **calls: {WINDOW}
embed.main(sys.argv[1:])
"""


@pytest.mark.parametrize("cpus", [1, pytest.param(2, marks=pytest.mark.whole)])
def test_a_run_of_many_more_shards_than_its_window_comes_to_its_end(
    cpus: int, commands, output_at, tmp_path
) -> None:
    media = tmp_path / "media"
    media.mkdir()
    for number in range(SHARD_ROWS * SHARDS):
        Image.new("RGB", (56 + number, 56), (number, 2 * number, 90)).save(media / f"{number}.png")
    # Patching imports Ray before the command can give it a token: so it has one here.
    ray = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    ray["RAY_OVERRIDE_RESOURCES"] = f'{{"CPU": {cpus}}}'
    command = commands.start(
        *(sys.executable, "-c", NARROW, media, "--output", tmp_path / "output"),
        *("--shard-rows", SHARD_ROWS, "--preprocess-actors", 1, "--encoder-actors", 1),
        env=ray,
    )
    done = command.ended()
    assert done.code == 0, str(done)
    assert len(output_at(tmp_path / "output").commits()) == SHARDS
