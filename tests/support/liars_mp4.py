"""MP4 files that lie, in their headers, their sample tables and the boxes around them."""

from __future__ import annotations

from tests.support.isobmff import (
    MDAT_AT,
    Liars,
    box,
    compressed,
    full_box,
    hdlr,
    mdhd,
    movie,
    mvhd,
    stsd,
    stsz,
    table,
    tkhd,
    trak,
    u32,
    u64,
)

MOST = 2**32 - 1


def mp4_liars(pictures: list[bytes]) -> Liars:
    """Of ten pictures as JPEG; told in no time."""
    return {
        f"{name}.mov": liar
        for made in (_headers, _times, _sizes, _places, _boxes, _few_bytes)
        for name, liar in made(pictures).items()
    }


def mp4_bombs(pictures: list[bytes]) -> Liars:
    """Those that take seconds."""
    edits = full_box(b"elst", u32(10**7), 10**7 * u32(1000, 0, 1 << 16))
    over, under = 2**21 + 1, 2**21
    return {
        "samples over.mov": (_at_one_place(pictures, over), "too_large"),
        "samples over, packed.mov": (compressed(_at_one_place(pictures, over)), "too_large"),
        "samples under.mov": (_at_one_place(pictures, under), None),
        "samples of nothing.mov": (compressed(_of_nothing(pictures, 30_000_000)), "too_large"),
        "edits.mov": (compressed(movie(pictures, edts=box(b"edts", edits))), "decode_timeout"),
        "zeros, packed.mov": (compressed(movie(pictures) + box(b"free", bytes(2**29))), None),
        "boxes of nothing.mov": (movie(pictures) + 10**6 * box(b"free"), None),
    }


def _headers(pictures: list[bytes]) -> Liars:
    """What headers say is not asked where the frames themselves say it."""
    corrupt = {
        # FFmpeg takes pictures so much smaller than was said for fields of them.
        "entry of 640 x 480": {"stsd": stsd(b"jpeg", 640, 480)},
        "entry of 16000 x 16000": {"stsd": stsd(b"jpeg", 16_000, 16_000)},
        "no samples by time": {"stts": table(b"stts")},
    }
    harmless = {
        "honest": {},
        "track of no size": {"tkhd": tkhd(0, 0)},
        "track of huge size": {"tkhd": tkhd(2**16 - 1, 2**16 - 1)},
        "entry of no size": {"stsd": stsd(b"jpeg", 0, 0)},
        "entry of huge size": {"stsd": stsd(b"jpeg", 2**15 - 1, 2**15 - 1)},
        "entry of negative size": {"stsd": stsd(b"jpeg", -64, -48)},
        "track of no time": {"mdhd": mdhd(0)},
        "track of no scale": {"mdhd": mdhd(1000, 0)},
        "track of negative scale": {"mdhd": mdhd(1000, -1)},
        "track of a century": {"mdhd": mdhd(MOST)},
        "movie of no time": {"head": mvhd(0)},
        "movie of no scale": {"head": mvhd(1000, 0)},
        "movie of a century": {"head": mvhd(MOST, 1)},
    }
    return {
        **{name: (movie(pictures, **given), "corrupt") for name, given in corrupt.items()},
        **{name: (movie(pictures, **given), None) for name, given in harmless.items()},
    }


def _times(pictures: list[bytes]) -> Liars:
    def lying(*rows: tuple[int, int], scale: int = 10_000, **boxes: bytes) -> bytes:
        return movie(pictures, mdhd=mdhd(10_000, scale), stts=table(b"stts", *rows), **boxes)

    whole = (10, 1000)
    edit = box(b"edts", full_box(b"elst", u32(1, MOST, 0, 1 << 16)))
    empties = box(b"edts", full_box(b"elst", u32(1000), 1000 * u32(2**31 - 1, -1, 1 << 16)))
    return {
        "0 fps": (lying((10, 0)), None),
        "2 million fps": (lying(whole, scale=2**31 - 1), None),
        "negative fps": (lying((10, -1000)), None),
        "a frame in 17 minutes": (lying(whole, scale=1), None),
        "a frame in 25 days": (lying((10, 2**31 - 1), scale=1000), "too_large"),
        "a frame in 68 years": (lying((10, 2**31 - 1), scale=1), "corrupt"),
        "time goes back": (lying((5, 1000), (5, -1000)), None),
        "time of one": (lying((1, 1000)), None),
        "times of 2^31": (lying((2**31 - 1, 1000)), None),
        "display late": (lying(whole, ctts=table(b"ctts", (10, 2**31 - 1))), None),
        "display early": (lying(whole, ctts=table(b"ctts", (10, -(2**31)), version=1)), None),
        "display of 2^32": (lying(whole, ctts=table(b"ctts", (MOST, 0))), None),
        "edit of the end": (lying(whole, edts=edit), None),
        "edits of nothing": (lying(whole, edts=empties), "corrupt"),
    }


def _sizes(pictures: list[bytes]) -> Liars:
    sizes = [len(picture) for picture in pictures]
    liars: dict[str, tuple[bytes, str | None]] = {
        "no samples": (stsz(), "corrupt"),
        "fewer samples": (stsz(*sizes[:5]), None),
        "more samples": (stsz(*sizes, *sizes), None),
        "most samples": (stsz(*sizes, count=MOST), "corrupt"),
        "samples of nothing": (stsz(*[0] * 10), "corrupt"),
        "samples of 2 GiB": (stsz(each=2**31 - 1, count=10), "corrupt"),
    }
    return {name: (movie(pictures, stsz=size), code) for name, (size, code) in liars.items()}


def _places(pictures: list[bytes]) -> Liars:
    outside, same = [(2**31,)] * 10, [(MDAT_AT,)] * 10
    beyond, before = (full_box(b"co64", u32(10), 10 * u64(at)) for at in (2**63 - 1, -1))
    one_size = stsz(each=len(pictures[0]), count=10)
    liars: dict[str, tuple[dict[str, bytes], str | None]] = {
        "no chunks": ({"stco": b""}, "corrupt"),
        "no samples in chunks": ({"stsc": table(b"stsc")}, "corrupt"),
        "0 samples a chunk": ({"stsc": table(b"stsc", (0, 0, 0))}, None),
        "2^32 samples a chunk": ({"stsc": table(b"stsc", (1, MOST, 1))}, None),
        "chunks backwards": ({"stsc": table(b"stsc", (3, 1, 1), (1, 1, 1))}, None),
        "chunks outside": ({"stco": table(b"stco", *outside)}, "corrupt"),
        "chunks beyond 2^63": ({"stco": beyond}, "corrupt"),
        "chunks before the file": ({"stco": before}, None),
        "all at one place": ({"stco": table(b"stco", *same), "stsz": one_size}, None),
    }
    return {name: (movie(pictures, **boxes), code) for name, (boxes, code) in liars.items()}


def _boxes(pictures: list[bytes]) -> Liars:
    clip = movie(pictures)
    moov = clip.index(b"moov") - 4
    head, index = clip[:moov], clip[moov:]

    def nested(kind: bytes, inner: bytes = b"", depth: int = 100_000) -> bytes:
        sizes = range(len(inner) + 8 * depth, len(inner), -8)
        return b"".join(u32(size) + kind for size in sizes) + inner

    def before_index(size: int, large: bytes = b"") -> bytes:
        return head + u32(size) + b"free" + large + index

    return {
        "moov in moov": (head + nested(b"moov", index), "corrupt"),
        "trak in trak": (head + box(b"moov", nested(b"trak")), "no_video_stream"),
        "udta in udta": (clip + nested(b"udta"), "corrupt"),
        "moov 100 times": (clip + 100 * index, None),
        "packed twice": (compressed(compressed(clip)), None),
        "packed 4 GiB": (_packed_said_to_be_4_gib(clip), "decoder_out_of_memory"),
        # These hide the index, as in a file that ends before it.
        "box to the end": (before_index(0), "truncated"),
        "box of size 1 and 0": (before_index(1, u64(0)), "truncated"),
        "box of size 2^63": (before_index(1, u64(2**63)), "truncated"),
        "box of size 2^64": (before_index(1, u64(-1)), "truncated"),
        "moov of size 2^63": (head + u32(1) + b"moov" + u64(2**63 - 1) + index[8:], None),
    }


def _packed_said_to_be_4_gib(clip: bytes) -> bytes:
    packed = compressed(clip)
    size = packed.index(b"cmvd") + 4
    return packed[:size] + u32(MOST) + packed[size + 4 :]


def _few_bytes(pictures: list[bytes]) -> Liars:
    sizes = [len(picture) for picture in pictures]
    track, sound = trak(sizes), trak(sizes, hdlr=hdlr(b"soun"))

    def edits(count: int, said: int) -> bytes:
        rows = count * u32(1000, 0, 1 << 16)
        return movie(pictures, edts=box(b"edts", full_box(b"elst", u32(said), rows)))

    def of_one_chunk(count: int, each: int) -> bytes:
        chunk = {"stsc": table(b"stsc", (1, count, 1)), "stco": table(b"stco", (MDAT_AT,))}
        return movie(pictures, stsz=stsz(each=each, count=count), **chunk)

    # A table of 2^32 rows is made room for before it is read.
    rows = movie(pictures, stts=table(b"stts", (10, 1000), count=MOST))
    return {
        "2^32 rows of times": (rows, "decoder_out_of_memory"),
        "2^31 samples": (of_one_chunk(2**31 - 1, 1), "corrupt"),
        "50 million samples": (of_one_chunk(50_000_000, 1), "corrupt"),
        "10^9 edits": (edits(1, 10**9), None),
        "15,000 edits": (compressed(edits(15_000, 15_000)), "too_large"),
        "300 tracks": (movie(pictures, *[track] * 300), None),
        "10,000 tracks": (movie(pictures, *[track] * 10_000), "too_large"),
        "10,000 tracks of sound": (movie(pictures, track, *[sound] * 9999), "too_large"),
    }


def _at_one_place(pictures: list[bytes], count: int) -> bytes:
    """At 200 a second, so that it is not too long."""
    places = full_box(b"stco", u32(count), count * u32(MDAT_AT))
    times = table(b"stts", (count, 50))
    return movie(pictures, stsz=stsz(each=len(pictures[0]), count=count), stts=times, stco=places)


def _of_nothing(pictures: list[bytes], count: int) -> bytes:
    return movie(
        pictures,
        stsz=full_box(b"stsz", u32(0, count), bytes(4 * count)),
        stsc=table(b"stsc", (1, count, 1)),
        stts=table(b"stts", (count, 100)),
        stco=table(b"stco", (MDAT_AT,)),
    )
