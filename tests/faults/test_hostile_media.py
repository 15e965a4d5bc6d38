"""Files that do to their decoder whatever files can, among good ones: each costs itself only."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest

from pipeline.verify import verify
from tests.support.clips import PATTERN, X264, ClipMaker
from tests.support.crowd import moved

HERE = Path(__file__).parent
ITEMS = 200
SHARD_ROWS = 16
TIMEOUT_S = 4.0
MEMORY_BYTES = 2**27

# What the file does to the process, its error's code, and how many processes it is tried in.
ACTS = {
    "abort.mp4": ("abort", "decoder_crashed", 2),
    "death midway.mp4": ("die_after 3", "decoder_crashed", 2),
    "exit.png": ("leave 3", "decoder_crashed", 2),
    "garbage.mp4": ("write_garbage", "decoder_crashed", 2),
    "half a message.jpg": ("write_half", "decoder_crashed", 2),
    "segfault.jpg": ("touch_nothing", "decoder_crashed", 2),
    "hang.jpg": ("loop", "decode_timeout", 1),
    "hang midway.mp4": ("stall_midway", "decode_timeout", 1),
    "hog.mp4": ("eat_memory", "decoder_out_of_memory", 2),
    "kill.jpg": ("raise_signal SIGKILL", "decoder_out_of_memory", 2),
}
VP9 = ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-crf", "10", "-b:v", "1M", "-row-mt", "0")
CLIPS = {
    "h264.mp4": X264,
    "hevc.mkv": ("-c:v", "libx265", "-x265-params", "log-level=error"),
    "mjpeg.mov": ("-c:v", "mjpeg", "-q:v", "2"),
    "mpeg2.ts": ("-c:v", "mpeg2video", "-q:v", "2", "-bf", "2"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-q:v", "2"),
    "vp9.webm": VP9,
}
GOOD_CLIPS = 30


@dataclass(frozen=True)
class Mixed:
    """A folder of good and hostile files."""

    folder: Path
    originals: dict[str, Path]
    """Every good item's URI, and the file that it is."""
    hostile: dict[str, tuple[str, int]]
    """Every hostile item's URI, its error's code and its attempts."""


@pytest.fixture(scope="module")
def mixed(collection, clips: ClipMaker, broken, tmp_path_factory) -> Mixed:
    """Photos, every sixth file a clip, and hostile files evenly among them."""
    folder = tmp_path_factory.mktemp("mixed")
    hostile = {name: (data, code, 1) for name, (data, code) in broken.items()} | {
        name: (f"HOSTILE {act}".encode(), code, attempts)
        for name, (act, code, attempts) in ACTS.items()
    }
    made = [clips.make(f"good-{name}", *PATTERN, *options) for name, options in CLIPS.items()]
    good = [*islice(cycle(made), GOOD_CLIPS)]
    good += islice(cycle(collection.good), ITEMS - GOOD_CLIPS - len(hostile))
    found = Mixed(folder, {}, {})
    for number, original in enumerate(good):
        # The suffix says photo or clip; the rest of the name, where the file comes among all.
        path = folder / f"{number * 7 % len(good):03d}{original.suffix}"
        path.hardlink_to(original)
        found.originals[str(path)] = original
    for number, (name, (data, code, attempts)) in enumerate(hostile.items()):
        path = folder / f"{number * len(good) // len(hostile):03d} {name}"
        path.write_bytes(data)
        found.hostile[str(path)] = (code, attempts)
    return found


@dataclass(frozen=True)
class Ran:
    """The run of all of them."""

    done: Any
    output: Any
    notes: list[list[list[int]]]
    """By preprocessing process and block: its memory files and its processes."""


@pytest.fixture(scope="module")
def ran(mixed, commands, output_at, tmp_path_factory) -> Ran:
    root = tmp_path_factory.mktemp("hostile")
    output, notes = output_at(root / "output"), root / "notes"
    notes.mkdir()
    done = commands.start(
        *(sys.executable, HERE / "faulty_decoder.py", notes, mixed.folder),
        *("--output", output.folder, "--shard-rows", SHARD_ROWS, "--max-pixels", 50176),
        *("--preprocess-actors", 1, "--encoder-actors", 1),
        *("--decode-timeout-s", TIMEOUT_S, "--decoder-memory-bytes", MEMORY_BYTES),
        env={"PYTHONPATH": str(HERE.parents[1])},
    ).ended()
    assert done.code == 0, str(done)
    lines = [path.read_text().splitlines() for path in notes.iterdir()]
    counts = [[[int(count) for count in line.split()] for line in each] for each in lines]
    return Ran(done, output, counts)


def test_every_item_has_one_terminal_row(mixed, ran, score) -> None:
    assert len(mixed.originals) + len(mixed.hostile) == ITEMS
    score.rows([*mixed.originals, *mixed.hostile], ran.output.terminal())
    score.objects(verify(str(ran.output.folder)).breaches)
    score.kills += sum(attempts for _, _, attempts in ACTS.values())


def test_each_hostile_file_has_its_own_code_and_attempts(mixed, ran) -> None:
    rows = ran.output.rows("errors")
    found = {row["uri"]: (row["error_code"], row["attempts"]) for row in rows}
    assert found == mixed.hostile
    for row in rows:
        kind = "image" if row["uri"].endswith((".jpg", ".png")) else "video"
        assert (row["media_type"], row["stage"]) == (kind, "preprocess")


def test_good_photos_and_clips_are_embedded_as_if_alone(mixed, ran, alone, assert_rows) -> None:
    expected = [moved(alone(original), uri) for uri, original in mixed.originals.items()]
    assert Counter(row["media_type"] for row in expected)["video"] == GOOD_CLIPS
    assert_rows(ran.output.rows(), expected)


def test_the_preprocessing_process_never_restarts_and_keeps_nothing(ran) -> None:
    (blocks,) = ran.notes
    assert len({memory_files for memory_files, _ in blocks}) == 1
    assert max(processes for _, processes in blocks) == 2  # The template, and its one child.


def test_nothing_is_left_behind(ran) -> None:
    assert ran.done.left_behind == []


def test_the_summary_counts_the_errors_by_code(mixed, ran) -> None:
    for code, count in Counter(code for code, _ in mixed.hostile.values()).items():
        assert f"{code} {count}" in ran.done.out
