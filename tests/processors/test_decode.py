from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import ExifTags, Image

from processors import DecodeError, ErrorCode, decode_image
from processors.rgb import pil_to_rgb

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")


def pattern(height: int = 24, width: int = 40) -> np.ndarray:
    """Flat blocks of colour, so that lossy formats stay close."""
    blocks = np.random.default_rng(3).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    return blocks.repeat(8, axis=0).repeat(8, axis=1)


def encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def failure(data: bytes, **options: Any) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode_image(data, **options)
    assert caught.value.code in get_args(ErrorCode)
    assert caught.value.message.isprintable()
    assert 0 < len(caught.value.message) <= 200
    return caught.value


@pytest.mark.parametrize("image_format", FORMATS)
def test_formats(image_format: str) -> None:
    image = Image.fromarray(pattern())
    decoded = decode_image(encode(image, image_format))
    assert decoded.format == image_format
    assert (decoded.height, decoded.width) == (24, 40)
    assert decoded.pixels.dtype == np.uint8
    assert decoded.pixels.flags.c_contiguous
    assert decoded.pixels.flags.writeable
    if image_format in ("PNG", "BMP", "TIFF", "GIF"):
        np.testing.assert_array_equal(decoded.pixels, pattern())
    else:
        assert np.abs(decoded.pixels.astype(int) - pattern()).mean() < 16


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
    ],
)
def test_orientation(image_format: str, options: dict[str, Any]) -> None:
    upright = pattern()
    # What a camera stores for each orientation, and so the inverse of what is to be applied.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    for orientation, pixels in stored.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        image = Image.fromarray(np.ascontiguousarray(pixels))
        decoded = decode_image(encode(image, image_format, exif=exif, **options))
        assert (decoded.height, decoded.width) == upright.shape[:2]
        difference = np.abs(decoded.pixels.astype(int) - upright).max()
        assert difference <= (8 if image_format == "JPEG" else 0), orientation


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_want_of_memory_for_exif_is_not_taken_for_broken_exif(
    image_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(image: Image.Image) -> Image.Exif:
        raise MemoryError

    data = encode(Image.fromarray(pattern()), image_format)
    monkeypatch.setattr(Image.Image, "getexif", no_memory)
    with pytest.raises(DecodeError) as caught:
        decode_image(data)
    assert caught.value.code == "decoder_out_of_memory"


def test_broken_exif_counts_as_none() -> None:
    data = encode(Image.fromarray(pattern()), "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff nothing")
    np.testing.assert_array_equal(decode_image(data).pixels, pattern())


def half_transparent(mode: str) -> Image.Image:
    """A dark grey square, the left half of which is transparent."""
    image = Image.new("LA", (8, 4), (60, 255))
    image.paste((60, 0), (0, 0, 4, 4))
    return image.convert(mode)


def palette_with_transparency() -> Image.Image:
    image = Image.new("P", (8, 4), 1)
    image.putpalette([10, 20, 30, 60, 60, 60])
    image.paste(0, (0, 0, 4, 4))
    image.info["transparency"] = 0
    return image


@pytest.mark.parametrize(
    ("image", "image_format"),
    [
        (half_transparent("RGBA"), "PNG"),
        (half_transparent("LA"), "PNG"),
        (half_transparent("RGBA"), "TIFF"),
        (palette_with_transparency(), "PNG"),
        (palette_with_transparency(), "GIF"),
    ],
)
def test_transparency_is_on_white(image: Image.Image, image_format: str) -> None:
    pixels = decode_image(encode(image, image_format)).pixels
    assert (pixels[:, :4] == 255).all()
    assert (pixels[:, 4:] == 60).all()


def test_transparent_colour_keys() -> None:
    grey = Image.new("L", (4, 4), 7)
    grey.paste(60, (0, 0, 2, 4))
    pixels = decode_image(encode(grey, "PNG", transparency=7)).pixels
    assert (pixels[:, 2:] == 255).all()
    assert (pixels[:, :2] == 60).all()
    wide = Image.fromarray(np.array([[257 * 60, 7]], np.uint16))
    assert decode_image(encode(wide, "PNG", transparency=7)).pixels[0, :, 0].tolist() == [60, 255]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "GIF"])
def test_bilevel_and_grey(image_format: str) -> None:
    bilevel = Image.new("1", (9, 4), 1)
    bilevel.putpixel((0, 0), 0)
    pixels = decode_image(encode(bilevel, image_format)).pixels
    assert pixels[0, 0].tolist() == [0, 0, 0]
    assert (pixels.sum(axis=2) == 0).sum() == 1
    grey = pattern()[..., 0]
    pixels = decode_image(encode(Image.fromarray(grey), image_format)).pixels
    np.testing.assert_array_equal(pixels, np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize("image_format", ["JPEG", "TIFF"])
def test_cmyk(image_format: str) -> None:
    # Pillow writes JPEG as Adobe does, inverted, and has to turn it back.
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    pixels = decode_image(encode(image, image_format)).pixels
    assert np.abs(pixels.astype(int) - [255, 0, 0]).max() <= 2


def test_ycbcr_tiff() -> None:
    image = Image.fromarray(pattern()).convert("YCbCr")
    pixels = decode_image(encode(image, "TIFF")).pixels
    np.testing.assert_array_equal(pixels, np.array(image.convert("RGB")))


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled(image_format: str) -> None:
    values = np.array([[0, 128, 129, 32768, 65535]], np.uint16)
    pixels = decode_image(encode(Image.fromarray(values), image_format)).pixels
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 128, 255]


def make_tiff(values: np.ndarray, *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """A little-endian, uncompressed, single-strip grey TIFF."""
    height, width = values.shape
    raw = values.astype(values.dtype.newbyteorder("<")).tobytes()
    tags = {
        256: width,
        257: height,
        258: values.dtype.itemsize * 8,
        259: 1,
        262: photometric,
        273: 8,
        277: 1,
        278: height,
        279: len(raw),
        339: sample_format,
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8 + len(raw)) + raw + directory


def test_wide_tiff_samples_are_scaled_by_their_type() -> None:
    signed = make_tiff(np.array([[-5, 0, 16384, 32767]], np.int16), sample_format=2)
    assert decode_image(signed).pixels[0, :, 0].tolist() == [0, 0, 128, 255]
    wide = make_tiff(np.array([[0, 2**31, 2**32 - 1]], np.uint32))
    assert decode_image(wide).pixels[0, :, 0].tolist() == [0, 128, 255]
    inverted = make_tiff(np.array([[0, 65535]], np.uint16), photometric=0)
    assert decode_image(inverted).pixels[0, :, 0].tolist() == [255, 0]


def test_float_and_lab_tiff_are_unsupported() -> None:
    error = failure(encode(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"))
    assert error.code == "unsupported_format"
    assert "mode F are not supported: floating point has no level that is white" in error.message
    assert failure(encode(Image.new("LAB", (4, 4)), "TIFF")).code == "unsupported_format"


def test_sixteen_bit_colour_png_keeps_the_high_byte() -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        check = zlib.crc32(kind + body)
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", check)

    header = struct.pack(">IIBBBBB", 1, 1, 16, 2, 0, 0, 0)
    pixel = b"\0" + struct.pack(">HHH", 0x12FF, 0x8000, 0xFFFF)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixel))
    pixels = decode_image(data + chunk(b"IEND", b"")).pixels
    assert pixels[0, 0].tolist() == [0x12, 0x80, 0xFF]


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_of_several_images_counts(image_format: str) -> None:
    first, second = Image.new("RGB", (16, 8), (200, 0, 0)), Image.new("RGB", (16, 8), (0, 0, 200))
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encode(first, image_format, save_all=True, append_images=[second], **options)
    assert (decode_image(data).pixels == [200, 0, 0]).all()


def test_multi_picture_jpeg_is_its_first_picture() -> None:
    first, second = Image.new("RGB", (16, 8), (200, 0, 0)), Image.new("RGB", (32, 8), (0, 0, 200))
    data = encode(first, "MPO", save_all=True, append_images=[second])
    decoded = decode_image(data)
    assert decoded.format == "JPEG"
    assert (decoded.height, decoded.width) == (8, 16)
    assert np.abs(decoded.pixels.astype(int) - [200, 0, 0]).max() <= 2


@pytest.mark.parametrize(
    ("image_format", "options"),
    [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("GIF", {}),
    ],
)
def test_cut_files_are_truncated(image_format: str, options: dict[str, Any]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    data = encode(Image.fromarray(noise), image_format, **options)
    for kept in (12, 20, 40, len(data) // 10, len(data) // 2, len(data) - 30):
        assert failure(data[:kept]).code == "truncated", kept


def test_cut_tiff_strips_are_truncated() -> None:
    # With the directory in front and the strip behind, the decoder itself meets the end.
    noise = np.random.default_rng(0).integers(0, 256, (60, 80), dtype=np.uint8)
    packed = zlib.compress(noise.tobytes())
    tags = {256: 80, 257: 60, 258: 8, 259: 8, 262: 1, 273: 200, 277: 1, 278: 60, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + struct.pack("<I", 0)
    data = head.ljust(200, b"\0") + packed
    np.testing.assert_array_equal(decode_image(data).pixels[..., 0], noise)
    assert failure(data[:-100]).code == "truncated"


def test_broken_files_are_corrupt() -> None:
    data = bytearray(encode(Image.fromarray(pattern()), "PNG"))
    start = data.index(b"IDAT") + 4
    data[start : start + 20] = b"x" * 20
    assert failure(bytes(data)).code == "corrupt"
    assert failure(b"GIF89a\x00\x00\x00\x00\x00\x00\x00;").code == "corrupt"


def test_random_damage_never_escapes_as_another_exception() -> None:
    random = np.random.default_rng(0)
    for image_format in FORMATS:
        whole = encode(Image.fromarray(pattern()), image_format)
        for _ in range(60):
            data = bytearray(whole)
            for place in random.integers(0, min(len(data), 400), 4):
                data[place] = random.integers(0, 256)
            try:
                decode_image(bytes(data), max_pixels=100_000)
            except DecodeError as error:
                assert error.code in get_args(ErrorCode)


@pytest.mark.parametrize(
    ("data", "looks_like"),
    [
        (b"just some text\n", "found text"),
        (b"<!DOCTYPE html><html>404</html>", "found an HTML page"),
        (b"\n <HTML><body>", "found an HTML page"),
        (b"<?xml version='1.0'?><svg xmlns='...'/>", "found an SVG drawing"),
        (b"<Error><Code>AccessDenied</Code></Error>", "found XML or HTML"),
        (b"%PDF-1.7", "found a PDF document"),
        (b"\0\0\0\x18ftypisom", "found an MP4 or QuickTime video"),
        (b"\0\0\0\x18ftypheic", "found a HEIC/HEIF image"),
        (b"\0\0\0\x18ftypavif", "found an AVIF image"),
        (b"RIFF\0\0\0\0AVI LIST", "found an AVI video"),
        (b"RIFF\0\0\0\0WAVE", "found a RIFF file that is no WebP"),
        (b"version https://git-lfs.github.com/spec/v1", "found a Git LFS pointer"),
        (b"\x80\x81\x82", "found unknown content that starts with 80 81 82"),
    ],
)
def test_what_is_no_image_is_described(data: bytes, looks_like: str) -> None:
    error = failure(data)
    assert error.code == "unsupported_format"
    assert looks_like in error.message


@pytest.mark.parametrize("image_format", ["PPM", "ICO", "TGA", "JPEG2000", "AVIF"])
def test_parsers_off_the_list_are_never_reached(image_format: str) -> None:
    assert failure(encode(Image.new("RGB", (16, 16)), image_format)).code == "unsupported_format"


def test_no_bytes() -> None:
    assert failure(b"").code == "empty"


@pytest.mark.parametrize("image_format", FORMATS)
def test_the_limit_is_on_the_header(image_format: str) -> None:
    data = encode(Image.new("RGB", (50, 40)), image_format)
    assert decode_image(data, max_pixels=2000).width == 50
    error = failure(data, max_pixels=1999)
    assert error.code == "too_large"
    assert error.message == "50 x 40 is 2000 pixels, over the limit of 1999"


def test_bombs_are_refused_before_they_are_decoded() -> None:
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    body = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    error = failure(data)
    assert error.code == "too_large"
    assert "100000 x 100000 is 10000000000 pixels" in error.message
    # WebP states its size in 14 bits a side, and Pillow has a limit of its own there.
    big = bytearray(encode(Image.new("RGB", (16, 16)), "WEBP"))
    place = big.index(b"\x9d\x01\x2a") + 3
    big[place : place + 4] = struct.pack("<HH", 16383, 16383)
    assert failure(bytes(big)).code in ("too_large", "corrupt")


def test_a_compression_that_pillow_does_not_know_is_unsupported() -> None:
    data = bytearray(make_tiff(np.zeros((4, 4), np.uint8)))
    place = data.index(struct.pack("<HHLL", 259, 4, 1, 1)) + 8
    data[place : place + 4] = struct.pack("<L", 34712)  # JPEG 2000
    error = failure(bytes(data))
    assert (error.code, error.message) == ("unsupported_format", "TIFF: 34712")


def test_images_of_several_strips_are_converted_as_if_of_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    levels = np.random.default_rng(5).integers(0, 256, (23, 17, 4), dtype=np.uint8)
    colours = Image.fromarray(levels, "RGBA")
    grey = Image.fromarray(levels[..., 0].astype(np.uint16) * 257)
    images = [colours.convert(mode) for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr")]
    images += [grey, grey.convert("I"), *(image.copy() for image in (images[2], grey))]
    images[-2].info["transparency"], images[-1].info["transparency"] = bytes(256), 257
    at_once = [pil_to_rgb(image) for image in images]
    monkeypatch.setattr("processors.rgb._STRIP_PIXELS", 17 * 4)
    for image, expected in zip(images, at_once, strict=True):
        np.testing.assert_array_equal(pil_to_rgb(image), expected)


@pytest.mark.parametrize("max_pixels", [0, -1])
def test_the_limit_must_be_positive(max_pixels: int) -> None:
    with pytest.raises(ValueError, match=f"at least 1, got {max_pixels}"):
        decode_image(b"", max_pixels=max_pixels)


def test_out_of_memory_has_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Image.Image) -> None:
        raise MemoryError

    data = encode(Image.new("RGB", (8, 8)), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    error = failure(data)
    assert error.code == "decoder_out_of_memory"
    assert error.message == "PNG: MemoryError"


def test_messages_are_one_printable_line_and_errors_travel() -> None:
    error = DecodeError("corrupt", "a\x1b[31m\nb\u202e\ud800 " + "c" * 300)
    assert error.message.startswith("a [31m b ccc")
    assert error.message.isprintable()
    assert len(error.message) == 200
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.code, copy.message) == (error.code, error.message)
    assert str(copy) == f"corrupt: {error.message}"


def test_threads_with_different_limits() -> None:
    data = encode(Image.fromarray(pattern()), "PNG")

    def decode(limit: int) -> str:
        try:
            return decode_image(data, max_pixels=limit).format
        except DecodeError as error:
            return error.code

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(decode, [959, 960] * 100))
    assert results == ["too_large", "PNG"] * 100


def test_photos_decode_as_pillow_reads_them(photos: list[Path]) -> None:
    for path in photos:
        with Image.open(path) as image:
            rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        expected = np.array(Image.alpha_composite(white, rgba).convert("RGB"))
        np.testing.assert_array_equal(decode_image(path.read_bytes()).pixels, expected)


def test_decoding_needs_no_torch() -> None:
    script = (
        "import sys; from processors import DecodeError, ImageOptions, decode_image, patchify; "
        "assert 'torch' not in sys.modules; import processors; "
        "assert all(hasattr(processors, name) for name in processors.__all__); "
        "assert not {'transformers', 'torchvision', 'ray', 'encoder'} & set(sys.modules)"
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=root, check=True)
