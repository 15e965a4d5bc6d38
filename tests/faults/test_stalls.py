"""One item that takes as long as all others together: they do not wait for it."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.verify import verify
from tests.faults.proxy import Asked, Fault, FaultyS3
from tests.support.commands import PATIENCE_S, Command

HERE = Path(__file__).parent
SHARD_ROWS = 6
SHARDS = 16
SLOW = "stalls/slow.mp4"
# Its own shard, and those of the blocks that its actor had taken when it began.
BEHIND = 3


@pytest.mark.whole
def test_all_but_what_waits_behind_it_is_committed_while_one_item_takes_its_time(
    s3, collection, commands, output_at, score, tmp_path
) -> None:
    """It is a clip, and so a block of its own, whose bytes do not come before all others are done.

    Blocks in order would keep every shard back, and the run would give the clip up in the end.
    """
    s3.put({SLOW: b"no clip"})
    roots = ("--root", "s3://media", "--root", collection.folder)
    uris = [f"s3://media/{SLOW}", *map(str, collection.good[: SHARD_ROWS * SHARDS - 1])]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "items.parquet")
    output = output_at(tmp_path / "output")
    at_its_end: list[set[str]] = []

    def rule(asked: Asked) -> Fault | None:
        commits = output.commits()
        if len(commits) < SHARDS - BEHIND:
            return Fault("stall", seconds=2.0)
        at_its_end.append(commits)
        return None

    with FaultyS3(s3.env["AWS_ENDPOINT_URL"]) as proxy:
        proxy.rule = rule
        done = commands.run(
            "embed",
            *(tmp_path / "items.parquet", "--output", output.folder, "--shard-rows", SHARD_ROWS),
            *("--preprocess-actors", 2, "--encoder-actors", 1, "--max-pixels", 50176, *roots),
            env=s3.env | {"AWS_ENDPOINT_URL": proxy.endpoint},
        )
    assert done.code == 0, str(done)
    assert proxy.faults()["stall"] > 0
    assert "g000000-00000000" not in at_its_end[0]
    assert [row["uri"] for row in output.rows("errors")] == uris[:1]
    score.rows(uris, output.terminal())
    score.objects(verify(str(output.folder)).breaches)


@pytest.mark.whole
def test_all_but_what_waits_behind_it_is_committed_while_a_decoder_hangs(
    collection, commands, output_at, score, tmp_path
) -> None:
    """The other actor takes the rest. The next run has less patience, and ends the decoder."""
    hang, notes = tmp_path / "hang.mp4", tmp_path / "notes"
    hang.write_bytes(b"HOSTILE loop")
    notes.mkdir()
    uris = [str(hang), *map(str, collection.good[: SHARD_ROWS * SHARDS - 1])]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "items.parquet")
    output = output_at(tmp_path / "output")
    args = ("--output", output.folder, "--shard-rows", SHARD_ROWS, "--max-pixels", 50176)

    def start(timeout_s: float) -> Command:
        return commands.start(
            *(sys.executable, HERE / "faulty_decoder.py", notes, tmp_path / "items.parquet"),
            *(*args, "--preprocess-actors", 2, "--encoder-actors", 1),
            *("--decode-timeout-s", timeout_s, "--root", collection.folder),
            env={"PYTHONPATH": str(HERE.parents[1])},
        )

    patient = start(10 * PATIENCE_S)
    patient.wait_until("most are committed", lambda: len(output.commits()) >= SHARDS - BEHIND)
    assert "g000000-00000000" not in output.commits()
    stopped = patient.interrupt(signal.SIGTERM)
    assert (stopped.code, stopped.left_behind) == (1, []), str(stopped)
    done = start(5.0).ended()
    assert done.code == 0, str(done)
    (error,) = output.rows("errors")
    assert (error["uri"], error["error_code"], error["attempts"]) == (uris[0], "decode_timeout", 1)
    score.rows(uris, output.terminal())
    score.objects(verify(str(output.folder)).breaches)
