from __future__ import annotations

import mmap
import pickle
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from processors.errors import DecodeError, ErrorCode
from processors.formats import VideoFormat
from processors.packet_decoder import PacketDecoder
from processors.video_file import VideoFile
from processors.video_reader import VideoReader
from tests.support.clips import PATTERN, X264, ClipMaker, real_clip
from tests.support.isobmff import movie, stsz, table, trak

MAX_PIXELS = 2**20
X265 = ("-c:v", "libx265", "-preset", "ultrafast", "-x265-params", "log-level=error:qp=12")
VP9 = ("-c:v", "libvpx-vp9", "-cpu-used", "8", "-crf", "10", "-b:v", "0")
FFV1 = ("-c:v", "ffv1")
SINE = ("-f", "lavfi", "-i", "sine=duration=0.8")

CODECS = {
    "h264.mp4": X264,
    "hevc.mp4": X265,
    "vp8.webm": ("-c:v", "libvpx", "-cpu-used", "8", "-crf", "10", "-b:v", "1M"),
    "vp9.webm": VP9,
    "av1.mp4": ("-c:v", "libsvtav1", "-preset", "12", "-crf", "20"),
    "mpeg4.mp4": ("-c:v", "mpeg4", "-q:v", "2", "-bf", "2"),
    "mpeg2.mpg": ("-c:v", "mpeg2video", "-q:v", "2", "-bf", "2"),
    "prores.mov": ("-c:v", "prores_ks"),
    "mjpeg.avi": ("-c:v", "mjpeg", "-q:v", "2"),
}
CONTAINERS = {
    "container.mp4": X264,
    "fragmented.mp4": (*X264, "-movflags", "frag_keyframe+empty_moov", "-g", "5"),
    "container.mov": X264,
    "container.m4v": X264,
    "container.mkv": X264,
    "live.mkv": (*X264, "-live", "1"),
    "container.webm": VP9,
    "container.avi": ("-c:v", "mpeg4", "-q:v", "2"),
    "reordered.avi": ("-c:v", "libx264", "-qp", "12", "-bf", "3"),
    "container.ts": X264,
    "container.m2ts": (*X264, "-mpegts_m2ts_mode", "1"),
    "container.mpg": ("-c:v", "mpeg1video", "-q:v", "2"),
    "container.flv": X264,
    "container.wmv": ("-c:v", "wmv2", "-q:v", "2"),
    "container.3gp": ("-c:v", "h263", "-q:v", "2", "-s", "176x144"),
}
PIXELS = {
    "420.mp4": (*X264, "-pix_fmt", "yuv420p"),
    "422.mp4": (*X264, "-pix_fmt", "yuv422p"),
    "444.mp4": (*X264, "-pix_fmt", "yuv444p"),
    "411.mkv": (*FFV1, "-pix_fmt", "yuv411p"),
    "grey.mp4": (*X264, "-pix_fmt", "gray"),
    "420-10.mp4": (*X264, "-pix_fmt", "yuv420p10le"),
    "422-10.mov": ("-c:v", "prores_ks", "-pix_fmt", "yuv422p10le"),
    "444-10.webm": (*VP9, "-pix_fmt", "yuv444p10le"),
    "grey-10.mkv": (*FFV1, "-pix_fmt", "gray10le"),
    "420-12.mp4": (*X265, "-pix_fmt", "yuv420p12le"),
    "444-12.mp4": (*X265, "-pix_fmt", "yuv444p12le"),
    "rgb.mp4": ("-c:v", "libx264rgb", "-qp", "12"),
    "rgb.mov": ("-c:v", "png", "-pix_fmt", "rgb24"),
    "alpha.mov": ("-vf", "format=rgba,colorchannelmixer=aa=0.5", "-c:v", "prores_ks"),
    "alpha.webm": ("-vf", "format=rgba,colorchannelmixer=aa=0.5", *VP9, "-pix_fmt", "yuva420p"),
}
COLOURS = {
    f"{matrix}-{levels}-{depth}.mp4": (
        *("-vf", f"scale=out_color_matrix={matrix}:out_range={levels},format={pixels}"),
        *("-colorspace", tag, "-color_range", levels, *X264),
    )
    for matrix, tag in (("bt601", "smpte170m"), ("bt709", "bt709"), ("bt2020", "bt2020nc"))
    for levels in ("tv", "pc")
    for depth, pixels in ((8, "yuv420p"), (10, "yuv444p10le"))
} | {
    "full.avi": ("-c:v", "mjpeg", "-q:v", "2", "-pix_fmt", "yuvj422p"),
    "fcc.mp4": (*X264, "-colorspace", "fcc"),
    "smpte240m.mp4": (*X264, "-colorspace", "smpte240m"),
    "hdr.mp4": (
        *(*X264, "-pix_fmt", "yuv420p10le", "-colorspace", "bt2020nc"),
        *("-color_trc", "smpte2084", "-color_primaries", "bt2020"),
    ),
}
ODD = {
    "odd.webm": VP9,
    "odd.avi": ("-c:v", "mpeg4", "-q:v", "2"),
    "odd-mjpeg.mov": ("-c:v", "mjpeg", "-q:v", "2"),
    "odd.mp4": ("-c:v", "libx264", "-qp", "12", "-pix_fmt", "yuv444p"),
}


def read(path: Path, indices: Any = None, **options: Any) -> np.ndarray:
    reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS, **options)
    if indices is None:
        indices = range(reader.metadata.total_num_frames)
    frames = np.stack([frame.copy() for frame in reader.frames(indices)])
    reader.close()
    assert frames.shape[1:] == (reader.metadata.height, reader.metadata.width, 3)
    return frames


def assert_close(found: np.ndarray, expected: np.ndarray) -> None:
    assert found.shape == expected.shape
    difference = np.abs(found.astype(int) - expected)
    assert difference.mean() < 2
    assert difference.max() < 32


def failure(data: bytes, *, max_pixels: int = MAX_PIXELS) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        reader = VideoReader(data, max_pixels=max_pixels)
        for _ in reader.frames(range(reader.metadata.total_num_frames)):
            pass
    assert caught.value.code in get_args(ErrorCode)
    assert 0 < len(caught.value.message) <= 200
    return caught.value


@pytest.mark.parametrize("name", [*CODECS, *PIXELS, *COLOURS])
def test_frames_are_those_of_ffmpeg(clips: ClipMaker, name: str) -> None:
    path = clips.make(name, *PATTERN, *(CODECS | PIXELS | COLOURS)[name])
    expected = clips.pixels(path)
    assert len(expected) == 10
    assert_close(read(path), expected)


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_told_by_their_content(clips: ClipMaker, name: str) -> None:
    path = clips.make(name, *PATTERN, *CONTAINERS[name])
    reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS)
    metadata = reader.metadata
    assert (metadata.total_num_frames, metadata.fps, metadata.duration) == (10, 25, 0.4)
    np.testing.assert_allclose(reader.timestamps(range(10)), np.arange(10) / 25)
    reader.close()
    assert_close(read(path), clips.pixels(path))


@pytest.mark.parametrize("name", ODD)
def test_odd_sizes(clips: ClipMaker, name: str) -> None:
    path = clips.make(name, *PATTERN, "-vf", "scale=161:91", *ODD[name])
    frames = read(path)
    assert frames.shape == (10, 91, 161, 3)
    assert_close(frames, clips.pixels(path))


def test_a_wrong_matrix_or_range_would_be_seen(clips: ClipMaker) -> None:
    def flag(name: str, **flags: int) -> Path:
        source = clips.make("bt601-tv-8.mp4", *PATTERN, *COLOURS["bt601-tv-8.mp4"])
        options = ":".join(f"{key}={value}" for key, value in flags.items())
        return clips.make(name, "-i", source, "-c", "copy", "-bsf:v", f"h264_metadata={options}")

    right = read(clips.make("bt601-tv-8.mp4", *PATTERN, *COLOURS["bt601-tv-8.mp4"]))
    for path in (
        flag("as-709.mp4", matrix_coefficients=1),
        flag("as-full.mp4", video_full_range_flag=1),
    ):
        assert np.abs(read(path).astype(int) - right).mean() > 4
        assert_close(read(path), clips.pixels(path))


def test_a_reserved_matrix_counts_as_none_and_one_without_conversion_is_refused(
    clips: ClipMaker,
) -> None:
    source = clips.make("h264.mp4", *PATTERN, *X264)
    for matrix, name in ((3, "reserved.mp4"), (8, "ycgco.mp4")):
        filters = f"h264_metadata=matrix_coefficients={matrix}"
        clips.make(name, "-i", source, "-c", "copy", "-bsf:v", filters)
    np.testing.assert_array_equal(read(clips.folder / "reserved.mp4"), read(source))
    error = failure((clips.folder / "ycgco.mp4").read_bytes())
    assert error.code == "unsupported_format"
    assert "matrix 8" in error.message


@pytest.mark.parametrize("flip", ["", "-display_hflip", "-display_vflip"])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
@pytest.mark.parametrize("source", ["420.mp4", "422.mp4"])
def test_rotation_and_flips(clips: ClipMaker, source: str, degrees: int, flip: str) -> None:
    upright = clips.make(source, *PATTERN, *PIXELS[source])
    flips = (flip, 1) if flip else ()
    turned = ("-display_rotation", degrees, *flips[:1], "-i", upright, "-c", "copy")
    path = clips.make(f"turned-{degrees}{flip}-{source}", *turned)
    frames = read(path)
    assert frames.shape[1:3] == ((64, 48) if degrees % 180 else (48, 64))
    assert_close(frames, clips.pixels(path))
    if degrees == 90 and not flip and source == "420.mp4":
        assert_close(frames, np.rot90(read(upright), axes=(1, 2)))


def test_rotation_in_matroska(clips: ClipMaker) -> None:
    upright = clips.make("420.mp4", *PATTERN, *PIXELS["420.mp4"])
    path = clips.make("turned.mkv", "-display_rotation", 90, "-i", upright, "-c", "copy")
    assert read(path).shape[1:3] == (64, 48)
    assert_close(read(path), clips.pixels(path))


def test_samples_count_as_square(clips: ClipMaker) -> None:
    path = clips.make("wide.mp4", *PATTERN, "-vf", "setsar=2/1", *X264)
    assert read(path).shape[1:3] == (48, 64)


@pytest.mark.parametrize(
    "name", ["bikes.mp4", "carphone_pristine.mp4", "carphone_distorted.mp4", "bigbuckbunny.mp4"]
)
def test_real_clips(clips: ClipMaker, name: str) -> None:
    path = real_clip(name)
    reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS)
    chosen = [0, 1, 57, 58, reader.metadata.total_num_frames - 1]
    select = "+".join(f"eq(n\\,{index})" for index in chosen)
    assert_close(read(path, chosen), clips.pixels(path, "-vf", f"select={select}"))


HEVC = "log-level=error:keyint=25:bframes=4"
LONG_CLIPS = {
    "pyramid.mp4": ("-c:v", "libx264", "-g", "50", "-bf", "3", "-b_strategy", "0"),
    "open.mp4": ("-c:v", "libx264", "-g", "30", "-bf", "3", "-x264-params", "open-gop=1"),
    "open.ts": ("-c:v", "libx264", "-g", "30", "-bf", "3", "-x264-params", "open-gop=1"),
    "open.mkv": ("-c:v", "libx265", "-x265-params", f"{HEVC}:open-gop=1"),
    "layers.mp4": ("-c:v", "libx265", "-x265-params", f"{HEVC}:temporal-layers=3"),
    "long.ts": ("-c:v", "mpeg2video", "-g", "15", "-bf", "2"),
    "long.mpg": ("-c:v", "mpeg2video", "-g", "15", "-bf", "2", "-q:v", "1"),
    "small.mpg": ("-c:v", "mpeg2video", "-g", "15", "-bf", "2"),
    "fields.ts": ("-c:v", "libx264", "-g", "30", "-flags", "+ilme+ildct", "-x264-params", "tff=1"),
    "long-mpeg4.mp4": ("-c:v", "mpeg4", "-g", "50", "-bf", "2"),
    "packed.avi": ("-c:v", "libxvid", "-g", "50", "-bf", "2"),
    "long.webm": ("-c:v", "libvpx-vp9", "-g", "50", "-lag-in-frames", "16", "-cpu-used", "8"),
    "long.av1.mkv": ("-c:v", "libsvtav1", "-preset", "12", "-g", "50"),
    "long.wmv": ("-c:v", "wmv2", "-g", "25"),
    "refresh.ts": ("-c:v", "libx264", "-g", "30", "-x264-params", "intra-refresh=1"),
}
# AVI has no times of display, and frames that share a packet of MPEG-PS get the same ones.
COUNTED = ("packed.avi", "small.mpg")


@pytest.mark.parametrize("name", LONG_CLIPS)
def test_any_frames_are_the_same_as_all_frames(
    clips: ClipMaker, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 200, "-an", "-vf", "scale=96:-2")
    path = clips.make(name, *source, *LONG_CLIPS[name])
    expected = clips.pixels(path)
    reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS)
    assert reader.metadata.total_num_frames == len(expected)
    skips: list[int] = []
    skip_to = PacketDecoder.skip_to

    def counting(self: PacketDecoder, packet: int, *, floor: int) -> None:
        skips.append(packet)
        skip_to(self, packet, floor=floor)

    monkeypatch.setattr(PacketDecoder, "skip_to", counting)
    random = np.random.default_rng(0)
    choices = [[0, 100, 101, 190], [len(expected) - 1], [3, 3, 3], []]
    choices += [np.sort(random.integers(0, len(expected), count)).tolist() for count in (3, 7, 30)]
    for indices in choices:
        found = [frame.copy() for frame in reader.frames(indices)]
        assert len(found) == len(indices)
        if indices:
            assert_close(np.stack(found), expected[indices])
    assert bool(skips) == (name not in COUNTED)
    reader.close()


def test_unreferenced_frames_are_left_out(clips: ClipMaker) -> None:
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 200, "-an", "-vf", "scale=96:-2")
    path = clips.make("pyramid.mp4", *source, *LONG_CLIPS["pyramid.mp4"])
    file = VideoFile(data=path.read_bytes(), video_format="MP4", max_pixels=MAX_PIXELS)
    decoder = PacketDecoder(file, first_packet=0, floor=None)
    decoder.wanted = set()
    count = 0
    while decoder.peek() is not None:
        decoder.pop()
        count += 1
    assert 50 < count < 150
    decoder.close()


def test_variable_frame_rate_goes_by_the_time_of_display(clips: ClipMaker) -> None:
    # Frames 0, 1, 2, 3 of ten a second, then 8 and 9: six frames in one second.
    source = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=10:duration=1")
    select = ("-vf", "select=lt(n\\,4)+gt(n\\,7)", "-fps_mode", "vfr")
    for suffix in ("mp4", "mkv", "flv"):
        path = clips.make(f"variable.{suffix}", *source, *select, *X264)
        reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS)
        metadata = reader.metadata
        assert metadata.total_num_frames == 6
        assert metadata.fps == pytest.approx(6)
        assert metadata.duration == pytest.approx(1)
        # At 0, 1/6 ... 5/6 seconds.
        assert reader.timestamps(range(6)) == pytest.approx([0, 0.1, 0.3, 0.3, 0.3, 0.8])
        expected = clips.pixels(path)[[0, 1, 3, 3, 3, 4]]
        assert_close(read(path), expected)


def test_a_steady_rate_that_the_container_rounds_is_steady(clips: ClipMaker) -> None:
    source = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=30000/1001:duration=2")
    for suffix in ("mp4", "mkv", "flv", "ts"):
        path = clips.make(f"ntsc.{suffix}", *source, *X264)
        metadata = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS).metadata
        assert metadata.total_num_frames == 60
        assert metadata.fps == pytest.approx(30000 / 1001, abs=1e-3)
        assert_close(read(path), clips.pixels(path))


def test_what_an_edit_list_hides_is_not_shown(clips: ClipMaker) -> None:
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 100, "-an", "-vf", "scale=96:-2")
    whole = clips.make("edited.mp4", *source, "-c:v", "libx264", "-g", "25", "-bf", "2")
    # A cut within a group of pictures keeps the group's beginning, to decode the rest from.
    path = clips.make("edit.mp4", "-ss", "1.4", "-i", whole, "-c", "copy")
    reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS)
    assert reader.metadata.total_num_frames == 65
    assert reader.timestamps([0, 1]) == pytest.approx([0, 0.04])
    assert_close(read(path), clips.pixels(path))
    np.testing.assert_array_equal(read(path, [0, 30, 64]), read(whole, [35, 65, 99]))


def test_starts_before_and_after_zero(clips: ClipMaker) -> None:
    source = clips.make("reordered.mp4", *PATTERN, "-c:v", "libx264", "-bf", "3")
    late = clips.make("late.mp4", "-itsoffset", "1.5", "-i", source, "-c", "copy")
    negative = ("-output_ts_offset", "-0.2", "-avoid_negative_ts", "disabled")
    early = clips.make("early.mkv", "-i", source, "-c", "copy", *negative)
    for path in (late, early):
        reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS)
        assert reader.timestamps([0, 9]) == pytest.approx([0, 0.36])
        np.testing.assert_array_equal(read(path), read(source))


def test_timestamps_that_wrap_or_start_again(clips: ClipMaker) -> None:
    source = clips.make("short.ts", *PATTERN, *X264)
    # 33 bits of 1/90,000 s.
    wrap = ("-output_ts_offset", 2**33 / 90000 - 1.6, "-c", "copy", "-muxdelay", 0)
    wrapped = clips.make("wrapped.ts", "-i", source, *wrap)
    np.testing.assert_array_equal(read(wrapped), read(source))
    joined = clips.folder / "joined.ts"
    joined.write_bytes(source.read_bytes() * 3)
    assert VideoReader(joined.read_bytes(), max_pixels=MAX_PIXELS).metadata.fps == 25
    np.testing.assert_array_equal(read(joined), np.concatenate([read(source)] * 3))


def test_a_recording_may_begin_anywhere(clips: ClipMaker) -> None:
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 200, "-an", "-vf", "scale=96:-2")
    whole = clips.make("open.ts", *source, *LONG_CLIPS["open.ts"]).read_bytes()
    path = clips.folder / "begun.ts"
    path.write_bytes(whole[188 * 100 + 77 :])
    expected = clips.pixels(path)
    assert 50 < len(expected) < 200
    assert_close(read(path), expected)


def test_references_that_are_never_shown_are_no_frames(clips: ClipMaker) -> None:
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 100, "-an", "-vf", "scale=96:-2")
    options = ("-c:v", "libvpx", "-auto-alt-ref", 1, "-lag-in-frames", 16, "-b:v", "200k")
    clips.make("first-pass.webm", *source, *options, "-pass", 1)
    path = clips.make("hidden.webm", *source, *options, "-pass", 2)
    assert VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS).metadata.total_num_frames == 100
    assert_close(read(path), clips.pixels(path))


def test_audio_comes_first(clips: ClipMaker) -> None:
    for suffix in ("mp4", "mkv", "ts", "avi"):
        inputs = (*SINE, *PATTERN, "-map", "0:a", "-map", "1:v")
        path = clips.make(f"audio-first.{suffix}", *inputs, *X264)
        metadata = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS).metadata
        assert (metadata.total_num_frames, metadata.duration) == (10, 0.4)
        assert_close(read(path), clips.pixels(path))


def test_of_several_streams_the_default_one_counts(clips: ClipMaker) -> None:
    small = ("-f", "lavfi", "-i", "testsrc2=size=32x32:rate=25:duration=0.4")
    default = ("-disposition:v:0", "0", "-disposition:v:1", "default")
    both = (*PATTERN, *small, "-map", "0:v", "-map", "1:v", *default)
    path = clips.make("two.mkv", *both, *X264)
    assert read(path).shape == (10, 32, 32, 3)


def test_cover_art_is_no_clip(clips: ClipMaker) -> None:
    cover = ("-map", "0:a", "-map", "1:v", "-frames:v", 1, "-c:v", "mjpeg")
    cover += ("-disposition:v", "attached_pic")
    song = clips.make("song.m4a", *SINE, *PATTERN, *cover)
    error = failure(song.read_bytes())
    assert (error.code, error.message) == ("no_video_stream", "MP4: found only audio, cover art")
    picture = clips.make("cover.jpg", *PATTERN, "-frames:v", 1)
    inputs = ("-i", picture, *PATTERN, "-map", "0", "-map", "1", "-disposition:v:0", "attached_pic")
    clip = clips.make("covered.mp4", *inputs, "-c:v:0", "copy", "-c:v:1", "libx264")
    assert read(clip).shape[0] == 10
    error = failure(clips.make("sound.mkv", *SINE).read_bytes())
    assert (error.code, error.message) == ("no_video_stream", "Matroska: found only audio")


CUT = ("bikes.mp4", "-frames:v", 50, "-an", "-vf", "scale=96:-2", "-g", 10)
CUT_CLIPS = {
    "cut.mp4": ("-c:v", "libx264", "-movflags", "faststart"),
    "moov-last.mp4": ("-c:v", "libx264"),
    "cut-fragments.mp4": ("-c:v", "libx264", "-movflags", "frag_keyframe+empty_moov"),
    "cut.mkv": ("-c:v", "libx265", "-x265-params", "log-level=error"),
    "cut.webm": ("-c:v", "libvpx", "-cpu-used", 8),
    "cut.avi": ("-c:v", "mpeg4"),
    "cut.flv": ("-c:v", "flv"),
    "cut.wmv": ("-c:v", "wmv2"),
}


@pytest.mark.parametrize("name", CUT_CLIPS)
def test_cut_files_are_truncated(clips: ClipMaker, name: str) -> None:
    source = ("-i", real_clip(CUT[0]), *CUT[1:])
    data = clips.make(name, *source, *CUT_CLIPS[name]).read_bytes()
    for share in (0.02, 0.2, 0.5, 0.8, 0.95):
        assert failure(data[: int(len(data) * share)]).code == "truncated", share


def test_the_message_says_what_was_found(clips: ClipMaker) -> None:
    data = clips.make("cut.mp4", "-i", real_clip(CUT[0]), *CUT[1:], *CUT_CLIPS["cut.mp4"])
    message = failure(data.read_bytes()[:9000]).message
    found = r"MP4: it holds 4\d of 50 frames, and ends at 1\.\d s of 2\.0 s"
    assert re.fullmatch(found, message)


def test_streams_may_end_anywhere(clips: ClipMaker) -> None:
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 200, "-an", "-vf", "scale=96:-2")
    data = clips.make("open.ts", *source, *LONG_CLIPS["open.ts"]).read_bytes()
    reader = VideoReader(data[: len(data) // 2], max_pixels=MAX_PIXELS)
    count = reader.metadata.total_num_frames
    assert 60 < count < 140
    assert len(list(reader.frames([0, count // 2]))) == 2


@pytest.mark.parametrize("name", ["cut.mp4", "cut-fragments.mp4", "cut.avi", "cut.mkv"])
def test_damaged_files_are_truncated(clips: ClipMaker, name: str) -> None:
    source = ("-i", real_clip(CUT[0]), *CUT[1:])
    data = bytearray(clips.make(name, *source, *CUT_CLIPS[name]).read_bytes())
    middle = len(data) * 6 // 10
    garbage = np.random.default_rng(1).integers(0, 256, 2000, dtype=np.uint8)
    data[middle : middle + 2000] = garbage.tobytes()
    assert failure(bytes(data)).code == "truncated"


def test_frames_before_the_damage_are_given(clips: ClipMaker) -> None:
    source = ("-i", real_clip(CUT[0]), *CUT[1:])
    data = bytearray(clips.make("cut.mp4", *source, *CUT_CLIPS["cut.mp4"]).read_bytes())
    middle = len(data) * 6 // 10
    data[middle : middle + 500] = bytes(500)
    reader = VideoReader(bytes(data), max_pixels=MAX_PIXELS)
    assert len(list(reader.frames(range(20)))) == 20
    with pytest.raises(
        DecodeError, match=r"decoded \d\d of 50 frames, \d\.\d s of 2\.0 s"
    ) as caught:
        list(reader.frames(range(50)))
    assert caught.value.code == "truncated"
    assert pickle.loads(pickle.dumps(caught.value)).message == caught.value.message


def test_random_damage_never_escapes_as_another_exception(clips: ClipMaker) -> None:
    random = np.random.default_rng(0)
    for name in ("cut.mp4", "cut.webm", "cut.avi", "cut.flv", "cut.wmv"):
        source = ("-i", real_clip(CUT[0]), *CUT[1:])
        whole = clips.make(name, *source, *CUT_CLIPS[name]).read_bytes()
        for _ in range(25):
            data = bytearray(whole)
            for place in random.integers(0, min(len(data), 2000), 6):
                data[place] = random.integers(0, 256)
            try:
                reader = VideoReader(bytes(data), max_pixels=MAX_PIXELS)
                for _ in reader.frames(range(0, reader.metadata.total_num_frames, 10)):
                    pass
            except DecodeError as error:
                assert error.code in get_args(ErrorCode)


def test_what_is_no_clip() -> None:
    assert failure(b"").code == "empty"
    for data, found in (
        (b"This was never a clip.\n" * 40, "found text"),
        (b"#EXTM3U\n#EXTINF:10,\nclip.ts\n", "found a playlist (M3U)"),
        (b"ffconcat version 1.0\nfile clip.mp4\n", "found a list of files (ffconcat)"),
        (b"\x89PNG\r\n\x1a\n", "found unknown content"),
        (b"\x00\x00\x01\xb3" + bytes(100), "found an MPEG video stream without a container"),
    ):
        error = failure(data)
        assert error.code == "unsupported_format"
        assert found in error.message
    assert failure(b"\x00\x00\x00\x18ftypisom" + bytes(12)).code == "truncated"
    assert failure((b"G" + bytes(187)) * 9).code == "truncated"


def test_playlists_open_nothing_even_where_they_are_taken_for_clips() -> None:
    with socket.create_server(("127.0.0.1", 0)) as canary:
        canary.settimeout(0)
        url = f"http://127.0.0.1:{canary.getsockname()[1]}/clip.ts"
        for text in (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{url}\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile {url}\n",
            f'<?xml version="1.0"?><MPD><Period><BaseURL>{url}</BaseURL></Period></MPD>',
        ):
            for video_format in get_args(VideoFormat):
                file = VideoFile(
                    data=text.encode(), video_format=video_format, max_pixels=MAX_PIXELS
                )
                with pytest.raises(DecodeError):
                    file.open()
        with pytest.raises(BlockingIOError):
            canary.accept()


def test_the_limit_on_pixels(clips: ClipMaker) -> None:
    for name in ("h264.mp4", "vp9.webm", "mpeg2.mpg", "prores.mov"):
        data = clips.make(name, *PATTERN, *CODECS[name]).read_bytes()
        VideoReader(data, max_pixels=64 * 48).close()
        VideoReader(data, max_pixels=2**40).close()  # more than FFmpeg can count
        error = failure(data, max_pixels=64 * 48 - 1)
        assert error.code == "too_large"
        assert error.message == "64 x 48 is 3072 pixels, over the limit of 3071"
    with pytest.raises(ValueError, match="max_pixels must be at least 1, got 0"):
        VideoReader(data, max_pixels=0)


def test_a_size_that_changes(clips: ClipMaker) -> None:
    small = clips.make("short.ts", *PATTERN, *X264)
    large = clips.make("large.ts", *PATTERN, "-vf", "scale=96:80", *X264)
    data = small.read_bytes() + large.read_bytes()
    # As ffmpeg does it, all frames get the first one's size.
    reader = VideoReader(data, max_pixels=MAX_PIXELS)
    frames = np.stack([frame.copy() for frame in reader.frames(range(20))])
    np.testing.assert_array_equal(frames[:10], read(small))
    assert np.abs(frames[10:].astype(int) - read(small)).mean() < 12
    assert failure(data, max_pixels=64 * 48).code == "too_large"


def test_recordings_joined_in_any_order_are_counted(clips: ClipMaker) -> None:
    source = ("-f", "lavfi", "-i", "testsrc2=size=64x48:rate=25:duration=4", *X264)
    late = clips.make("late.ts", *source, "-output_ts_offset", 30).read_bytes()
    soon = clips.make("soon.ts", *source).read_bytes()
    reader = VideoReader(late + soon, max_pixels=MAX_PIXELS)
    assert (reader.metadata.total_num_frames, reader.metadata.fps) == (200, 25)
    frames = np.stack([frame.copy() for frame in reader.frames(range(200))])
    reader.close()
    np.testing.assert_array_equal(frames[:100], frames[100:])


@pytest.mark.parametrize(
    ("box", "offset"), [(b"stsd", 20), (b"avcC", 0), (b"mdat", -4), (b"mdat", 4), (None, -1)]
)
def test_clips_cut_at_a_border_or_by_a_byte_are_truncated(
    clips: ClipMaker, box: bytes | None, offset: int
) -> None:
    path = clips.make("index first.mp4", *PATTERN, *X264, "-movflags", "faststart")
    data = path.read_bytes()
    at = (len(data) if box is None else data.index(box)) + offset
    assert failure(data[:at]).code == "truncated"


@pytest.mark.parametrize("name", ["far.avi", "far.mov", "far.mp4", "far.webm"])
def test_sizes_far_over_the_limit_are_too_large(clips: ClipMaker, name: str) -> None:
    codecs = {
        "far.avi": "mpeg4",
        "far.mov": "mjpeg",
        "far.mp4": "libx264",
        "far.webm": "libvpx-vp9",
    }
    data = clips.make(name, *PATTERN, "-s", "640x480", "-c:v", codecs[name]).read_bytes()
    error = failure(data, max_pixels=1000)
    assert error.code == "too_large"
    assert error.message == "640 x 480 is 307200 pixels, over the limit of 1000"


def test_too_many_streams() -> None:
    track = trak([8])
    error = failure(movie([b"no video"], *[track] * 1001))
    assert (error.code, error.message) == ("too_large", "MP4: more than 1000 streams")
    assert failure(movie([b"no video"], *[track] * 1000)).code == "corrupt"


def test_too_many_packets(clips: ClipMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    data = clips.make("h264.mp4", *PATTERN, *X264).read_bytes()
    monkeypatch.setattr("processors.video_index.MAX_PACKETS", 10)
    assert VideoReader(data, max_pixels=MAX_PIXELS).metadata.total_num_frames == 10
    monkeypatch.setattr("processors.video_index.MAX_PACKETS", 9)
    error = failure(data)
    assert (error.code, error.message) == ("too_large", "more than 9 packets of video")


def test_too_many_packets_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {"stsz": stsz(*[0] * 9), "stsc": table(b"stsc", (1, 9, 1))}
    data = movie([b"no picture"], stts=table(b"stts", (9, 1000)), **tables)
    assert failure(data).code == "corrupt"
    monkeypatch.setattr("processors.video_index.MAX_PACKETS", 8)
    assert failure(data).code == "too_large"


@pytest.mark.parametrize("indices", [[-1], [10], [3, 2], [0, 10]])
def test_indices_that_name_no_frames_in_order(clips: ClipMaker, indices: list[int]) -> None:
    path = clips.make("h264.mp4", *PATTERN, *X264)
    reader = VideoReader(path.read_bytes(), max_pixels=MAX_PIXELS)
    with pytest.raises(ValueError, match=r"indices must ascend within 0..9, got \["):
        reader.frames(indices)
    with pytest.raises(ValueError, match=r"indices must ascend within 0..9, got \["):
        reader.timestamps(indices)


def test_mapped_files_are_read_in_place(clips: ClipMaker) -> None:
    path = clips.make("h264.mp4", *PATTERN, *X264)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        view = memoryview(mapped)
        reader = VideoReader(view, max_pixels=MAX_PIXELS)
        frames = np.stack([frame.copy() for frame in reader.frames(range(10))])
        reader.close()
        view.release()
    np.testing.assert_array_equal(frames, read(path))


NOTHING_OPENS = """
import os, resource, sys
from processors.media import warm_up
from processors.video_reader import VideoReader

clips = [open(path, "rb").read() for path in sys.argv[1:]]
warm_up()
modules = set(sys.modules)
tasks = len(os.listdir("/proc/self/task"))
free = os.open("/dev/null", os.O_RDONLY)
os.close(free)
limit = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (free, limit[1]))
try:
    open("/dev/null")
    raise SystemExit("files can be opened")
except OSError:
    pass
readers = [VideoReader(clip, max_pixels=2**20) for clip in clips]
for reader in readers:
    assert len(list(reader.frames([0, 5, 9]))) == 3
resource.setrlimit(resource.RLIMIT_NOFILE, limit)
print(sorted(set(sys.modules) - modules), len(os.listdir("/proc/self/task")) - tasks)
"""


def test_decoding_opens_and_imports_nothing_and_starts_no_thread(clips: ClipMaker) -> None:
    made = CODECS | CONTAINERS
    paths = [clips.make(name, *PATTERN, *options) for name, options in made.items()]
    command = [sys.executable, "-c", NOTHING_OPENS, *map(str, paths)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert (done.stdout, done.stderr) == ("[] 0\n", "")
