"""Mutants of real files: each ends as its pixels or as its own error, and disturbs no other.

A mutant is reproduced by its name: `pytest tests/faults/test_fuzzing.py -m "" -k png-palette-0217`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, get_args

import psutil
import pyarrow as pa
import pytest

from pipeline.build import nest
from pipeline.preprocess import Preprocess
from processors import DecodeError
from processors.media import MediaKind, MediaOptions
from processors.sampling import VideoSampling
from processors.sandbox import Decoder, DecoderLimits
from tests.faults.faulty_decoder import memory_files
from tests.faults.mutation import mutant
from tests.faults.originals import NAMES, SYNTAXES, make_originals, partner
from tests.support.clips import ClipMaker
from tests.support.photos import Collection
from tests.support.preprocessing import preprocess_config, whole

MUTANTS = 313  # of each of the sixteen files: 5,008
ALWAYS = 16
TIMEOUT_S = 10.0
MEMORY_BYTES = 2**29
MAX_PIXELS = 10**7
KINDS: tuple[MediaKind, ...] = get_args(MediaKind)

CODES = {"empty", "unsupported_format", "corrupt", "truncated", "too_large", "no_video_stream"}
LOSSES = ("decoder_crashed", "decode_timeout", "decoder_out_of_memory")
# What costs a process among the mutants below, and is told from what is new by standing here.
KNOWN = {"mp4-hevc-0272": "decoder_out_of_memory"}

WHERE = ("item_id", "uri", "version", "shard_row")

REGRESSIONS = Path(__file__).parent / "regressions"
# Small tables that state so many entries that FFmpeg asks for gigabytes to put them in.
EXPECTED = {
    "mp4 with 1.9 billion durations.mp4": "decoder_out_of_memory",
    "mp4 with 67 million time offsets.mp4": "decoder_out_of_memory",
}


def ids() -> Iterator[Any]:
    for name in NAMES:
        for number in range(MUTANTS):
            marks = [pytest.mark.whole] if number >= ALWAYS else []
            yield pytest.param(name, number, id=f"{name}-{number:04}", marks=marks)


@pytest.fixture(scope="module")
def originals(collection: Collection, clips: ClipMaker) -> dict[str, bytes]:
    return make_originals(collection.good[1], clips)


@pytest.fixture(scope="module")
def make(originals: dict[str, bytes]) -> Callable[[str, int], bytes]:
    """The bytes of a mutant."""

    def made(name: str, number: int) -> bytes:
        syntax = SYNTAXES[name.partition("-")[0]]
        return mutant(name, number, originals[name], originals[partner(name)], syntax)

    return made


def start(animated: MediaKind) -> Decoder:
    options = MediaOptions(sampling=VideoSampling(), animated=animated, max_pixels=MAX_PIXELS)
    limits = DecoderLimits(timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES)
    return Decoder(options=options, limits=limits)


@pytest.fixture(scope="module")
def decoders() -> Iterator[list[Decoder]]:
    with ExitStack() as stack:
        yield [stack.enter_context(start(kind)) for kind in KINDS]


@pytest.fixture(scope="module", params=KINDS)
def stage(request: pytest.FixtureRequest) -> Iterator[Preprocess]:
    """One for all blocks: what kills it fails every test after."""
    config = preprocess_config(
        animated=request.param,
        max_source_pixels=MAX_PIXELS,
        decode_timeout_s=TIMEOUT_S,
        decoder_memory_bytes=MEMORY_BYTES,
    )
    with closing(Preprocess(config)) as stage:
        yield stage


def outcome(decoder: Decoder, data: bytes) -> str | None:
    """The code of a file's error; None where all that it promises comes."""
    try:
        with decoder.submit(data) as decoding:
            shapes = [frame.shape for frame in decoding.frames()]
    except DecodeError as error:
        return error.code
    indices = decoding.info().indices
    assert len(shapes) == (1 if indices is None else len(indices))
    return None


@pytest.mark.parametrize(("name", "number"), list(ids()))
def test_a_mutant_is_decoded_or_refused(
    name: str, number: int, make, decoders: list[Decoder], score
) -> None:
    for decoder in decoders:
        code = outcome(decoder, make(name, number))
        assert code is None or code in CODES or code == KNOWN.get(f"{name}-{number:04}"), code


@pytest.fixture
def run(stage: Preprocess, manifest_rows, tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """The stage's rows for one block of files, called as the engine calls it."""

    def run(files: dict[str, bytes]) -> list[dict[str, Any]]:
        for name, data in files.items():
            (tmp_path / name).write_bytes(data)
        kinds = ["video" if name.startswith("m") else "image" for name in files]
        rows = manifest_rows([f"{tmp_path}/{name}" for name in files], media_type=kinds)
        out = whole(stage(nest(rows, [0, rows.num_rows])))
        assert out["uri"].to_pylist() == rows["uri"].to_pylist()
        return list(pa.Table.to_pylist(out))

    return run


def assert_terminal(row: dict[str, Any], score) -> None:
    """An error with a code of content, or patches that fill their grid."""
    code = row["error_code"]
    if code is None:
        t, h, w = row["grid_thw"]
        levels = 588 if row["num_frames"] is None else 2 * 588
        assert len(row["patches"]) == t * h * w * levels
        return
    name = Path(row["uri"]).name
    assert code in {*CODES, "aspect_ratio"} or code == KNOWN.get(name), (name, row["error_message"])
    assert (row["stage"], row["grid_thw"], row["patches"]) == ("preprocess", None, b"")
    score.kills += row["attempts"] if code in LOSSES else 0


@pytest.mark.parametrize(
    "numbers",
    [range(ALWAYS), pytest.param(range(ALWAYS, MUTANTS), marks=pytest.mark.whole)],
    ids=["some", "rest"],
)
@pytest.mark.parametrize("name", NAMES)
def test_mutants_cost_one_row_each_and_their_neighbours_nothing(
    name: str, numbers: range, originals: dict[str, bytes], make, run, score
) -> None:
    alone = {good: run({good: data})[0] for good, data in originals.items()}
    files = {}
    for number in numbers:
        files[f"{name}-{number:04}"] = make(name, number)
        if number % 2:  # After every second one, a good file; of all kinds in turn.
            good = NAMES[number // 2 % len(NAMES)]
            files[f"{good} after {number}"] = originals[good]
    rows = run(files)
    score.rows(files, [Path(row["uri"]).name for row in rows])
    for row in rows:
        good, after, _ = Path(row["uri"]).name.partition(" after ")
        if after:
            expected = alone[good] | {key: row[key] for key in WHERE}
            assert row == expected
        else:
            assert_terminal(row, score)


def test_mutants_leave_nothing_behind(originals: dict[str, bytes], make, run) -> None:
    this = psutil.Process()

    def held() -> list[int]:
        gc.collect()
        return [this.num_fds(), memory_files(), len(this.children(recursive=True))]

    def mutants(number: int) -> None:
        run({name: make(name, number) for name in NAMES})

    for number in range(4):
        mutants(number)
    before, resident = held(), this.memory_info().rss
    for number in range(4, ALWAYS):
        mutants(number)
    # Fewer, where a connection of another test's has ended meanwhile.
    assert all(now <= then for now, then in zip(held(), before, strict=True))
    assert this.memory_info().rss < resident + 64 * 2**20


@pytest.mark.parametrize("name", EXPECTED)
def test_what_once_cost_a_process_costs_no_more_than_that(
    name: str, originals: dict[str, bytes], decoders: list[Decoder], score
) -> None:
    for decoder in decoders:
        before = decoder.submit(originals["png-palette"])
        with decoder.submit((REGRESSIONS / name).read_bytes()) as hostile:
            assert len(list(before.frames())) == 1
            with pytest.raises(DecodeError) as caught:
                hostile.info()
        assert caught.value.code == EXPECTED[name]
        score.kills += caught.value.attempts
        assert outcome(decoder, originals["png-palette"]) is None


def test_every_regression_has_its_code() -> None:
    assert {path.name for path in REGRESSIONS.iterdir()} == set(EXPECTED)
