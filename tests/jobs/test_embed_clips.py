"""`embed` on a folder of photos and clips of many kinds, against plain Python, at every level."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.clips import X264, ClipMaker, real_clip
from tests.support.plain import Expected, PlainPython, assert_segments

LIMITS = {"max_pixels": 50176, "video_max_pixels": 200_000, "fps": 4.0, "max_frames": 6}
OPTIONS = tuple(
    text for name, value in LIMITS.items() for text in (f"--{name.replace('_', '-')}", value)
)
SMALL = ("-an", "-vf", "scale=160:-2")
VP9 = ("-c:v", "libvpx-vp9", "-cpu-used", "8")
SECOND = ("-i", real_clip("bikes.mp4"), "-frames:v", 25, *SMALL)
SHARD_ROWS = 5


@dataclass(frozen=True)
class Media:
    """A folder as people have them, and the one file in it that is none."""

    folder: Path
    good: list[Path]
    cut: Path
    whole: bytes
    """What the file was before it was cut."""


@pytest.fixture(scope="module")
def media(collection, tmp_path_factory) -> Media:
    """Clips in eight containers, cut from real ones, among photos."""
    folder = tmp_path_factory.mktemp("clips and photos")
    make = ClipMaker(folder).make
    upright = make("bikes.mp4", *SECOND, *X264)
    variable = ("-vf", "scale=160:-2,select=lt(n\\,10)+gt(n\\,19)", "-fps_mode", "vfr", *X264)
    bunny = ("-i", real_clip("bigbuckbunny.mp4"), "-t", 3, "-an", "-vf", "scale=320:-2")
    good = [
        upright,
        make("a photo's clip.MOV", "-display_rotation", 90, "-i", upright, "-c", "copy"),
        make("bunny.mkv", *bunny, *X264),
        make("bikes.webm", *SECOND, *VP9),
        make("bikes.avi", *SECOND, "-c:v", "mpeg4", "-q:v", 4),
        make("bikes.ts", *SECOND, *X264),
        make("bikes.mpg", *SECOND, "-c:v", "mpeg2video", "-q:v", 4),
        make("one frame.mp4", *SECOND[:2], "-frames:v", 1, *SMALL, *X264),
        make("variable.mp4", "-t", 1, *SECOND[:2], "-an", *variable),
        _animation(folder / "animated.gif"),
    ]
    for name in ("0.jpg", "1.png", "2.webp", "3.jpg"):
        path = folder / name
        path.write_bytes(collection.cut(path.suffix))
        good.append(path)
    whole = upright.read_bytes()
    cut = folder / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    return Media(folder, good, cut, whole)


def _animation(path: Path) -> Path:
    """Two seconds of a square that moves, in six frames."""
    frames = [Image.new("RGB", (60, 40), "teal") for _ in range(6)]
    for number, frame in enumerate(frames):
        frame.paste("orange", (8 * number, 10, 8 * number + 10, 20))
    durations = [400, 200, 400, 400, 200, 400]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations)
    return path


@pytest.fixture(scope="module")
def expected(media) -> dict[str, Expected]:
    plain = PlainPython(**LIMITS, animated="image")
    return {str(path): plain(path) for path in sorted(media.good, key=str)}


@pytest.fixture(scope="module")
def run(media, run_embed, tmp_path_factory) -> Any:
    """All of them at `--level frame`."""
    output = tmp_path_factory.mktemp("clips") / "output"
    args = (media.folder, *OPTIONS, "--level", "frame", "--shard-rows", SHARD_ROWS)
    found = run_embed(output, *args)
    assert found.done.code == 0, str(found)
    return found


def kind_of(uri: str) -> str:
    return "video" if Path(uri).suffix.lower() not in (".jpg", ".png", ".webp", ".gif") else "image"


def test_every_row_equals_that_of_the_file_embedded_alone(run, expected, assert_rows) -> None:
    wanted = [row.embedding | {"media_type": kind_of(uri)} for uri, row in expected.items()]
    assert_rows(run.rows, wanted)


def test_every_segment_has_its_row_with_its_timestamp(run, expected) -> None:
    found = sorted(run.output.rows("frames"), key=lambda row: (row["uri"], row["segment"]))
    assert_segments(found, [row for item in expected.values() for row in item.frames])


def test_clips_are_what_their_makers_say(run) -> None:
    """By hand: four frames a second, six at most, in two and two."""
    rows = {Path(row["uri"]).name: row for row in run.rows}
    sizes = {name: (row["width"], row["height"], row["num_frames"]) for name, row in rows.items()}
    bikes = sizes["bikes.mp4"]
    assert bikes[::2] == (160, 25)
    assert [n for n, size in sizes.items() if size == bikes and n.startswith("bikes.")] == [
        f"bikes.{suffix}" for suffix in ("avi", "mp4", "mpg", "ts", "webm")
    ]
    assert sizes["a photo's clip.MOV"] == (bikes[1], 160, 25)
    assert sizes["one frame.mp4"] == (*bikes[:2], 1)
    assert sizes["variable.mp4"] == (*bikes[:2], 15)
    assert sizes["animated.gif"] == (60, 40, None)
    slices = {name: row["grid_thw"][0] for name, row in rows.items() if row["num_frames"]}
    assert slices == dict.fromkeys(slices, 2) | {"one frame.mp4": 1, "bunny.mkv": 3}
    assert rows["bikes.mp4"]["duration_s"] == pytest.approx(1.0)
    # At 0, 1/4 and 1/2 s it shows frames 0, 7 and 13. That is one too few for four a second, which
    # are spread evenly instead: 0, 4, 8 and 13.
    segments = run.output.rows("frames")
    shown = [row["timestamp_s"] for row in segments if Path(row["uri"]).name == "bikes.mp4"]
    assert shown == pytest.approx([0, 8 / 25])
    t, h, w = rows["bunny.mkv"]["grid_thw"]
    assert 2 * t * h * w * 14**2 <= LIMITS["video_max_pixels"]


def test_a_clip_that_is_cut_fails_alone(run, media) -> None:
    (error,) = run.errors
    told = (error["uri"], error["media_type"], error["error_code"])
    assert told == (str(media.cut), "video", "truncated")


@pytest.mark.whole
def test_what_is_stored_is_recomputed(run, commands) -> None:
    args = ("--output", run.output.folder, "--recompute", 100, "--seed", 1)
    audit = commands.run("verify", *args)
    assert (audit.code, audit.err) == (0, ""), str(audit)
    assert "14" in audit.out and "every invariant holds" in audit.out


def test_resuming_at_another_rate_is_refused_by_name(run, commands) -> None:
    before = run.output.objects()
    done = commands.run("embed", *run.args, "--fps", 2, "--output", run.output.folder)
    assert (done.code, done.out) == (2, ""), str(done)
    (line,) = done.err.splitlines()
    assert "fps was 4.0, now 2.0" in line
    assert run.output.objects() == before


def test_a_rate_is_refused_where_the_clips_length_decides_it(media, commands, tmp_path) -> None:
    """By the processor's type: the model's would do with any."""
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(Path(__file__).parents[1] / "goldens" / "checkpoint-glm46v", checkpoint)
    for prefix, kind in (("", "Image"), ("video_", "Video")):
        processor = {f"{kind.lower()}_processor_type": f"Glm46V{kind}Processor"}
        (checkpoint / f"{prefix}preprocessor_config.json").write_text(json.dumps(processor))
    args = ("--encoder", checkpoint, "--fps", 1, "--output", tmp_path / "output")
    done = commands.run("embed", media.folder, *args)
    assert (done.code, done.out) == (2, ""), str(done)
    (line,) = done.err.splitlines()
    assert "fps=1.0 has no effect on glm46v" in line
    assert not (tmp_path / "output").exists()


@pytest.mark.whole
def test_a_clip_that_was_repaired_is_retried(
    run, media, commands, output_at, assert_rows, tmp_path
) -> None:
    output = output_at(tmp_path / "output")
    shutil.copytree(run.output.folder, output.folder)
    broken = media.cut.read_bytes()
    media.cut.write_bytes(media.whole)
    try:
        done = commands.run("retry", "--output", output.folder)
        row = PlainPython(**LIMITS, animated="image")(media.cut)
    finally:
        media.cut.write_bytes(broken)
    assert done.code == 0, str(done)
    fresh = [found for found in output.rows() if found["generation"] == 1]
    assert_rows(fresh, [row.embedding | {"media_type": "video", "generation": 1}])
    segments = [found for found in output.rows("frames") if found["uri"] == str(media.cut)]
    assert_segments(segments, row.frames)
    assert commands.run("verify", "--output", output.folder).code == 0


@pytest.mark.whole
def test_every_token_is_stored_and_an_animation_may_be_a_clip(
    media, commands, run_embed, assert_rows, tmp_path
) -> None:
    names = ("animated.gif", "bikes.webm", "a photo's clip.MOV", "one frame.mp4", "0.jpg")
    inputs = [media.folder / name for name in names]
    args = (*OPTIONS, "--level", "token", "--animated", "video")
    run = run_embed(tmp_path / "output", *inputs, *args)
    assert run.done.code == 0, str(run)
    plain = PlainPython(**LIMITS, animated="video")
    wanted = {str(path): plain(path) for path in sorted(inputs, key=str)}
    kinds = [row.embedding | {"media_type": kind_of(uri)} for uri, row in wanted.items()]
    assert_rows(run.rows, kinds)
    found = sorted(run.output.rows("tokens"), key=lambda row: (row["uri"], row["segment"]))
    assert_segments(found, [row for item in wanted.values() for row in item.tokens])
    # Six frames in two seconds are four a second and more: all of them, in two and two.
    (animation,) = [row for row in run.rows if row["uri"].endswith(".gif")]
    assert (animation["num_frames"], animation["grid_thw"][0]) == (6, 3)
    assert animation["duration_s"] == pytest.approx(2.0)
    audit = commands.run("verify", "--output", run.output.folder, "--recompute", 5)
    assert (audit.code, audit.err) == (0, ""), str(audit)
