from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from typing import Any, cast

import av
import numpy as np
import pytest
from PIL import Image

from processors.errors import DecodeError
from processors.media import MediaInfo, MediaOptions, _open_clip, open_media, warm_up
from processors.metadata import VideoMetadata
from processors.sampling import VideoSampling
from tests.support.clips import PATTERN, X264, ClipMaker

COLOURS = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 90)]


class Chosen:
    """A sampling that always chooses the same."""

    def __init__(self, *indices: int) -> None:
        self._indices = indices
        self.seen: list[VideoMetadata] = []

    def indices(self, metadata: VideoMetadata) -> np.ndarray:
        self.seen.append(metadata)
        return np.array(self._indices, np.int64)


class Refusing:
    def indices(self, metadata: VideoMetadata) -> np.ndarray:
        raise ValueError(f"fps must be positive, got {metadata.fps}")


def options(sampling: Any = None, **given: Any) -> MediaOptions:
    return MediaOptions(sampling=cast("VideoSampling | None", sampling), **given)


def encode(image_format: str, frames: Sequence[Image.Image], **given: Any) -> bytes:
    file = io.BytesIO()
    given = {"save_all": True, "append_images": frames[1:]} | given if len(frames) > 1 else given
    frames[0].save(file, image_format, **given)
    return file.getvalue()


def animation(image_format: str, durations_ms: Sequence[int] = (100, 200, 300, 400)) -> bytes:
    """Four flat frames."""
    frames = [Image.new("RGB", (16, 8), colour) for colour in COLOURS]
    lossless = {"lossless": True} if image_format == "WEBP" else {}
    return encode(image_format, frames, duration=list(durations_ms), **lossless)


def failure(data: bytes, given: MediaOptions) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        for _ in open_media(data, given).frames:
            pass
    return caught.value


def test_a_picture() -> None:
    data = encode("PNG", [Image.new("RGB", (16, 8), COLOURS[0])])
    for given in (options(), options(Chosen(0)), options(Chosen(0), animated="video")):
        media = open_media(data, given)
        assert media.info == MediaInfo(kind="image", height=8, width=16)
        (pixels,) = media.frames
        assert (pixels == COLOURS[0]).all()
    (pixels,) = open_media(memoryview(data), options()).frames
    assert pixels.shape == (8, 16, 3)


def test_a_clip(clips: ClipMaker) -> None:
    path = clips.make("h264.mp4", *PATTERN, *X264)
    sampling = Chosen(0, 4, 8, 8)
    media = open_media(path.read_bytes(), options(sampling))
    assert media.info == MediaInfo(
        kind="video",
        height=48,
        width=64,
        total_num_frames=10,
        duration_s=0.4,
        indices=(0, 4, 8, 8),
        timestamps_s=(0, 0.16, 0.32, 0.32),
    )
    frames = np.stack([frame.copy() for frame in media.frames])
    np.testing.assert_array_equal(frames, clips.pixels(path)[[0, 4, 8, 8]])
    assert sampling.seen == [
        VideoMetadata(
            total_num_frames=10, fps=25, width=64, height=48, duration=0.4, video_backend="pyav"
        )
    ]


def test_clips_where_only_pictures_are_wanted(clips: ClipMaker) -> None:
    clip = clips.make("h264.mp4", *PATTERN, *X264).read_bytes()
    for data in (clip, animation("GIF")):
        error = failure(data, options(animated="video"))
        assert error.code == "unsupported_format"
        assert error.message == "it is a clip, and only pictures are wanted"


def test_what_gives_nothing_to_sample_by_is_corrupt(clips: ClipMaker) -> None:
    clip = clips.make("h264.mp4", *PATTERN, *X264).read_bytes()
    error = failure(clip, options(Refusing()))
    assert error.code == "corrupt"
    assert error.message == "no frames can be chosen: fps must be positive, got 25.0"
    assert failure(clip, options(Chosen(0, 10))).code == "corrupt"


class Timed:
    """A clip with times of its own."""

    def __init__(self, seconds: Sequence[float], duration: float | None) -> None:
        self.metadata = VideoMetadata(
            total_num_frames=len(seconds), fps=1.0, width=6, height=4, duration=duration
        )
        self.is_closed = False
        self._seconds = seconds

    def timestamps(self, indices: Sequence[int]) -> list[float]:
        return [self._seconds[index] for index in indices]

    def frames(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        return iter(())

    def close(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize(
    ("seconds", "duration"),
    [
        ((0.0, 1.1e9), 2.2e9),
        ((0.0, 1.0), 1.1e9),
        ((0.0, 1.0), -1.0),
        ((0.0, 1.0), float("nan")),
        ((0.0, float("inf")), None),
        ((0.0, float("nan")), None),
        ((-1.0, 0.0), None),
        ((1.0, 0.5), None),
    ],
)
def test_times_that_no_clip_has_are_corrupt(seconds: list[float], duration: float | None) -> None:
    reader = Timed(seconds, duration)
    with pytest.raises(DecodeError, match="corrupt: its times cannot be: ") as caught:
        _open_clip(reader, options(Chosen(0, 1)))
    assert caught.value.code == "corrupt"
    assert reader.is_closed
    for times, length in (((0.0, 0.0), 0.0), ((0.0, 1e9), None)):
        _open_clip(Timed(times, length), options(Chosen(0, 1)))


def test_a_file_with_wild_timestamps_is_corrupt() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuv420p"
        pictures = [stream.encode(av.VideoFrame(16, 16, "yuv420p")) for _ in range(4)]
        packets = [packet for encoded in (*pictures, stream.encode()) for packet in encoded]
        for packet in packets[2:]:
            packet.pts = packet.dts = packet.pts + 2 * 10**9 * 25
        container.mux(packets)
    error = failure(file.getvalue(), options(VideoSampling()))
    assert error.code == "corrupt"
    assert error.message.startswith("its times cannot be: ")


def test_what_is_neither() -> None:
    assert failure(b"", options(Chosen(0))).code == "empty"
    error = failure(b"plain text\n", options(Chosen(0)))
    assert error.code == "unsupported_format"
    assert error.message.endswith("or a video, found text")


def test_limits_hold_for_all_kinds(clips: ClipMaker) -> None:
    clip = clips.make("h264.mp4", *PATTERN, *X264).read_bytes()
    for data in (clip, animation("GIF"), animation("WEBP"), animation("PNG")):
        given = options(Chosen(0), animated="video", max_pixels=100)
        assert failure(data, given).code == "too_large"


@pytest.mark.parametrize(
    ("seconds", "duration", "lasts"),
    [((0.0, 4.9), 5.1, "5.1"), ((0.0, 5.1), None, "5.1"), ((0.0, 5.2), 4.0, "5.2")],
)
def test_what_lasts_too_long_is_too_large(
    seconds: list[float], duration: float | None, lasts: str
) -> None:
    reader = Timed(seconds, duration)
    with pytest.raises(DecodeError, match=f"it lasts {lasts} s, the limit is 5 s") as caught:
        _open_clip(reader, options(Chosen(0, 1), max_duration_s=5.0))
    assert caught.value.code == "too_large"
    assert reader.is_closed
    _open_clip(Timed((0.0, 5.0), 5.0), options(Chosen(0, 1), max_duration_s=5.0))


def test_a_real_clip_and_an_animation_may_last_as_long_as_the_limit(clips: ClipMaker) -> None:
    clip = clips.make("h264.mp4", *PATTERN, *X264).read_bytes()
    for data in (clip, animation("GIF"), animation("WEBP"), animation("PNG")):
        lasts = open_media(data, options(Chosen(0), animated="video")).info.duration_s
        assert lasts is not None
        at_limit = options(Chosen(0), animated="video", max_duration_s=lasts)
        assert open_media(data, at_limit).info.duration_s == lasts
        below = options(Chosen(0), animated="video", max_duration_s=lasts - 0.01)
        assert failure(data, below).code == "too_large"


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_its_first_frame_unless_it_is_to_be_a_clip(image_format: str) -> None:
    data = animation(image_format)
    media = open_media(data, options(Chosen(0)))
    assert media.info == MediaInfo(kind="image", height=8, width=16)
    assert [tuple(pixels[0, 0]) for pixels in media.frames] == [COLOURS[0]]

    # Four frames in a second: indices stand for 0, 1/4, 1/2 and 3/4 s. The frames begin at 0, 0.1,
    # 0.3 and 0.6 s.
    media = open_media(data, options(Chosen(0, 1, 2, 3), animated="video"))
    assert media.info == MediaInfo(
        kind="video",
        height=8,
        width=16,
        total_num_frames=4,
        duration_s=1,
        indices=(0, 1, 2, 3),
        timestamps_s=(0, 0.1, 0.3, 0.6),
    )
    assert [tuple(pixels[0, 0]) for pixels in media.frames] == COLOURS


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_animations_vary_in_rate(image_format: str) -> None:
    # At 0, 0.7, 0.8 and 0.9 s, for a second: the first frame is still on display at 1/4 and 1/2 s.
    data = animation(image_format, (700, 100, 100, 100))
    media = open_media(data, options(Chosen(0, 1, 2, 3, 3), animated="video"))
    assert media.info.timestamps_s == (0, 0, 0, 0.7, 0.7)
    colours = [tuple(pixels[0, 0]) for pixels in media.frames]
    assert colours == [COLOURS[0], COLOURS[0], COLOURS[0], COLOURS[1], COLOURS[1]]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_animations_are_composited_on_white(image_format: str) -> None:
    clear = Image.new("RGBA", (16, 8), (0, 0, 0, 0))
    frames = [clear.copy(), clear.copy()]
    for frame, colour, left in ((frames[0], (200, 0, 0), 0), (frames[1], (0, 0, 200), 8)):
        frame.paste((*colour, 255), (left, 0, left + 8, 8))
        # Or else the encoder crops the frame, and keeps no transparency.
        frame.putpixel((0, 7), (*colour, 255))
        frame.putpixel((15, 7), (*colour, 255))
    given = {"lossless": True} if image_format == "WEBP" else {"disposal": 2}
    data = encode(image_format, frames, duration=100, **given)
    media = open_media(data, options(Chosen(0, 1), animated="video"))
    seen = [(tuple(frame[0, 0]), tuple(frame[0, 15])) for frame in media.frames]
    white = (255, 255, 255)
    assert seen == [((200, 0, 0), white), (white, (0, 0, 200))]


def test_delays_that_no_one_could_see_count_as_in_browsers() -> None:
    for image_format in ("GIF", "WEBP"):
        data = animation(image_format, (10, 10, 0, 10))
        media = open_media(data, options(Chosen(0, 3), animated="video"))
        assert (media.info.duration_s, media.info.timestamps_s) == (0.4, (0, 0.3))


def test_a_picture_before_an_animated_png_is_no_frame_of_it() -> None:
    frames = [Image.new("RGB", (16, 8), colour) for colour in COLOURS]
    data = encode("PNG", frames, default_image=True, duration=100)
    media = open_media(data, options(Chosen(0, 1, 2), animated="video"))
    assert media.info.total_num_frames == 3
    assert [tuple(pixels[0, 0]) for pixels in media.frames] == COLOURS[1:]


@pytest.mark.parametrize("image_format", ["GIF", "WEBP", "PNG"])
def test_cut_animations_are_truncated(image_format: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (4, 40, 30, 3), dtype=np.uint8)
    data = encode(image_format, [Image.fromarray(pixels) for pixels in noise], duration=100)
    for kept in (len(data) // 3, len(data) * 2 // 3, len(data) - 30):
        error = failure(data[:kept], options(Chosen(0, 1, 2, 3), animated="video"))
        assert error.code == "truncated", (kept, error)


def test_warming_up_leaves_nothing_to_import() -> None:
    import subprocess
    import sys
    from pathlib import Path

    code = (
        "import sys\n"
        "from processors.media import warm_up\n"
        "warm_up()\n"
        "assert not {'torch', 'ray', 'skvideo'} & set(sys.modules)\n"
        "seen = set(sys.modules)\n"
        "warm_up()\n"
        "assert set(sys.modules) == seen"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)
    warm_up()
