"""Clips whose frames lie, or become far more than their bytes."""

from __future__ import annotations

import io
import zlib
from pathlib import Path

import av
from PIL import Image

from tests.support.clips import PATTERN, X264, ClipMaker
from tests.support.isobmff import MDAT_AT, Liars, movie, stsd, stsz, table, u16, u32

SMALL = (64, 48)
LARGEST = (16_000, 12_500)
"""As many pixels as a run allows."""
LARGER = (16_000, 16_000)
HUGE = (24_000, 24_000)
"""More than FFmpeg is allowed."""


def codec_liars(clips: ClipMaker, pictures: list[bytes]) -> Liars:
    """Of two pictures or more as JPEG; told in no time."""
    return {**_sizes(pictures), **_odd(clips), **_other(clips)}


def codec_bombs(clips: ClipMaker) -> Liars:
    """Those that take seconds."""
    small, grey = _png(SMALL), _png(LARGEST, "L")
    skips = clips.make("black.m4v", *BLACK).read_bytes()
    again = skips.rindex(b"\0\0\1\xb6")
    first, skipped = skips[:again], skips[again:]
    strip = u16(0x1000, 12, 0, 0, LARGEST[1], LARGEST[0])
    empty = b"\1" + (10 + len(strip)).to_bytes(3, "big") + u16(*LARGEST, 1) + strip
    return {
        "largest frame.mov": (_drawn(grey, size=LARGEST), None),
        "largest frame in colour.mov": (_drawn(_png(LARGEST, "RGB"), size=LARGEST), None),
        "largest frame, then small.mov": (_drawn(grey, *[small] * 20), None),
        "largest frames.mov": (
            _repeated(grey, grey, 640, b"png ", LARGEST),
            "decoder_out_of_memory",
        ),
        "large frames of nothing.mov": (_repeated(empty, empty, 2, b"cvid", LARGEST), None),
        "3 large frames skipped.mov": (_repeated(first, skipped, 2, b"mp4v", LARGE), None),
        "10,000 large frames skipped.mov": (
            _repeated(first, skipped, 10_000, b"mp4v", LARGE),
            "decode_timeout",
        ),
    }


LARGE = (8176, 8176)
"""The largest that MPEG-4 has."""
BLACK = (
    *("-f", "lavfi", "-i", "color=black:size=8176x8176:rate=2"),
    *("-frames:v", 2, "-c:v", "mpeg4", "-f", "m4v"),
)


def _png(size: tuple[int, int], mode: str = "1") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _png_of_nothing(size: tuple[int, int]) -> bytes:
    """A header, and the rows of a smaller one."""
    data = _png(SMALL)
    header = b"IHDR" + u32(*size) + data[24:29]
    return data[:12] + header + u32(zlib.crc32(header)) + data[33:]


def _drawn(*frames: bytes, size: tuple[int, int] = SMALL) -> bytes:
    return movie(frames, stsd=stsd(b"png ", *size))


def _repeated(first: bytes, again: bytes, times: int, codec: bytes, size: tuple[int, int]) -> bytes:
    """A frame, and one that follows it over and over, all of the same bytes; two a second."""
    places = [(MDAT_AT,), *[(MDAT_AT + len(first),)] * times]
    return movie(
        [first, again],
        stsd=stsd(codec, *size),
        stts=table(b"stts", (1 + times, 5000)),
        stsz=stsz(len(first), *[len(again)] * times),
        stco=table(b"stco", *places),
    )


def _sizes(pictures: list[bytes]) -> Liars:
    small, larger, nothing = _png(SMALL), _png(LARGER), _png_of_nothing(HUGE)
    lying = pictures[1].replace(u16(48, 64), u16(65_500, 65_500))
    raw = stsd(b"raw ", *LARGEST)
    modes = ("L", "RGB", "P", "RGBA", "1", "LA")
    liars: dict[str, tuple[bytes, str | None]] = {
        "larger frame": (_drawn(larger, size=LARGER), "too_large"),
        "larger frame that lies": (_drawn(larger), "too_large"),
        "huge frame": (_drawn(nothing, size=HUGE), "too_large"),
        "huge frame that lies": (_drawn(nothing), "corrupt"),
        "small frame, then larger": (_drawn(small, larger), "too_large"),
        "small frame, then huge": (_drawn(small, nothing), "truncated"),
        "frame of 65500 x 65500": (movie([pictures[0], lying]), "truncated"),
        "frames of one pixel": (_drawn(*[_png((1, 1))] * 2, size=(1, 1)), None),
        "frames of one row": (_drawn(*[_png((60_000, 1))] * 2, size=(30_000, 1)), None),
        "frames of one column": (_drawn(*[_png((1, 60_000))] * 2, size=(1, 30_000)), None),
        "colours change": (_drawn(*(_png(SMALL, mode) for mode in modes)), None),
        "raw frames of a byte": (_repeated(b"x", b"x", 5000, b"raw ", LARGEST), "corrupt"),
        "raw frame from outside": (
            movie([b"x"], stsd=raw, stsz=stsz(3 * LARGEST[0] * LARGEST[1])),
            "truncated",
        ),
    }
    return {f"{name}.mov": liar for name, liar in liars.items()}


def _odd(clips: ClipMaker) -> Liars:
    """Codecs and pixel formats that few have met."""
    formats = ("gbrp", "gbrp16le", "gbrap16le", "gray16le", "yuv444p16le", "rgb48le", "bgra")
    palette = "split[a][b];[a]palettegen[p];[b][p]paletteuse"
    odd = {f"{name}.mkv": ("-c:v", "ffv1", "-pix_fmt", name) for name in formats} | {
        "monob.mov": ("-c:v", "png", "-pix_fmt", "monob"),
        "pal8.mov": ("-vf", palette, "-c:v", "qtrle"),
        "rgba64.mov": ("-c:v", "png", "-pix_fmt", "rgba64be"),
        "rgb555.avi": ("-c:v", "rawvideo", "-pix_fmt", "rgb555le"),
        "v210.mov": ("-c:v", "v210", "-pix_fmt", "yuv422p10le"),
        "dv.avi": ("-s", "720x576", "-c:v", "dvvideo", "-pix_fmt", "yuv420p"),
        "cinepak.mov": ("-c:v", "cinepak"),
        "huffyuv.avi": ("-c:v", "huffyuv"),
    }
    # What has a decoder in FFmpeg, and none here.
    closed = {
        "jpeg2000.mov": ("-c:v", "jpeg2000", "-pix_fmt", "xyz12le"),
        "snow.mkv": ("-c:v", "snow", "-strict", "-2"),
        "zmbv.avi": ("-c:v", "zmbv"),
    }
    return {
        name: (
            clips.make(f"liar-{name}", *PATTERN, *options).read_bytes(),
            "unsupported_format" if name in closed else None,
        )
        for name, options in (odd | closed).items()
    }


def _spliced(header: Path, body: Path) -> bytes:
    """One clip's headers before another one's frames."""
    file = io.BytesIO()
    with av.open(header) as said, av.open(body) as held, av.open(file, "w", "mp4") as made:
        stream = made.add_stream_from_template(said.streams.video[0])
        for packet in held.demux(held.streams.video[0]):
            if packet.size:
                packet.stream = stream
                made.mux(packet)
    return file.getvalue()


def _other(clips: ClipMaker) -> Liars:
    def made(name: str, *options: object) -> bytes:
        return clips.make(f"liar-{name}", *PATTERN, *options).read_bytes()

    heic = made("heic.mp4", "-c:v", "libx265", "-x265-params", "log-level=error")
    keys = ("-encryption_key", "00" * 16, "-encryption_kid", "11" * 16)
    secret = ("-encryption_scheme", "cenc-aes-ctr", *keys)
    sizes = (made(f"{side}.ts", "-vf", f"scale={side}:{side}", *X264) for side in (32, 640, 16))
    small, large = (
        clips.make(f"liar-{side}.mp4", *PATTERN, "-vf", f"scale={side}:{side}", *X264)
        for side in (64, 640)
    )
    sequence = made("sequence.avif", "-c:v", "libsvtav1", "-preset", 12)
    return {
        "sequence.avif": (sequence, "unsupported_format"),
        "sequence.heic": (heic[:8] + b"msf1" + heic[12:], "unsupported_format"),
        "sequence of heic.mp4": (heic[:8] + b"hevc" + heic[12:], "unsupported_format"),
        "encrypted.mp4": (made("encrypted.mp4", *X264, *secret), "corrupt"),
        "said to be 640 x 640.mp4": (_spliced(large, small), "corrupt"),
        "said to be 64 x 64.mp4": (_spliced(small, large), "corrupt"),
        "sizes change.ts": (b"".join(sizes), None),
    }
