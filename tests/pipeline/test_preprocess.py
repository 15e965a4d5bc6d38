"""The CPU stage, called as the engine calls it, on real bytes and without the engine."""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline import schema
from pipeline.build import nest
from pipeline.errors import ItemError, MachineError, StorageError
from pipeline.location import digest
from pipeline.objects import Fetched
from pipeline.preprocess import Preprocess, unnest
from pipeline.storage import storage_for
from processors import (
    GlmgaImageProcessor,
    GlmgaVideoProcessor,
    ImageOptions,
    MediaOptions,
    VideoOptions,
    VideoSampling,
    decode_image,
    open_media,
)
from processors.sandbox import Decoder, Decoding
from tests.support import scripts
from tests.support.clips import PATTERN, X264, ClipMaker
from tests.support.preprocessing import preprocess_config, whole

OPTIONS = ImageOptions(min_pixels=2 * 28 * 28, max_pixels=2 * 28 * 28 * 64)
Photo = Callable[..., bytes]
Rows = Callable[..., pa.Table]


@pytest.fixture(scope="module")
def stage() -> Iterator[Preprocess]:
    config = preprocess_config(OPTIONS, max_file_bytes=200_000, max_source_pixels=500_000)
    with closing(Preprocess(config)) as stage:
        yield stage


def nested(rows: pa.Table) -> pa.Table:
    return nest(rows, [0, rows.num_rows])


def run(stage: Preprocess, rows: pa.Table) -> list[dict[str, Any]]:
    """The stage's rows for one block of manifest rows, checked against the schema."""
    block = nested(rows)
    out = whole(stage(block))
    rows = unnest(block)
    assert out.schema.equals(schema.preprocessed(rows.schema))
    given = [name for name in rows.column_names if name != "version"]
    assert out.select(given).to_pylist() == rows.select(given).to_pylist()
    return list(out.select([n for n in out.column_names if n not in rows.column_names]).to_pylist())


_NICENESS = """
import os
from concurrent.futures import ThreadPoolExecutor
import psutil
from pipeline.preprocess import Preprocess
from tests.support.preprocessing import preprocess_config, whole

found = []
for progress in (None, object()):
    stage = Preprocess(preprocess_config(), progress)
    stage._lanes[0]._decoder()
    decoders = psutil.Process().children(recursive=True)
    with ThreadPoolExecutor(1) as calls:
        found.append([calls.submit(os.nice, 0).result(), {one.nice() for one in decoders}])
    stage.close()
print(found)
"""


def failure(row: dict[str, Any]) -> tuple[str, str, str, int]:
    names = ("stage", "error_code", "error_message", "attempts")
    stage, code, message, attempts = (row[name] for name in names)
    return stage, code, message, attempts


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_an_image_becomes_the_processors_own_patches(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows, kind: str
) -> None:
    data = photo(207, 116, kind)
    (tmp_path / "x.jpg").write_bytes(data)
    (row,) = run(stage, manifest_rows([f"{tmp_path}/x.jpg"]))
    pixels = decode_image(data).pixels
    patches, grid = GlmgaImageProcessor(**vars(OPTIONS)).patches(pixels)
    assert row == {
        "content_hash": digest(data),
        "width": 207,
        "height": 116,
        "num_frames": None,
        "duration_s": None,
        "grid_thw": list(grid),
        "timestamps": None,
        "stage": None,
        "error_code": None,
        "error_message": None,
        "attempts": None,
        "patches": patches.tobytes(),
    }
    assert len(row["patches"]) == grid[1] * grid[2] * 588


def test_a_large_photo_may_be_decoded_reduced(
    tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    data = photo(900, 601, "JPEG")
    (tmp_path / "x.jpg").write_bytes(data)
    exact = GlmgaImageProcessor(**vars(OPTIONS)).patches(decode_image(data).pixels)
    with closing(Preprocess(preprocess_config(OPTIONS, decode="fast"))) as fast:
        (row,) = run(fast, manifest_rows([f"{tmp_path}/x.jpg"]))
    assert (row["width"], row["height"], row["grid_thw"]) == (900, 601, list(exact[1]))
    levels = np.frombuffer(row["patches"], np.uint8).reshape(exact[0].shape).astype(int)
    errors = np.abs(levels - exact[0])
    assert 0 < errors.mean() < 4


def test_every_row_comes_out_once_in_order_with_its_own_error(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    good = photo(60, 40)
    contents = {
        "0-good.png": good,
        "1-truncated.png": good[: len(good) // 2],
        "2-empty.jpg": b"",
        "3-renamed.jpg": b"just some text",
        "4-good.jpg": photo(90, 30, "JPEG"),
        "5-thin.png": photo(1000, 2),
        "6-many-pixels.png": photo(1000, 501),
        "7-many-bytes.jpg": photo(28, 28) + b"\0" * 200_000,
        "8-corrupt.jpg": b"\xff\xd8\xff\xe0" + bytes(range(200)),
        "9-clip.mp4": b"\0\0\0\x18ftypmp42",
        "a-other-version.png": good,
        "b-folder.png": None,
        "d-good.webp": photo(33, 44, "WEBP"),
    }
    for name, data in contents.items():
        if data is None:
            (tmp_path / name).mkdir()
        else:
            (tmp_path / name).write_bytes(data)
    names = [*list(contents)[:-1], "c-missing.png", "d-good.webp"]
    kinds = ["video" if name.endswith(".mp4") else "image" for name in names]
    versions = ["1-2" if name.startswith("a") else None for name in names]
    rows = manifest_rows([f"{tmp_path}/{n}" for n in names], media_type=kinds, version=versions)
    found = run(stage, rows)
    codes = {name: row["error_code"] for name, row in zip(names, found, strict=True)}
    assert codes == {
        "0-good.png": None,
        "1-truncated.png": "truncated",
        "2-empty.jpg": "empty",
        "3-renamed.jpg": "unsupported_format",
        "4-good.jpg": None,
        "5-thin.png": "aspect_ratio",
        "6-many-pixels.png": "too_large",
        "7-many-bytes.jpg": "too_large",
        "8-corrupt.jpg": codes["8-corrupt.jpg"],
        "9-clip.mp4": "truncated",
        "a-other-version.png": "version_changed",
        "b-folder.png": "not_found",
        "c-missing.png": "not_found",
        "d-good.webp": None,
    }
    assert codes["8-corrupt.jpg"] in ("corrupt", "truncated")
    for row in found[:14]:
        assert (row["error_code"] is None) == (len(row["patches"]) > 0)
        assert (row["error_code"] is None) == (row["grid_thw"] is not None)
        if row["error_code"] is not None:
            stage_name, _, message, attempts = failure(row)
            assert (stage_name, attempts) == ("preprocess", 1)
            assert message and "\n" not in message and len(message) <= 200
    for row in found[14:]:
        assert {value for name, value in row.items() if name != "patches"} == {None}
        assert row["patches"] == b""


def test_a_row_that_failed_costs_its_neighbours_nothing(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    for n, size in enumerate([(60, 40), (30, 90)]):
        (tmp_path / f"{n}.png").write_bytes(photo(*size))
    names = [f"{tmp_path}/{name}.png" for name in ("0", "none", "1")]
    together = run(stage, manifest_rows(names))
    alone = [run(stage, manifest_rows([name]))[0] for name in names]
    assert together == alone


@pytest.mark.parametrize("size", [(1, 1), (2, 100), (3, 5), (13, 27), (700, 700)])
def test_an_image_of_any_size_fits_the_budget(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows, size: tuple[int, int]
) -> None:
    (tmp_path / "x.png").write_bytes(photo(*size))
    (row,) = run(stage, manifest_rows([f"{tmp_path}/x.png"]))
    assert row["error_code"] is None
    assert (row["width"], row["height"]) == size
    one, h, w = row["grid_thw"]
    assert one == 1 and h % 2 == 0 and w % 2 == 0
    assert h * w * 196 >= 28 * 28
    assert len(row["patches"]) == h * w * 588 <= stage._config.item_bytes


def test_the_version_that_was_planned_is_the_one_that_is_read(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    path = str(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(photo(30, 30))
    info = storage_for(path).stat(path)
    assert info is not None
    (row,) = run(stage, manifest_rows([path], version=[info.version]))
    assert row["error_code"] is None


def test_a_version_that_no_manifest_gave_is_the_one_that_was_read(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    path = str(tmp_path / "x.png")
    (tmp_path / "x.png").write_bytes(photo(30, 30))
    info = storage_for(path).stat(path)
    assert info is not None
    rows = manifest_rows([path, "/none.png"])
    out = whole(stage(nested(rows)))
    assert out["version"].to_pylist() == [info.version, None]


def test_a_name_that_no_disk_can_hold_costs_only_its_own_row(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    (tmp_path / "x.png").write_bytes(photo(30, 30))
    names = ["/a\0b.png", f"{tmp_path}/x.png", "/" + "n" * 300]
    found = run(stage, manifest_rows(names))
    assert [row["error_code"] is None for row in found] == [False, True, False]


def test_a_callers_columns_are_carried(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    (tmp_path / "x.png").write_bytes(photo(30, 30))
    own = pa.table(
        {
            "label": ["cat", None],
            "tags": [["a"], []],
            "kind": pa.array(["p", "q"]).dictionary_encode(),
        }
    )
    # `run` compares them.
    run(stage, manifest_rows([f"{tmp_path}/x.png", "/none.png"], own=own))


def test_several_calls_at_once_do_not_mix(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    names = [f"{tmp_path}/{n}.png" for n in range(24)]
    for n, name in enumerate(names):
        Path(name).write_bytes(photo(30 + 9 * n, 40))
    blocks = [manifest_rows(names[start : start + 6]) for start in range(0, 24, 6)]
    with ThreadPoolExecutor(4) as callers:
        found = list(callers.map(lambda rows: run(stage, rows), blocks))
    assert found == [run(stage, rows) for rows in blocks]
    assert [row["width"] for rows in found for row in rows] == [30 + 9 * n for n in range(24)]


class BrokenDisk:
    """A storage that fails."""

    def fetch(self, uri: str, *, version: str | None, max_bytes: int | None, **_: Any) -> Fetched:
        raise StorageError(f"{uri}: Input/output error")

    def answers(self, beside: str) -> bool:
        return False


def test_a_storage_that_fails_is_no_items_error(
    stage: Preprocess, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.fetching.storage_for", lambda uri: BrokenDisk())
    with pytest.raises(StorageError, match="Input/output error"):
        whole(stage(nested(manifest_rows(["/a.png", "/b.png"]))))


def test_the_stage_works_on_after_a_call_that_raised(
    stage: Preprocess,
    tmp_path: Path,
    photo: Photo,
    manifest_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.fetching.storage_for", lambda uri: BrokenDisk())
        with pytest.raises(StorageError):
            whole(stage(nested(manifest_rows(["/a.png"] * 40))))
    (tmp_path / "x.png").write_bytes(photo(30, 30))
    (row,) = run(stage, manifest_rows([f"{tmp_path}/x.png"]))
    assert row["error_code"] is None


def test_more_rows_than_are_fetched_ahead_all_come_out(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    (tmp_path / "x.png").write_bytes(photo(30, 30))
    names = [f"{tmp_path}/x.png", f"{tmp_path}/none.png"] * 30
    found = run(stage, manifest_rows(names))
    assert [row["error_code"] for row in found] == [None, "not_found"] * 30


def test_items_are_fetched_ahead_but_only_so_many_bytes_of_them(
    photo: Photo, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, started, leads = photo(30, 30), [], []

    class Remembering:
        def fetch(
            self, uri: str, *, version: str | None, max_bytes: int | None, **_: Any
        ) -> Fetched:
            started.append(uri)
            return Fetched(data=data, version="1")

    stage = Preprocess(preprocess_config(OPTIONS, max_file_bytes=2**25))
    decoder = stage._lanes[0]._decoder()
    submit = decoder.submit

    def decode(data: bytes) -> Decoding:
        time.sleep(0.005)
        leads.append(len(started) - len(leads))
        return submit(data)

    monkeypatch.setattr("pipeline.fetching.storage_for", lambda uri: Remembering())
    monkeypatch.setattr(decoder, "submit", decode)
    # 30 MiB each by their manifest: two are within the bound, three are not.
    rows = manifest_rows([f"/{n}.png" for n in range(40)], size_bytes=[30 * 2**20] * 40)
    with closing(stage):
        run(stage, rows)
    assert len(leads) == 40
    assert max(leads) == 2
    assert leads.count(2) > 20


@pytest.mark.parametrize("size_bytes", [1, None])
def test_files_larger_than_their_manifest_says_are_read_when_it_is_their_turn(
    photo: Photo,
    manifest_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    size_bytes: int | None,
) -> None:
    data, held, most = photo(30, 30), set[int](), [0]

    class Large:
        """Files of 20 MiB, of which those that are held are counted."""

        def fetch(self, uri: str, *, max_bytes: int, **_: Any) -> Fetched:
            if max_bytes < 20 * 2**20:
                raise ItemError("too_large", f"{20 * 2**20} bytes, the limit is {max_bytes}")
            file = memoryview(bytearray(data))
            held.add(id(file))
            most[0] = max(most[0], len(held))
            weakref.finalize(file, held.discard, id(file))
            return Fetched(data=file, version="1")

    monkeypatch.setattr("pipeline.fetching.storage_for", lambda uri: Large())
    rows = manifest_rows([f"/{n}.png" for n in range(40)], size_bytes=[size_bytes] * 40)
    with closing(Preprocess(preprocess_config(max_file_bytes=2**25))) as stage:
        assert [row["error_code"] for row in run(stage, rows)] == [None] * 40
    assert most[0] <= 2
    with closing(Preprocess(preprocess_config(max_file_bytes=2**23))) as stage:
        assert {row["error_code"] for row in run(stage, rows)} == {"too_large"}


@pytest.mark.parametrize("ahead", [0, 2])
def test_a_file_that_changed_does_not_stay_in_memory(
    stage: Preprocess,
    photo: Photo,
    manifest_rows: Rows,
    monkeypatch: pytest.MonkeyPatch,
    ahead: int,
) -> None:
    """A block whose files are all being written would hold every one of them."""
    files: list[weakref.ref[memoryview]] = []

    class Changing:
        def fetch(
            self, uri: str, *, version: str | None, max_bytes: int | None, **_: Any
        ) -> Fetched:
            data = memoryview(photo(30, 30))
            if uri == "/last.png":
                assert sum(file() is not None for file in files) <= 2 + ahead
                return Fetched(data=data, version="1")
            files.append(weakref.ref(data))
            raise ItemError("version_changed", "it grew")

    monkeypatch.setattr("pipeline.fetching.storage_for", lambda uri: Changing())
    monkeypatch.setattr(stage._fetcher, "_ahead", ahead)
    gc.disable()
    try:
        rows = run(stage, manifest_rows([*(f"/{n}.png" for n in range(9)), "/last.png"]))
    finally:
        gc.enable()
    assert [row["error_code"] for row in rows] == ["version_changed"] * 9 + [None]


def test_a_file_that_is_being_decoded_is_in_memory_once(
    stage: Preprocess, photo: Photo, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the decoder's: a long clip's may be hundreds of megabytes."""
    files: list[weakref.ref[memoryview]] = []

    class Remembering:
        def fetch(
            self, uri: str, *, version: str | None, max_bytes: int | None, **_: Any
        ) -> Fetched:
            data = memoryview(photo(30, 30))
            files.append(weakref.ref(data))
            return Fetched(data=data, version="1")

    patches, held = stage._processors.images.patches, []

    def look(pixels: Any, **options: Any) -> Any:
        held.append([file() is not None for file in files])
        return patches(pixels, **options)

    monkeypatch.setattr("pipeline.fetching.storage_for", lambda uri: Remembering())
    monkeypatch.setattr(stage._processors.images, "patches", look)
    assert run(stage, manifest_rows(["/0.png"]))[0]["error_code"] is None
    assert held == [[False]]


def test_an_item_on_s3_is_read_like_one_on_a_disk(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows, s3_media: str
) -> None:
    (tmp_path / "x y.png").write_bytes(photo(60, 40))
    storage_for(s3_media).write(f"{s3_media}/x y.png", photo(60, 40))
    names = [f"{tmp_path}/x y.png", f"{s3_media}/x y.png", f"{s3_media}/none.png"]
    disk, s3, none = run(stage, manifest_rows(names))
    assert s3 == disk
    assert none["error_code"] == "not_found"


def test_the_largest_item_bounds_the_patches() -> None:
    assert preprocess_config(OPTIONS).item_bytes == 3 * 28 * 28 * 201
    larger = replace(OPTIONS, max_pixels=2 * 28 * 28 * 400)
    assert preprocess_config(larger).item_bytes == 3 * 28 * 28 * 400
    few = VideoOptions(max_frames=3, min_pixels=1, max_pixels=28 * 28)
    assert preprocess_config(OPTIONS, few).clip_bytes == 3 * 28 * 28 * 201 * 4
    assert preprocess_config(OPTIONS, few, animated="video").item_bytes == 3 * 28 * 28 * 201 * 4
    many = VideoOptions(max_frames=3, max_pixels=28 * 28 * 1000)
    assert preprocess_config(OPTIONS, many).clip_bytes == 3 * 28 * 28 * 1000


@pytest.fixture(autouse=True)
def _same_threads() -> Iterator[None]:
    """The stage takes one thread for itself; other tests get theirs back."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_the_patches_of_a_block_lie_in_one_buffer(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows
) -> None:
    (tmp_path / "x.png").write_bytes(photo(56, 56))
    out = whole(stage(nested(manifest_rows([f"{tmp_path}/x.png"] * 3))))
    _, offsets, data = out["patches"].combine_chunks().buffers()
    assert np.frombuffer(offsets, np.int64).tolist() == [0, 16 * 588, 32 * 588, 48 * 588]
    assert len(data) == 48 * 588


def test_a_machine_without_decoder_processes_fails_the_call_and_no_item(
    tmp_path: Path, photo: Photo, manifest_rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Decoder, "_template_module", "no_such_template")
    (tmp_path / "x.png").write_bytes(photo(30, 30))
    rows = manifest_rows([f"{tmp_path}/x.png"])
    with closing(Preprocess(preprocess_config())) as stage:
        for _ in range(2):
            with pytest.raises(MachineError, match=r"cannot be started: .*again$"):
                whole(stage(nested(rows)))
        monkeypatch.undo()
        assert [row["error_code"] for row in run(stage, rows)] == [None]


def test_a_clip_among_images_is_a_row_like_any_other(
    stage: Preprocess, tmp_path: Path, photo: Photo, manifest_rows: Rows, clips: ClipMaker
) -> None:
    data = clips.make("h264.mp4", *PATTERN, *X264).read_bytes()
    for name in ("b.mp4", "c.jpg"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "a.png").write_bytes(photo(30, 30))
    (tmp_path / "d.png").write_bytes(photo(40, 30))
    names = [f"{tmp_path}/{name}" for name in ("a.png", "b.mp4", "c.jpg", "d.png", "a.png")]
    kinds = ["image", "video", "image", "image", "video"]
    found = run(stage, manifest_rows(names, media_type=kinds))
    media = open_media(data, MediaOptions(sampling=VideoSampling()))
    patcher = GlmgaVideoProcessor().patcher(2, 48, 64)
    for frame in media.frames:
        patcher.add(frame)
    patches, grid = patcher.finish()
    assert media.info.indices == (0, 9)
    row = found[1]
    assert row.pop("patches") == patches.tobytes()
    assert row == {
        "content_hash": digest(data),
        "width": 64,
        "height": 48,
        "num_frames": 10,
        "duration_s": 0.4,
        "grid_thw": list(grid),
        "timestamps": [0.0],
        "stage": None,
        "error_code": None,
        "error_message": None,
        "attempts": None,
    }
    assert failure(found[2])[1:3] == (
        "unsupported_format",
        "a clip that is listed as an image; a manifest's media_type column can say video",
    )
    assert [row["error_code"] for row in (found[0], found[3], found[4])] == [None] * 3
    assert found[4]["timestamps"] is None


def test_an_actor_and_its_decoder_come_after_the_encoders() -> None:
    own = os.nice(0)
    behind = min(own + 15, 19)
    ended = scripts.run(_NICENESS)
    assert ended.stdout == f"[[{own}, {{{own}}}], [{behind}, {{{behind}}}]]\n", ended.stderr
