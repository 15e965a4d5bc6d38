"""Pictures that strangers made to harm, each with the code of its error; None for harmless ones."""

from __future__ import annotations

import pytest

from tests.support import (
    animation_bombs,
    bmp_bombs,
    foreign_files,
    jpeg_bombs,
    png_bombs,
    tiff_bombs,
)

Bombs = dict[str, tuple[bytes, str | None]]
"""Contents and error codes by file name."""

SIDE = 13_000  # 169 megapixels, under the default limit


@pytest.fixture(scope="session")
def picture_bombs() -> Bombs:
    """What ends within a second or two each, where animations count as pictures."""
    return (
        bmp_bombs.bmp_bombs()
        | animation_bombs.gif_bombs()
        | animation_bombs.webp_bombs()
        | jpeg_bombs.jpeg_bombs()
        | png_bombs.png_bombs()
        | tiff_bombs.tiff_bombs()
        | foreign_files.foreign_files()
    )


@pytest.fixture(scope="session")
def animation_bombs_as_clips() -> Bombs:
    """What ends as quickly where animations count as clips."""
    return animation_bombs.animations()


@pytest.fixture(scope="session")
def endless_animations() -> Bombs:
    """Clips that only a timeout ends."""
    return animation_bombs.endless_animations()


@pytest.fixture(scope="session")
def large_picture_bombs() -> Bombs:
    """Small files of as many pixels as are allowed, or of very many pieces."""
    compressions = ("group4", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "lzma")
    made = {
        "grey.jpg": jpeg_bombs.jpeg_of(SIDE, SIDE),
        "in colour.jpg": jpeg_bombs.jpeg_of(SIDE, SIDE, planes=3),
        "100 scans.jpg": jpeg_bombs.many_scans(SIDE, 100),
        "bilevel.png": png_bombs.png_of(SIDE, SIDE),
        "of 16 bits.png": png_bombs.png_of(SIDE, SIDE, depth=16),
        "in colour.png": png_bombs.png_of(SIDE, SIDE, depth=8, in_colour=True),
        "1,000,000 chunks.png": png_bombs.tiny_chunks(b"teST", 1_000_000),
        "of row ends.bmp": bmp_bombs.run_length_bmp(SIDE),
        **{f"{name}.tif": tiff_bombs.tiff_of(SIDE, SIDE, name) for name in compressions},
    }
    # Their libraries keep more than the pixels.
    hungry = {
        "progressive.jpg": jpeg_bombs.refined_jpeg(SIDE, SIDE),
        "lossless.webp": animation_bombs.stretched_webp(SIDE),
        "canvas.webp": animation_bombs.webp_of(SIDE, frames=2),
    }
    found: Bombs = {name: (data, None) for name, data in made.items()}
    return found | {name: (data, "decoder_out_of_memory") for name, data in hungry.items()}
