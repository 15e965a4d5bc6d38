"""What a run refuses before it starts anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config import EmbedConfig
from pipeline.embed import embed
from pipeline.errors import UsageError


@pytest.mark.parametrize("planned", [False, True])
def test_shards_too_large_for_an_object_are_refused_with_the_most_that_fits(
    planned: bool, tmp_path: Path, write_manifest: Callable[..., str], freeze, files
) -> None:
    location, output = write_manifest({"uri": ["/a.jpg"]}), tmp_path / "output"
    if planned:
        freeze(str(output), location, shard_rows=2**20)
    before = files(tmp_path)
    config = EmbedConfig(
        inputs=(location,),
        root=("/",),
        output=str(output),
        encoder="large",
        shard_rows=None if planned else 2**20,
    )
    # 2 GiB of 4,096 float32 values each.
    with pytest.raises(
        UsageError, match=r"1048576: vectors of up to 16384 bytes an item allow 131072 rows"
    ):
        embed(config, on_plan=lambda report: None)
    assert files(tmp_path) == before
