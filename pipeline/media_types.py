"""What a file is by its name."""

from __future__ import annotations

from pipeline.location import suffix

IMAGE_SUFFIXES = frozenset(
    [
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".png",
        ".apng",
        ".webp",
        ".bmp",
        ".dib",
        ".tif",
        ".tiff",
        ".gif",
    ]
)
VIDEO_SUFFIXES = frozenset(
    [
        ".mp4",
        ".m4v",
        ".mov",
        ".mkv",
        ".webm",
        ".avi",
        ".ts",
        ".mts",
        ".m2ts",
        ".mpg",
        ".mpeg",
        ".wmv",
        ".flv",
        ".3gp",
    ]
)


def media_type(uri: str) -> str | None:
    """`image` or `video` by the name's suffix, None for neither."""
    kind = suffix(uri)
    if kind in IMAGE_SUFFIXES:
        return "image"
    return "video" if kind in VIDEO_SUFFIXES else None
