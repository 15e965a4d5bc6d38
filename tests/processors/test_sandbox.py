"""The decoder process with files that do it no harm."""

from __future__ import annotations

import errno
import gc
import io
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import psutil
import pytest
from PIL import ExifTags, Image

from processors import DecodeError, ImageOptions, decode_image
from processors.media import MediaInfo, MediaOptions, open_media
from processors.sampling import VideoSampling
from processors.sandbox import MAX_FRAMES, Decoder, DecoderLimits, SandboxError
from tests.processors.hostile_template import clip_info, pixels
from tests.support.clips import PATTERN, X264, ClipMaker
from tests.support.scripts import run

OPTIONS = MediaOptions(sampling=VideoSampling(max_frames=MAX_FRAMES))


class OddDecoder(Decoder):
    _template_module = "tests.processors.hostile_template"

    def __init__(
        self,
        *,
        limits: DecoderLimits | None = None,
        options: MediaOptions = OPTIONS,
    ) -> None:
        super().__init__(limits=limits, options=options)


@pytest.fixture(scope="module")
def decoder() -> Iterator[Decoder]:
    with OddDecoder() as decoder:
        yield decoder


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def noise(mode: str = "RGB", size: tuple[int, int] = (61, 47)) -> Image.Image:
    levels = np.random.default_rng(3).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    return Image.fromarray(levels, "RGBA").convert(mode)


def read(decoder: Decoder, data: bytes) -> tuple[MediaInfo, list[np.ndarray]]:
    with decoder.submit(data) as decoding:
        return decoding.info(), [frame.copy() for frame in decoding.frames()]


def assert_decoded(decoder: Decoder, data: bytes) -> None:
    expected = decode_image(data).pixels
    info, frames = read(decoder, data)
    assert info == MediaInfo(kind="image", height=expected.shape[0], width=expected.shape[1])
    assert len(frames) == 1
    np.testing.assert_array_equal(frames[0], expected)


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[274] = orientation
    return tags


@pytest.mark.parametrize(
    ("mode", "image_format", "options"),
    [
        *[("RGB", name, {}) for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")],
        *[("L", name, {}) for name in ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")],
        *[("RGBA", name, {}) for name in ("PNG", "WEBP", "TIFF", "GIF")],
        *[("P", name, {}) for name in ("PNG", "BMP", "TIFF", "GIF")],
        *[("1", name, {}) for name in ("PNG", "BMP", "TIFF", "GIF")],
        ("P", "PNG", {"transparency": 3}),
        ("LA", "PNG", {}),
        ("I;16", "PNG", {}),
        ("I;16", "TIFF", {}),
        ("CMYK", "JPEG", {}),
        ("CMYK", "TIFF", {}),
        ("RGB", "JPEG", {"progressive": True, "exif": exif(6)}),
        ("RGB", "PNG", {"exif": exif(8)}),
        ("RGB", "WEBP", {"lossless": True, "exif": exif(3)}),
        ("1", "TIFF", {"compression": "group4"}),
        *[
            ("RGB", "TIFF", {"compression": name})
            for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma")
        ],
        ("RGB", "GIF", {"save_all": True, "append_images": [noise()]}),
        ("RGB", "WEBP", {"save_all": True, "append_images": [noise()]}),
        ("RGB", "PNG", {"save_all": True, "append_images": [noise()]}),
    ],
)
def test_every_kind_of_picture_is_what_it_is_without_a_process(
    decoder: Decoder, mode: str, image_format: str, options: dict[str, Any]
) -> None:
    image = noise("L").convert("I").convert("I;16") if mode == "I;16" else noise(mode)
    assert_decoded(decoder, encode(image, image_format, **options))


def test_real_photos_are_what_they_are_without_a_process(
    decoder: Decoder, photos: list[Path], goldens: Path
) -> None:
    for photo in [*photos, *sorted(goldens.glob("*.png"))]:
        assert_decoded(decoder, photo.read_bytes())


@pytest.mark.parametrize("orientation", [1, 8])
def test_a_reduced_picture_is_what_it_is_without_a_process(orientation: int) -> None:
    options = MediaOptions(reduce_for=ImageOptions(min_pixels=1, max_pixels=2 * 60 * 60))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    data = encode(noise(size=(241, 199)), "JPEG", exif=exif)
    expected = open_media(data, options)
    with OddDecoder(options=options) as decoder:
        info, (found,) = read(decoder, data)
    assert info == expected.info
    assert sorted((info.height, info.width)) == [199, 241]
    assert sorted(found.shape[:2]) == [50, 61]
    np.testing.assert_array_equal(found, next(expected.frames))


def test_a_clip_with_sound_subtitles_and_attachments_is_what_it_is_without_a_process(
    decoder: Decoder, clips: ClipMaker
) -> None:
    text = clips.folder / "words.srt"
    text.write_text("1\n00:00:00,000 --> 00:00:00,200\nwords\n")
    inputs = (*PATTERN, "-f", "lavfi", "-i", "sine=duration=0.4", "-i", text)
    attached = ("-attach", text, "-metadata:s:t", "mimetype=text/plain")
    data = clips.make("with all.mkv", *inputs, *X264, *attached).read_bytes()
    media = open_media(data, OPTIONS)
    expected = media.info, [frame.copy() for frame in media.frames]
    np.testing.assert_equal(read(decoder, data), expected)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (encode(noise(), "JPEG")[:400], "truncated"),
        (encode(noise(), "PNG").replace(b"IDAT", b"IDAT\xff"), "corrupt"),
    ],
)
def test_an_error_is_what_it_is_without_a_process(decoder: Decoder, data: bytes, code: str) -> None:
    with pytest.raises(DecodeError) as expected:
        decode_image(data)
    with pytest.raises(DecodeError) as caught:
        read(decoder, data)
    assert caught.value.args == expected.value.args
    assert (caught.value.code, caught.value.attempts) == (code, 1)


def test_the_next_file_is_decoded_while_the_last_one_is_worked_on(decoder: Decoder) -> None:
    now = decoder.submit(b"HOSTILE sleep 0.2")
    assert next(now.frames()).max() == 10
    ahead = decoder.submit(b"HOSTILE sleep 0.2")
    time.sleep(0.4)
    now.close()
    began = time.monotonic()
    assert ahead.info().kind == "image"
    assert time.monotonic() - began < 0.1
    ahead.close()


def test_two_files_are_outstanding_at_most(decoder: Decoder) -> None:
    first, second = decoder.submit(b"HOSTILE large_clip 2 8"), decoder.submit(b"HOSTILE sleep 0")
    with pytest.raises(RuntimeError, match="2 files are outstanding"):
        decoder.submit(b"")
    assert [frame.max() for frame in first.frames()] == [0, 10]
    third = decoder.submit(encode(noise(), "PNG"))
    assert [frame.max() for frame in second.frames()] == [10]
    np.testing.assert_array_equal(next(third.frames()), np.asarray(noise()))
    third.close()


def test_a_clip_gives_frame_after_frame_and_waits_for_who_looks_at_them(decoder: Decoder) -> None:
    with decoder.submit(b"HOSTILE promise 50 50") as clip:
        assert clip.info() == clip_info(50)
        for number, frame in enumerate(clip.frames()):
            time.sleep(0.002)
            np.testing.assert_array_equal(frame, pixels(number))


def test_frames_are_views_of_shared_memory_that_torch_takes(decoder: Decoder) -> None:
    with decoder.submit(encode(noise(), "PNG")) as decoding:
        (frame,) = decoding.frames()
        assert not frame.flags.owndata
        assert frame.flags.writeable  # torch.from_numpy warns otherwise
        assert frame.flags.c_contiguous


@pytest.mark.parametrize("looked_at", [0, 1, 3])
def test_a_file_that_is_abandoned_disturbs_no_other(decoder: Decoder, looked_at: int) -> None:
    good = encode(noise(), "PNG")
    clip, after = decoder.submit(b"HOSTILE promise 6 6"), decoder.submit(good)
    for number, _ in zip(range(looked_at), clip.frames(), strict=False):
        assert number < looked_at
    clip.close()
    (frame,) = after.frames()
    np.testing.assert_array_equal(frame, np.asarray(noise()))
    assert after.attempts == 1
    with pytest.raises(RuntimeError, match="closed"):
        next(clip.frames())


def test_asking_for_a_later_file_closes_the_earlier_one(decoder: Decoder) -> None:
    clip, after = decoder.submit(b"HOSTILE promise 6 6"), decoder.submit(encode(noise(), "PNG"))
    next(clip.frames())
    np.testing.assert_array_equal(next(after.frames()), np.asarray(noise()))
    after.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(clip.frames())


def test_closing_a_later_file_leaves_the_earlier_one_as_it_is(decoder: Decoder) -> None:
    clip, after = decoder.submit(b"HOSTILE promise 6 6"), decoder.submit(b"HOSTILE sleep 0")
    first = next(clip.frames()).max()
    after.close()
    assert [first, *(frame.max() for frame in clip.frames())] == [0, 10, 20, 30, 40, 50]


def test_memory_of_a_large_item_is_given_back() -> None:
    def held() -> int:
        return sum(512 * os.fstat(fd).st_blocks for fd in decoder._memory.fds)

    with OddDecoder() as decoder:
        with decoder.submit(b"HOSTILE large_clip 1 5000".ljust(40 * 2**20)) as clip:
            next(clip.frames())
            assert held() > 100 * 2**20
            for frame in clip.frames():
                del frame
        assert held() <= 64 * 2**20


def test_sizes_are_bounded() -> None:
    with OddDecoder(
        options=MediaOptions(max_pixels=24), limits=DecoderLimits(max_file_bytes=1000)
    ) as decoder:
        with pytest.raises(ValueError, match="max_file_bytes is 1000, got 1001"):
            decoder.submit(bytes(1001))
        with pytest.raises(DecodeError) as caught:
            read(decoder, encode(Image.new("L", (5, 5)), "PNG"))
        assert caught.value.code == "too_large"
        assert_decoded(decoder, encode(Image.new("L", (4, 6)), "PNG"))


@pytest.mark.parametrize("name", ["timeout_s", "memory_bytes", "max_file_bytes"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        DecoderLimits(**{name: 0})


def test_more_frames_than_a_message_holds_are_refused() -> None:
    options = MediaOptions(sampling=VideoSampling(max_frames=4097))
    with pytest.raises(ValueError, match="4096 frames of a clip are the most, got 4098"):
        Decoder(options=options)


def test_two_decoders_work_at_once() -> None:
    files = [encode(noise(size=(40 + number, 30)), "PNG") for number in range(8)]
    with OddDecoder() as one, OddDecoder() as two:
        for first, second in zip(files, reversed(files), strict=True):
            outstanding = [one.submit(first), two.submit(second)]
            for decoding, data in zip(outstanding, (first, second), strict=True):
                (frame,) = decoding.frames()
                np.testing.assert_array_equal(frame, decode_image(data).pixels)


def test_a_decoder_outlives_the_thread_that_made_it() -> None:
    made: list[Decoder] = []
    idle = threading.Event()
    threads = [threading.Thread(target=idle.wait) for _ in range(20)]
    for thread in threads:
        thread.start()
    maker = threading.Thread(target=lambda: made.append(OddDecoder()))
    maker.start()
    maker.join()
    with made[0] as decoder:
        child = decoder._supervisor.child
        assert child is not None
        time.sleep(0.1)
        assert_decoded(decoder, encode(noise(), "PNG"))
        assert psutil.pid_exists(child.pid)
    idle.set()


def test_nothing_is_left_behind_after_many_files_and_deaths() -> None:
    def held(decoder: Decoder) -> tuple[int, ...]:
        (template,) = {*this.children()} - {*others}
        (child,) = template.children()
        return (this.num_fds(), template.num_fds(), child.num_fds(), len(this.memory_maps()))

    this = psutil.Process()
    others = this.children()
    gc.collect()  # of what other tests have left
    before = this.num_fds(), this.children(recursive=True)
    with OddDecoder() as decoder:
        good = encode(noise(), "PNG")
        assert_decoded(decoder, good)
        start = held(decoder)
        for number in range(500):
            if number % 50 == 0:
                with pytest.raises(DecodeError):
                    read(decoder, b"HOSTILE touch_nothing")
            with decoder.submit(good) as decoding:
                assert sum(1 for _ in decoding.frames()) == 1
        # Fewer, where a connection of another test's has ended meanwhile.
        assert all(now <= then for now, then in zip(held(decoder), start, strict=True))
    assert this.num_fds() <= before[0]
    assert this.children(recursive=True) == before[1]


def test_a_file_that_was_never_begun_is_not_outstanding() -> None:
    with OddDecoder() as decoder:
        begun = decoder.submit(b"HOSTILE sleep 60")
        supervisor = decoder._supervisor
        assert supervisor._template is not None
        supervisor._template._process.kill()
        supervisor._template_module = "tests.processors.no_such_template"
        begun.close()
        for _ in range(3):
            with pytest.raises(SandboxError, match="No module named tests"):
                decoder.submit(b"HOSTILE sleep 0")
        supervisor._template_module = OddDecoder._template_module
        assert_decoded(decoder, encode(noise(), "PNG"))


_PLACE = """
import os
from pathlib import Path
import psutil
os.nice(7)
from processors.media import MediaOptions
from processors.sandbox import Decoder
with Decoder(options=MediaOptions()):
    (template,) = psutil.Process().children()
    print(template.nice(), Path(f"/proc/{template.pid}/autogroup").read_text().split()[-1])
"""


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="the kernel has none")
def test_a_session_of_its_own_gives_it_no_more_of_a_core() -> None:
    ended = run(_PLACE)
    assert (ended.returncode, ended.stdout) == (0, "7 7\n"), ended.stderr


def test_a_process_is_replaced_after_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def process() -> int:
        assert decoder._supervisor.child is not None
        return decoder._supervisor.child.pid

    monkeypatch.setattr("processors.sandbox.decoder._FILES", 3)
    good = encode(noise(), "PNG")
    with OddDecoder() as decoder:
        processes = []
        for _ in range(7):
            assert_decoded(decoder, good)
            processes.append(process())
        first, second, third = dict.fromkeys(processes)
        assert processes == [first] * 3 + [second] * 3 + [third]
        before = decoder.submit(good)
        for _ in range(4):  # never while one is outstanding
            after = decoder.submit(good)
            np.testing.assert_array_equal(next(before.frames()), np.asarray(noise()))
            before.close()
            before = after
        assert process() == third
        assert (before.attempts, next(before.frames()).shape) == (1, (47, 61, 3))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("tests.processors.no_such_template", "No module named tests.processors.no_such_template"),
        ("tests.processors.failing_template", "no memory for this child"),
    ],
)
def test_processes_that_cannot_be_started_are_nobodys_fault(module: str, reason: str) -> None:
    class LostDecoder(Decoder):
        _template_module = module

    check_that_none_starts(LostDecoder, reason)


def test_want_of_processes_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def none_left(*command: Any, **options: Any) -> NoReturn:
        asked.append(command)
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr("processors.sandbox.processes.subprocess.Popen", none_left)
    check_that_none_starts(Decoder, "it cannot be had: Resource temporarily unavailable")
    assert len(asked) == 3


def check_that_none_starts(kind: type[Decoder], reason: str) -> None:
    this = psutil.Process()
    gc.collect()  # of what other tests have left
    before = this.num_fds(), this.children()
    with pytest.raises(SandboxError, match="decoder processes cannot be started: ") as caught:
        kind()
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
    assert this.num_fds() <= before[0]
    assert this.children() == before[1]
