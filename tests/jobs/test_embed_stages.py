"""What `embed` tells of its stages, while it runs and at its end."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest

ITEMS = 2000
STAGE = r"(\d+)% busy, ([\d,.]+) items/s"


@pytest.fixture(scope="module")
def done(commands, collection, tmp_path_factory) -> Any:
    """A run that goes on for a while once it has started."""
    folder: Path = tmp_path_factory.mktemp("many")
    (folder / "media").mkdir()
    (folder / "0.jpg").write_bytes(collection.cut(".jpg"))
    for number in range(ITEMS):
        os.link(folder / "0.jpg", folder / "media" / f"{number}.jpg")
    options = ("--shard-rows", 100, "--max-pixels", 50176)
    done = commands.run("embed", folder / "media", "--output", folder / "output", *options)
    assert done.code == 0, str(done)
    return done


@pytest.mark.whole
def test_the_log_tells_how_busy_the_stages_are(done) -> None:
    rates = r"[\d.]+ items/s  [\d,]+ tokens/s  0 errors  0:\d\d left"
    stages = r"preprocess \d+% busy, encode \d+%, queue \d+, fill \d+%"
    line = re.compile(rf"[\d,]+ of 2,000 items  {rates}  {stages}")
    assert [found for found in done.err.splitlines() if line.fullmatch(found)], str(done)


@pytest.mark.whole
def test_the_summary_has_a_line_a_stage_and_names_the_limit(done) -> None:
    said = dict(re.findall(r"^ *(\S.*?)  (.*)$", done.out, re.MULTILINE))
    parts = ": fetch (\\d+)%, decode (\\d+)%, resize (\\d+)%"
    preprocess = re.fullmatch(STAGE + parts, said["preprocess"])
    encode = re.fullmatch(STAGE + r", queue (\d+), fill (\d+)%", said["encode"])
    commit = re.fullmatch(STAGE + r", queue (\d+)", said["commit"])
    assert preprocess and encode and commit, done.out
    busy, fetch, decode, resize = (int(preprocess[number]) for number in (1, 3, 4, 5))
    assert abs(busy - fetch - decode - resize) <= 2
    assert min(busy, int(encode[1])) > 10 and max(busy, int(encode[1])) > 50
    assert 50 < int(encode[4]) <= 100
    # What commits do is told by the driver.
    assert float(commit[2]) > 0
    shares = rf"preprocess {busy}% busy, encode {encode[1]}%, commit {commit[1]}%"
    assert shares in said["limited by"] or "too few to tell" in said["limited by"]
