"""What a file is by its first bytes. Its name and its declared media type are never asked."""

from __future__ import annotations

from typing import Final, Literal

ImageFormat = Literal["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]
"""The formats that are decoded, by Pillow's names for them."""

VideoFormat = Literal["ASF", "AVI", "FLV", "MP4", "MPEG-PS", "MPEG-TS", "Matroska"]
"""The containers that are opened. MP4 stands for its whole family: MOV, M4V, 3GP; Matroska for
WebM too, ASF for WMV."""

SNIFFED_BYTES: Final = 2048
"""How much of a file's beginning is looked at."""

_IMAGE_MAGIC: Final[tuple[tuple[bytes, ImageFormat], ...]] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),  # BigTIFF
    (b"MM\x00+", "TIFF"),
    (b"BM", "BMP"),
)

_VIDEO_MAGIC: Final[tuple[tuple[bytes, VideoFormat], ...]] = (
    (b"\x1aE\xdf\xa3", "Matroska"),
    (b"FLV\x01", "FLV"),
    (b"\x00\x00\x01\xba", "MPEG-PS"),
    (b"0&\xb2u\x8ef\xcf\x11", "ASF"),
)
_MP4_BOXES: Final = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
# Packets, and where in them the sync byte is: plain, with a Blu-ray timecode in front, with
# parity behind.
_TS_PACKETS: Final = ((188, 0), (192, 4), (204, 0))
_TS_SYNC: Final = 0x47

_VIDEO_DESCRIPTIONS: Final[dict[VideoFormat, str]] = {
    "ASF": "a Windows Media file (ASF)",
    "AVI": "an AVI video",
    "FLV": "a Flash video (FLV)",
    "MP4": "an MP4 or QuickTime video",
    "MPEG-PS": "an MPEG program stream",
    "MPEG-TS": "an MPEG transport stream",
    "Matroska": "a Matroska or WebM video",
}

# What people really have in their buckets between the pictures. Only for the error message.
_OTHER_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF", "a PDF document"),
    (b"\x00\x00\x01\xb3", "an MPEG video stream without a container"),
    (b"#EXTM3U", "a playlist (M3U)"),
    (b"ffconcat", "a list of files (ffconcat)"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"8BPS", "a Photoshop document"),
    (b"\x00\x00\x01\x00", "an icon (ICO)"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"version https://git-lfs", "a Git LFS pointer: the file itself was not fetched"),
)
_HEIF_BRANDS: Final = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_AVIF_BRANDS: Final = (b"avif", b"avis")


def sniff_image_format(data: bytes | memoryview) -> ImageFormat | None:
    """Names the image format that ``data`` starts like, or None if it is none that is decoded."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    head = bytes(data[:16])
    return next((name for magic, name in _IMAGE_MAGIC if head.startswith(magic)), None)


def sniff_video_format(data: bytes) -> VideoFormat | None:
    """Names the container that ``data`` starts like, or None if it is none that is opened."""
    if data[:4] == b"RIFF" and data[8:12] == b"AVI ":
        return "AVI"
    if data[4:8] in _MP4_BOXES and not _is_still(data):
        return "MP4"
    for magic, name in _VIDEO_MAGIC:
        if data.startswith(magic):
            return name
    return "MPEG-TS" if _is_transport_stream(data) else None


def _is_still(data: bytes) -> bool:
    return data[4:8] == b"ftyp" and data[8:12] in (*_HEIF_BRANDS, *_AVIF_BRANDS)


def _is_transport_stream(data: bytes) -> bool:
    for size, sync in _TS_PACKETS:
        found = data[sync : sync + 5 * size : size]
        if len(found) > 1 and set(found) == {_TS_SYNC}:
            return True
    # A recording may begin within a packet; then more evidence is asked for.
    columns = (data[start : 10 * 188 : 188] for start in range(188))
    return any(len(found) > 8 and set(found) == {_TS_SYNC} for found in columns)


def describe_content(data: bytes | memoryview) -> str:
    """Says what ``data`` looks like, for the message that refuses it; a guess, never a parse."""
    data = bytes(data[:SNIFFED_BYTES])
    for magic, description in _OTHER_MAGIC:
        if data.startswith(magic):
            return description
    video_format = sniff_video_format(data)
    if video_format is not None:
        return _VIDEO_DESCRIPTIONS[video_format]
    if _is_still(data):
        return "a HEIC/HEIF image" if data[8:12] in _HEIF_BRANDS else "an AVIF image"
    if data[:4] == b"RIFF":
        return "a RIFF file that is no WebP"
    head = data[:512].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith(b"<"):
        return "XML or HTML"
    if head.isascii() and not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "text"
    return f"unknown content that starts with {data[:8].hex(' ')}"
