"""Photos and clips that are broken, each with the code of its error."""

from __future__ import annotations

import io
import random
import zlib

import pytest

from tests.support.clips import PATTERN, ClipMaker, real_clip
from tests.support.photos import Collection

SINE = ("-f", "lavfi", "-i", "sine=duration=0.4")
COVER = (
    "-map",
    "0",
    "-map",
    "1",
    "-frames:v",
    1,
    "-c:v",
    "mjpeg",
    "-disposition:v",
    "attached_pic",
)
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nhttp://127.0.0.1:9/clip.ts\n"


@pytest.fixture(scope="session")
def broken(clips: ClipMaker, collection: Collection) -> dict[str, tuple[bytes, str]]:
    """Contents and error codes by file name; nothing in them harms a decoder."""
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 50, "-an", "-vf", "scale=96:-2", "-g", 10)

    def made(name: str, *arguments: object) -> bytes:
        return clips.make(f"broken-{name}", *arguments).read_bytes()

    whole = made("whole.mp4", *source, "-c:v", "libx264")
    return {
        "audio only.mp4": (made("audio.mp4", *SINE), "no_video_stream"),
        "bomb.png": (_bomb(), "too_large"),
        "clip.jpg": (whole, "unsupported_format"),
        "cover art only.mp4": (made("cover.mp4", *SINE, *PATTERN, *COVER), "no_video_stream"),
        "cut.jpg": (_cut(collection.cut(".jpg")), "truncated"),
        "cut.mp4": (_cut(whole), "truncated"),
        "damaged.mkv": (_damaged(made("whole.mkv", *source, "-c:v", "libx265")), "truncated"),
        "empty.webm": (b"", "empty"),
        "no frames.mp4": (_no_frames(), "truncated"),
        "playlist.mp4": (PLAYLIST, "unsupported_format"),
        "strip.png": (_strip(), "aspect_ratio"),
        "text.mov": (b"This was never a clip.\n" * 40, "unsupported_format"),
    }


def _cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


def _damaged(data: bytes) -> bytes:
    start = len(data) * 6 // 10
    return data[:start] + random.Random(1).randbytes(2000) + data[start + 2000 :]


def _no_frames() -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format="mp4", options={"movflags": "empty_moov"}) as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()
    return file.getvalue()


def _strip() -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (600, 2), "teal").save(file, "PNG")
    return file.getvalue()


def _bomb() -> bytes:
    """A picture that says that it is huge."""
    from PIL import Image

    file = io.BytesIO()
    Image.new("1", (1, 1)).save(file, "PNG")
    data = bytearray(file.getvalue())
    data[16:24] = 2 * (30_000).to_bytes(4, "big")
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)
