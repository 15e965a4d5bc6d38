"""What a file is by its first bytes. Its name and its declared media type are never asked."""

from __future__ import annotations

from typing import Final, Literal

ImageFormat = Literal["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"]
"""The formats that are decoded, by Pillow's names for them."""

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

# What people really have in their buckets between the pictures. Only for the error message.
_OTHER_MAGIC: Final[tuple[tuple[bytes, str], ...]] = (
    (b"%PDF", "a PDF document"),
    (b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
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


def sniff_image_format(data: bytes | memoryview) -> ImageFormat | None:
    """Names the image format that ``data`` starts like, or None if it is none that is decoded."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    head = bytes(data[:16])
    return next((name for magic, name in _IMAGE_MAGIC if head.startswith(magic)), None)


def describe_content(data: bytes | memoryview) -> str:
    """Says what ``data`` looks like, for the message that refuses it; a guess, never a parse."""
    data = bytes(data[:512])
    for magic, description in _OTHER_MAGIC:
        if data.startswith(magic):
            return description
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        if brand in _HEIF_BRANDS:
            return "a HEIC/HEIF image"
        return "an AVIF image" if brand in (b"avif", b"avis") else "an MP4 or QuickTime video"
    if data[:4] == b"RIFF":
        return "an AVI video" if data[8:12] == b"AVI " else "a RIFF file that is no WebP"
    head = data.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if head.startswith((b"<!doctype html", b"<html")):
        return "an HTML page"
    if b"<svg" in head:
        return "an SVG drawing"
    if head.startswith(b"<"):
        return "XML or HTML"
    if head.isascii() and not any(byte < 9 or 13 < byte < 32 for byte in head):
        return "text"
    return f"unknown content that starts with {data[:8].hex(' ')}"
