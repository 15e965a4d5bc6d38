"""Blocks in any order become shards in the manifest's, on a real Ray."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline import schema
from pipeline.manifest import read_shard, shards_of

SCRIPT = Path(__file__).with_name("assembling.py")
SHARDS = ["g000000-00000000", "g000000-00000001"]
Planned = Callable[[str], tuple[Any, list[pa.Table]]]


@pytest.fixture
def planned(
    tmp_path: Path, write_manifest: Any, freeze: Any, commit_config: Any, encoded_block: Any
) -> Planned:
    """An output of seven items in two shards, and its blocks of two rows at most, out of order."""

    def plan(name: str) -> tuple[Any, list[pa.Table]]:
        output = str(tmp_path / name)
        uris = [f"/media/{n}.jpg" for n in range(7)]
        _, generation = freeze(output, write_manifest({"uri": uris}, name), shard_rows=4)
        blocks = []
        for shard in shards_of(generation, without=set()):
            rows = read_shard(output, shard)
            places = pa.array(range(rows.num_rows), schema.PLACE.type)
            whole = encoded_block(rows).append_column(schema.PLACE, places)
            blocks += [whole.slice(start, 2) for start in range(0, rows.num_rows, 2)]
        return commit_config(output, generation), [blocks[n] for n in (3, 1, 2, 0)]

    return plan


def test_shards_are_put_together_and_what_goes_wrong_is_told(
    planned: Planned, commands: Any, tmp_path: Path
) -> None:
    streams = tmp_path / "streams"
    streams.mkdir()

    def write(name: str, blocks: slice = slice(None), lost: int = 0) -> None:
        config, found = planned(name)
        (streams / name).write_bytes(pickle.dumps((config, found[blocks], lost)))

    write("whole")
    write("one block missing", slice(3))
    write("one block lost", lost=1)
    write("no room")
    (tmp_path / "no room" / "errors").write_text("in the way")
    done = commands.start(
        sys.executable, SCRIPT, streams, env={"PYTHONPATH": str(SCRIPT.parents[2])}
    ).ended()
    assert done.code == 0, str(done)
    told: dict[str, Any] = {}
    for line in done.out.splitlines():
        told |= json.loads(line)
    assert told["whole"] == {"shards": SHARDS, "error": None}
    for number, shard in enumerate(SHARDS):
        found = pq.read_table(tmp_path / "whole" / "embeddings" / f"{shard}.parquet")
        rows = range(4 * number, min(4 * number + 4, 7))
        assert found["uri"].to_pylist() == [f"/media/{n}.jpg" for n in rows]
        assert schema.PLACE.name not in found.column_names
    assert told["one block missing"]["shards"] == SHARDS[1:]
    assert told["one block missing"]["error"][0] == "LostError"
    assert told["one block lost"]["error"][0] == "LostError"
    assert "StorageError" in told["no room"]["error"]
