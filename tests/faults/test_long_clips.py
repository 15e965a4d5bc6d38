"""Ten minutes of 1080p and 40 megapixels beside thumbnails: memory stays bounded, nobody waits."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image
from skimage import data

from pipeline.build import nest
from pipeline.cluster import _object_store_bytes
from pipeline.limits import Limits
from pipeline.preprocess import Preprocess
from pipeline.verify import verify
from tests.support.clips import X264, ClipMaker, real_clip
from tests.support.commands import Command, title_of
from tests.support.preprocessing import preprocess_config, whole

MIB = 2**20
GIVE_UP_S = 1200.0
# What a process has before it has an item: its imports, torch among them.
IMPORTS = 320 * MIB
SHARD_ROWS = 6
THUMBNAILS = 100
SHARDS = -(-(THUMBNAILS + 2) // SHARD_ROWS)
# The clip's own shard, and those of the blocks that its actor had taken when it began.
BEHIND = 4


class Peaks:
    """The most memory of its own that each kind of process had, in bytes: none that it shares."""

    def __init__(self) -> None:
        self.own: dict[str, int] = defaultdict(int)

    def look(self, processes: Iterable[psutil.Process]) -> None:
        for process in processes:
            with suppress(psutil.Error, OSError):
                rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
                sizes = {line.split()[0]: line.split()[1] for line in rollup.splitlines()[1:]}
                kind = _kind(title_of(process))
                self.own[kind] = max(self.own[kind], 1024 * int(sizes["Pss_Anon:"]))

    def __str__(self) -> str:
        return ", ".join(f"{kind} {size // MIB} MiB" for kind, size in sorted(self.own.items()))


def _kind(title: str) -> str:
    for kind in ("Preprocess", "Encode", "processors.sandbox", "jobs.embed"):
        if kind in title:
            return kind
    return "other"


@contextmanager
def watching(peaks: Peaks) -> Iterator[None]:
    """Looks at this process's children all the while."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            peaks.look(psutil.Process().children(recursive=True))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """A real clip over and over, with ten seconds between the frames that can be sought."""
    make = ClipMaker(tmp_path_factory.mktemp("long")).make
    source = ("-stream_loop", 1, "-i", real_clip("bigbuckbunny.mp4"), "-t", 10, "-an")
    scaled = ("-vf", "fps=30,scale=1920:1080", *X264[:4], "-b:v", "3M")
    groups = ("-g", 300, "-sc_threshold", 0)
    part = make("part.mp4", *source, *scaled, *groups)
    return make("long.mp4", "-stream_loop", 59, "-i", part, "-c", "copy")


@pytest.fixture(scope="module")
def folder(long_clip, collection, tmp_path_factory) -> Path:
    """The clip and the large photo come first."""
    folder = tmp_path_factory.mktemp("mixed")
    (folder / "0 long.mp4").hardlink_to(long_clip)
    with Image.open(Path(data.data_dir) / "retina.jpg") as photo:
        photo.resize((8000, 5000), Image.Resampling.BILINEAR).save(folder / "1 large.jpg")
    for number in range(THUMBNAILS):
        (folder / f"{number + 2:03d}.jpg").write_bytes(collection.cut(".jpg"))
    return folder


def watched(command: Command, peaks: Peaks, each: Any = lambda: None) -> None:
    deadline = time.monotonic() + GIVE_UP_S
    while command.process.poll() is None and time.monotonic() < deadline:
        peaks.look(command.family())
        each()
        time.sleep(0.2)


@pytest.mark.whole
def test_thumbnails_do_not_wait_for_a_long_clip_and_memory_is_bounded(
    folder, commands, output_at, score, tmp_path
) -> None:
    output = output_at(tmp_path / "output")
    peaks, before_the_clip = Peaks(), set()
    command = commands.job(
        "embed",
        *(folder, "--output", output.folder, "--shard-rows", SHARD_ROWS),
        *("--preprocess-actors", 2, "--encoder-actors", 1),
        *("--video-max-pixels", 4_000_000, "--max-pixels", 50176),
    )

    def look() -> None:
        commits = output.commits()
        if "g000000-00000000" not in commits:
            before_the_clip.update(commits)

    watched(command, peaks, look)
    done = command.ended()
    assert done.code == 0, str(done)
    assert len(before_the_clip) >= SHARDS - BEHIND, f"{sorted(before_the_clip)}\n{done}"
    clip, photo = (row for row in output.rows() if row["uri"][-8:] in ("long.mp4", "arge.jpg"))
    assert (clip["width"], clip["height"], clip["num_frames"]) == (1920, 1080, 18000)
    assert clip["grid_thw"][0] == 320
    assert (photo["width"], photo["height"]) == (8000, 5000)
    # Of the 40 megapixels there are a few copies while they are decoded, and none afterwards.
    assert peaks.own["processors.sandbox"] < 3 * 3 * 40_000_000 + 100 * MIB, str(peaks)
    # The file, once on its way to the decoder and once more where the next one is fetched.
    clip_bytes = (folder / "0 long.mp4").stat().st_size
    assert peaks.own["Preprocess"] < IMPORTS + 2 * clip_bytes + 3 * 40_000_000, str(peaks)
    assert peaks.own["Encode"] < IMPORTS + 300 * MIB, str(peaks)
    score.rows(map(str, folder.iterdir()), output.terminal())
    score.objects(verify(str(output.folder)).breaches)


@pytest.mark.whole
def test_ten_minutes_at_the_familys_own_budget_are_within_the_limits_of_a_run(
    long_clip, manifest_rows
) -> None:
    limits = Limits()
    config = preprocess_config(**vars(limits))
    rows = manifest_rows(
        [str(long_clip)], media_type=["video"], size_bytes=[long_clip.stat().st_size]
    )
    peaks, began = Peaks(), time.monotonic()
    with closing(Preprocess(config)) as stage, watching(peaks):
        (row,) = whole(stage(nest(rows, [0, 1]))).to_pylist()
        seconds = time.monotonic() - began
    assert row["error_code"] is None, row["error_message"]
    assert (row["num_frames"], row["grid_thw"][0]) == (18000, 320)
    assert row["duration_s"] == pytest.approx(600)
    # 640 frames, spread evenly from 0 to 17,999: a segment begins at every second one.
    shown = row["timestamps"][:2] + row["timestamps"][-1:]
    assert shown == pytest.approx([0, 56 / 30, 17970 / 30])
    assert 200 * MIB < len(row["patches"]) <= config.clip_bytes
    # The decoder holds its own pictures, of 3 MiB each, and never the clip's.
    assert peaks.own["processors.sandbox"] < 150 * MIB, str(peaks)
    assert seconds < limits.decode_timeout_s / 3


CLIPS = 18


@pytest.mark.whole
def test_more_long_clips_than_the_object_store_holds_take_no_more_memory(
    commands, output_at, tmp_path
) -> None:
    """Blocks of 244 MiB each: those that the store has no room for wait on the disk."""
    make = ClipMaker(tmp_path).make
    pattern = ("-f", "lavfi", "-i", "testsrc2=size=480x280:rate=2:duration=320")
    clip = make("clip.mp4", *pattern, *X264[:4])
    folder = tmp_path / "clips"
    folder.mkdir()
    for number in range(CLIPS):
        (folder / f"{number}.mp4").hardlink_to(clip)
    output, peaks = output_at(tmp_path / "output"), Peaks()
    actors = ("--preprocess-actors", 1, "--encoder-actors", 1)
    command = commands.job("embed", folder, "--output", output.folder, *actors)
    watched(command, peaks)
    done = command.ended()
    assert done.code == 0, str(done)
    rows = output.rows()
    block = 2 * 588 * 320 * rows[0]["grid_thw"][1] * rows[0]["grid_thw"][2]
    assert [row["grid_thw"][0] for row in rows] == [320] * CLIPS
    assert CLIPS * block > 2 * _object_store_bytes("cpu")
    # One that is on its way into the store, and one that is being filled.
    assert peaks.own["Preprocess"] < IMPORTS + 3 * block, str(peaks)
    # What comes from the store is never copied whole.
    assert peaks.own["Encode"] < IMPORTS + 300 * MIB, str(peaks)
