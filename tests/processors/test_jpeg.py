"""JPEG pictures decoded in their place are those that Pillow decodes, or are left to it."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image

from processors import DecodeError, ImageOptions, decode, decode_image
from processors.jpeg import decode_jpeg
from tests.support.jpeg_bombs import jpeg_of

# libjpeg-turbo's arithmetic coding, of which Pillow reads but writes none: 33 x 21 pixels.
ARITHMETIC = base64.b85decode(
    "|JeWF01!$>Nk#wx0RR9200961|JwjV01XKW3knDg3knMk4h;_zAQcl55)&sJ9v2`kDKRiEDJ?8BI!Zn>HbyrrEkI"
    "X6ModmpQ&KWMT47pHU`kO^PygEhLjevB4iga*CKVMXPc<zyPft%zPft%zPft%zPft%zPft%zPft%zPft%zPft%zP"
    "ft%zPft%zPft%zPft%zPf!2J01*fP6#yXv0U`hb5di}c0sqVZ3IGrg1pyEd1^?Or3<CiG0ucid06zfu)WVX`89;g"
    "q3sqI32%`He$y?7i#o@ou?F7>R78WUi-jdvEwQ{5)<{ij#*6QqZO+uYd4#b=v=a$BQkoDA%!ewo}xbyt<8arB8lj"
    "DRoW1&WYX?ylJTO7gRft&N^qMlfuuAS?zcI~LY+@5O^5aa;)e{^`v)eTG;ZeC*+l2JIgDNENuV;S+vUrq3~0a=J#"
    "**`b!oSyb>*7l#76_V1ZnFdB=fTl|D90QNhm!c5_i<9RKX*)=3tX&NC+Hi`qFL1k_pS;-l?~E1C`Lo<Uuw!tChOl"
    "gZ9-Am00S#^V0B(+;r_*4?o%ROp@mJ(=1tgW2zsyE%yr`Mv7P3^lfvBMuDO?s4cThC4LaWw9*dp0n(k%1>N?KoYg"
    ")M#5b%x&lglAw@<QNqqs1I6!1L#Se2yHq4*#"
)
SAMPLINGS = ("444", "422", "420", "440", "411", "GRAY")
Outcome = tuple[str, bytes] | str


@pytest.fixture(scope="module")
def photo(photos: list[Path]) -> Image.Image:
    return Image.open(photos[0]).convert("RGB").resize((240, 240))


@pytest.fixture(scope="module")
def jpeg(photo: Image.Image) -> bytes:
    return encode(photo.crop((0, 0, 61, 43)))


def encode(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90} | options)
    return file.getvalue()


def turned(image: Image.Image, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encode(image, exif=exif)


def outcome(data: bytes) -> Outcome:
    try:
        pixels = decode_image(data).pixels
    except DecodeError as error:
        return error.code
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    return f"{pixels.shape}", pixels.tobytes()


def outcome_of_pillow(data: bytes) -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode, "decode_jpeg", lambda *_, **__: None)
        return outcome(data)


def is_left_to_pillow(data: bytes) -> bool:
    with decode.open_picture(data, max_pixels=10**7) as image:
        return decode_jpeg(data, image) is None


def assert_in_place(data: bytes) -> None:
    assert not is_left_to_pillow(data)
    assert outcome(data) == outcome_of_pillow(data)


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_every_sampling_and_odd_size_gives_the_same_pixels(
    photo: Image.Image, sampling: str
) -> None:
    for width, height in ((1, 1), (1, 40), (7, 9), (8, 8), (16, 17), (33, 31), (240, 2)):
        pixels = np.ascontiguousarray(photo.crop((0, 0, width, height)))
        if sampling == "GRAY":
            data = simplejpeg.encode_jpeg(pixels[..., :1].copy(), 90, "GRAY", "GRAY")
        else:
            data = simplejpeg.encode_jpeg(pixels, 90, "RGB", sampling)
        assert_in_place(data)


@pytest.mark.parametrize(
    "options",
    [
        {"progressive": True},
        {"progressive": True, "subsampling": "4:2:0", "quality": 30},
        {"optimize": True},
        {"restart_marker_rows": 1},
        {"restart_marker_blocks": 3},
        {"keep_rgb": True},
        {"quality": 1},
        {"quality": 100, "subsampling": 0},
    ],
)
def test_every_way_to_write_one_gives_the_same_pixels(
    photo: Image.Image, options: dict[str, Any]
) -> None:
    assert_in_place(encode(photo.crop((0, 0, 61, 43)), **options))
    assert_in_place(encode(photo.convert("L"), **options | {"subsampling": 0, "keep_rgb": False}))


def test_what_is_rarely_made_is_left_to_pillow(jpeg: bytes) -> None:
    lossless = jpeg.replace(b"\xff\xc0", b"\xff\xc3")
    filled = jpeg[:2] + b"\xff" + jpeg[2:]
    # To libjpeg a marker alone, after which a lossless frame could be hidden from a careless look.
    alone = jpeg[:2] + b"\xff\x01" + jpeg[2:]
    unsized = jpeg[:2] + b"\xff\xfe\0\0" + jpeg[2:]
    without = jpeg[:2] + b"\xff\xe0\0\2\xff"
    for data in (ARITHMETIC, lossless, filled, alone, unsized, without):
        with decode.open_picture(jpeg, max_pixels=10**6) as header:
            assert decode_jpeg(data, header) is None
        assert outcome(data) == outcome_of_pillow(data)


@pytest.mark.parametrize("transform", [0, 1, 2])
def test_colours_are_what_adobes_marker_says(photo: Image.Image, transform: int) -> None:
    marker = b"\xff\xee\x00\x0eAdobe" + bytes([0, 100, 0, 0, 0, 0, transform])
    data = encode(photo)
    plain = data[:2] + data[4 + int.from_bytes(data[4:6], "big") :]  # without JFIF's marker
    data = plain[:2] + marker + plain[2:]
    assert outcome(data) == outcome_of_pillow(data)
    assert is_left_to_pillow(data) == (transform == 2)  # which says nothing of three colours


@pytest.mark.parametrize("orientation", range(10))
def test_a_picture_is_turned_as_it_says(photo: Image.Image, orientation: int) -> None:
    image = photo.crop((0, 0, 61, 43))
    data = turned(image, orientation)
    assert_in_place(data)
    with Image.open(io.BytesIO(data)) as opened:
        transpose = {
            2: Image.Transpose.FLIP_LEFT_RIGHT,
            3: Image.Transpose.ROTATE_180,
            4: Image.Transpose.FLIP_TOP_BOTTOM,
            5: Image.Transpose.TRANSPOSE,
            6: Image.Transpose.ROTATE_270,
            7: Image.Transpose.TRANSVERSE,
            8: Image.Transpose.ROTATE_90,
        }.get(orientation)
        expected = opened.transpose(transpose) if transpose is not None else opened
        np.testing.assert_array_equal(decode_image(data).pixels, np.array(expected))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("budget", "factor"), [(60 * 60, 4), (110 * 110, 2), (200 * 200, 1)])
def test_a_picture_is_reduced_for_what_resizes_it(
    photo: Image.Image, orientation: int, budget: int, factor: int
) -> None:
    smooth = photo.resize((6, 6)).resize((239, 221), Image.Resampling.BICUBIC)
    data = turned(smooth, orientation)
    options = ImageOptions(min_pixels=1, max_pixels=2 * budget)
    whole, reduced = decode_image(data), decode_image(data, reduce_for=options)
    size = whole.pixels.shape[:2]
    assert (reduced.height, reduced.width) == (whole.height, whole.width) == size
    assert reduced.pixels.shape[:2] == tuple(-(-side // factor) for side in size)
    # What is left of a block's cosine transform is about the mean of its pixels.
    small = Image.fromarray(whole.pixels).resize(reduced.pixels.shape[1::-1], Image.Resampling.BOX)
    error = np.abs(reduced.pixels.astype(int) - np.asarray(small)).mean()
    assert 0 < error < 2 if factor > 1 else error == 0


def test_what_pillow_decodes_is_not_reduced(photo: Image.Image) -> None:
    options = ImageOptions(min_pixels=1, max_pixels=2)
    for data in (encode(photo.convert("CMYK")), ARITHMETIC, encode(photo)[:-2]):
        decoded = decode_image(data, reduce_for=options)
        assert decoded.pixels.shape[:2] == (decoded.height, decoded.width)
        np.testing.assert_array_equal(decoded.pixels, decode_image(data).pixels)


def test_print_colours_are_left_to_pillow(photo: Image.Image) -> None:
    data = encode(photo.convert("CMYK"))
    assert is_left_to_pillow(data)
    assert outcome(data) == outcome_of_pillow(data)


def test_a_file_too_small_for_its_pixels_is_left_to_pillow() -> None:
    data = jpeg_of(2000, 2000)
    assert is_left_to_pillow(data)
    assert outcome(data) == outcome_of_pillow(data)


def test_what_follows_the_picture_does_not_count(jpeg: bytes) -> None:
    assert_in_place(jpeg + jpeg)
    assert_in_place(jpeg + b"\xff" * 40)


def test_a_file_that_ends_too_early_is_left_to_pillow(jpeg: bytes) -> None:
    for size in (*range(20, len(jpeg) - 2, 23), len(jpeg) - 2, len(jpeg) - 1):
        assert outcome(jpeg[:size]) == outcome_of_pillow(jpeg[:size])
    assert is_left_to_pillow(jpeg[: len(jpeg) // 2])


@given(st.data())
def test_a_damaged_file_comes_to_what_pillow_makes_of_it(jpeg: bytes, data: st.DataObject) -> None:
    damaged = bytearray(jpeg)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(2, len(jpeg) - 1))] = data.draw(st.integers(0, 255))
    assert outcome(bytes(damaged)) == outcome_of_pillow(bytes(damaged))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_pixels_go_where_there_is_room_for_them(photo: Image.Image, orientation: int) -> None:
    asked: list[np.ndarray] = []

    def room(height: int, width: int) -> np.ndarray:
        asked.append(np.zeros((height, width, 3), np.uint8))
        return asked[-1]

    data = turned(photo.crop((0, 0, 61, 43)), orientation)
    pixels = decode_image(data, room=room).pixels
    assert len(asked) == 1
    assert pixels is asked[0]
    np.testing.assert_array_equal(pixels, decode_image(data).pixels)


def test_a_picture_for_which_there_is_no_room_is_left_to_pillow(jpeg: bytes) -> None:
    def room(height: int, width: int) -> np.ndarray:
        raise MemoryError

    np.testing.assert_array_equal(decode_image(jpeg, room=room).pixels, decode_image(jpeg).pixels)


def test_a_header_of_another_size_is_left_to_pillow(jpeg: bytes, photo: Image.Image) -> None:
    for other in ((60, 43), (61, 44)):
        with decode.open_picture(encode(photo.resize(other)), max_pixels=10**6) as image:
            assert decode_jpeg(jpeg, image) is None
