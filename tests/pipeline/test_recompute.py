"""Items embedded again: what is stored is what comes out, and what is not is told by its URI."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.build import nest
from pipeline.commit import CommitConfig, commit_shard
from pipeline.config import EmbedConfig
from pipeline.encode import Encode, EncodeConfig
from pipeline.identity import fingerprint, identity
from pipeline.known import PlanReport
from pipeline.location import digest
from pipeline.manifest import Generation, Shard, generations, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.preprocess import Preprocess
from pipeline.recompute import _choose, recompute
from pipeline.record import record
from pipeline.schema import embedding_type
from pipeline.verify import verify
from tests.support.preprocessing import preprocess_config, whole

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
Photo = Callable[..., bytes]

MANY = 100


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def photos(tmp_path: Path, photo: Photo) -> Path:
    """Five small photos, and one file that is none."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, size in enumerate([(60, 40), (90, 120), (57, 57), (200, 30), (120, 90)]):
        (folder / f"{number}.png").write_bytes(photo(*size))
    (folder / "broken.png").write_bytes(b"no photo")
    return folder


def embed(output: str, **options: Any) -> None:
    """What a run does with what is open, without the engine."""
    config = EmbedConfig(output=output, **options)
    what = identity(config, "cpu")
    record(config, what)
    options = what.processors
    preprocess = Preprocess(
        preprocess_config(options.images, options.videos, decode=options.decode)
    )
    encode = Encode(
        EncodeConfig(
            location=config.encoder,
            seed=config.seed,
            device="cpu",
            dtype=what.dtype,
            token_budget=64,
            level=config.level,
            pool=config.pool,
            features=config.features,
            normalize=config.normalize,
            output_dtype=config.output_dtype,
        )
    )
    with closing(preprocess):
        for generation in generations(output):
            shards = list(shards_of(generation, without=set()))
            width = what.encoder.config.out_hidden_size
            commit = CommitConfig(
                output=output,
                run="test",
                fingerprint=fingerprint(what.semantics),
                partition_by=generation.partition_by,
                columns=tuple(generation.columns),
                level=config.level,
                embedding=embedding_type(width, config.output_dtype),
                rows={shard.id: shard.rows for shard in shards},
            )
            for shard in shards:
                block = nest(read_shard(output, shard), [0, shard.rows])
                commit_shard(encode(whole(preprocess(block))), commit)


@pytest.fixture
def output(tmp_path: Path, photos: Path, freeze: Freeze) -> str:
    """The photos embedded, in shards of four."""
    place = str(tmp_path / "out")
    freeze(place, str(photos), shard_rows=4)
    embed(place)
    return place


def forge(
    output: str, change: Callable[[dict[str, Any]], None], folder: str = "embeddings"
) -> None:
    """Changes the first row of a shard, and all that its marker says of it."""
    name = f"{folder}/g000000-00000000.parquet"
    path = Path(output) / name
    table = pq.read_table(io.BytesIO(path.read_bytes()))
    rows = table.to_pylist()
    change(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    data = path.read_bytes()
    place = Path(output) / "_patchflow/commits/g000000-00000000.json"
    marker = Marker.from_json(place.read_bytes())
    objects = [
        replace(o, size_bytes=len(data), checksum=digest(data)) if o.name == name else o
        for o in marker.objects
    ]
    place.write_bytes(replace(marker, objects=objects).to_json())


def test_what_is_stored_comes_out_again(output: str) -> None:
    found = recompute(output, MANY, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (5, 0, [])


@pytest.mark.parametrize(
    "options",
    [
        {"output_dtype": "float16"},
        {"normalize": True, "pool": "max", "max_pixels": 3000},
        {"features": "last_hidden_state", "seed": 3},
        {"dtype": "bfloat16"},
        {"dtype": "bfloat16", "output_dtype": "float16", "normalize": True},
        {"dtype": "float16"},
        {"level": "frame", "normalize": True, "output_dtype": "float16"},
        {"level": "token", "features": "last_hidden_state"},
        {"level": "token", "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_every_configuration_is_made_again(
    tmp_path: Path, photos: Path, freeze: Freeze, options: dict[str, Any]
) -> None:
    place = str(tmp_path / "out")
    freeze(place, str(photos))
    embed(place, **options)
    found = recompute(place, MANY, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (5, 0, [])


def test_reduced_pictures_are_made_again(
    tmp_path: Path, photo: Callable[..., bytes], freeze: Freeze
) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "large.jpg").write_bytes(photo(400, 300, "JPEG"))
    vectors = []
    for decode in ("exact", "fast"):
        place = str(tmp_path / decode)
        freeze(place, str(folder))
        embed(place, decode=decode, max_pixels=3000)
        found = recompute(place, MANY, seed=0)
        assert (found.compared, found.not_comparable, found.breaches) == (1, 0, [])
        vectors.append(pq.read_table(f"{place}/embeddings")["embedding"].to_pylist())
    assert vectors[0] != vectors[1]


def test_the_kept_tower_is_used_where_the_checkpoint_is_gone(
    tmp_path: Path, photos: Path, freeze: Freeze, goldens: Path
) -> None:
    folder, place = tmp_path / "checkpoint", str(tmp_path / "out")
    shutil.copytree(goldens / "checkpoint-glm4v", folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 20_000}))
    freeze(place, str(photos))
    embed(place, encoder=str(folder))
    shutil.rmtree(folder)
    found = recompute(place, MANY, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (5, 0, [])


def scale(row: dict[str, Any]) -> None:
    vector = np.array(row["embedding"])
    vector[np.abs(vector).argmax()] *= 1.001
    row["embedding"] = vector.tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (scale, "its vector is off by 1.0e-03 of the largest value"),
        (lambda row: row.update(embedding=[0.0] * 256), "its vector is off by 1.0e+00"),
        (lambda row: row.update(content_hash="0" * 32), "content_hash is"),
        (lambda row: row.update(width=61), "width is 61, now 60"),
        (lambda row: row.update(duration_s=1.0), "duration_s is 1.0, now None"),
    ],
)
def test_what_no_checksum_tells_is_found(
    output: str, photos: Path, change: Callable[[dict[str, Any]], None], says: str
) -> None:
    forge(output, change)
    assert verify(output).breaches == []
    found = recompute(output, MANY, seed=0)
    (breach,) = found.breaches
    assert breach.startswith(f"g000000-00000000: {photos}/0.png: ") and says in breach
    assert found.compared == 5


def scale_token(row: dict[str, Any]) -> None:
    tokens = np.array(row["tokens"], np.float32)
    tokens.flat[np.abs(tokens).argmax()] *= 1.01
    row["tokens"] = tokens.astype(np.float16).tolist()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (scale, "segment 0: its vector is off by 1.0e-03 of the largest value"),
        (scale_token, "segment 0: its tokens are off by 9."),
        (
            lambda row: row.update(tokens=row["tokens"][1:] + row["tokens"][:1]),
            "its tokens are off",
        ),
    ],
)
def test_segments_that_no_checksum_tells_are_found(
    tmp_path: Path,
    photos: Path,
    freeze: Freeze,
    change: Callable[[dict[str, Any]], None],
    says: str,
) -> None:
    place = str(tmp_path / "out")
    freeze(place, str(photos))
    embed(place, level="token")
    forge(place, change, "tokens")
    assert verify(place).breaches == []
    (breach,) = recompute(place, MANY, seed=0).breaches
    assert breach.startswith(f"g000000-00000000: {photos}/0.png: ") and says in breach


def test_superseded_segments_are_not_compared(
    tmp_path: Path, photos: Path, photo: Photo, freeze: Freeze
) -> None:
    place = str(tmp_path / "out")
    freeze(place, str(photos), shard_rows=4)
    embed(place, level="frame")
    (photos / "0.png").write_bytes(photo(70, 70))
    freeze(place, str(photos))
    embed(place, level="frame")
    (photos / "1.png").unlink()
    found = recompute(place, MANY, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (4, 1, [])


def test_another_items_vector_is_found(output: str) -> None:
    table = pq.read_table(
        io.BytesIO((Path(output) / "embeddings/g000000-00000000.parquet").read_bytes())
    )
    forge(output, lambda row: row.update(embedding=table["embedding"][1].as_py()))
    assert len(recompute(output, MANY, seed=0).breaches) == 1


def test_objects_that_changed_or_are_gone_are_not_comparable(output: str, photos: Path) -> None:
    (photos / "0.png").write_bytes((photos / "1.png").read_bytes())
    (photos / "2.png").unlink()
    found = recompute(output, MANY, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (3, 2, [])


def test_an_object_of_the_same_version_that_fails_now_is_found(output: str, photos: Path) -> None:
    # Clocks and sizes say that nothing happened: the stored hash knows better.
    path = photos / "0.png"
    before = path.stat()
    path.write_bytes(b"x" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (breach,) = recompute(output, MANY, seed=0).breaches
    assert breach == f"g000000-00000000: {path}: fails now: unsupported_format"


def test_the_limits_of_the_output_hold(tmp_path: Path, photos: Path, freeze: Freeze) -> None:
    place = str(tmp_path / "out")
    freeze(place, str(photos), shard_rows=4)
    embed(
        place, max_source_pixels=5000
    )  # Three photos have more: a run with other limits did them.
    found = recompute(place, MANY, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (2, 3, [])
    path = photos / "0.png"
    before = path.stat()
    Image.new("L", (100, 60)).save(path)
    os.truncate(path, before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    (breach,) = recompute(place, MANY, seed=0).breaches
    assert breach == f"g000000-00000000: {path}: fails now: too_large"


def test_superseded_rows_are_not_chosen(
    output: str, photos: Path, photo: Photo, freeze: Freeze
) -> None:
    (photos / "0.png").write_bytes(photo(70, 70))
    (photos / "new.png").write_bytes(photo(80, 50))
    freeze(output, str(photos))
    embed(output)
    found = recompute(output, MANY, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (6, 0, [])


def test_where_nothing_is_embedded_nothing_is_compared(
    tmp_path: Path, photos: Path, freeze: Freeze
) -> None:
    place = str(tmp_path / "out")
    freeze(place, str(photos))
    found = recompute(place, 3, seed=0)
    assert (found.compared, found.not_comparable, found.breaches) == (0, 0, [])


def shard(index: int) -> Shard:
    return Shard(id=f"g000000-{index:08d}", generation=0, rows=9, part="", row_group=index)


SIZES = [(shard(0), 2), (shard(1), 0), (shard(2), 5), (shard(3), 1)]
ALL = {(shard, position) for shard, size in SIZES for position in range(size)}


@pytest.mark.parametrize("count", [1, 3, 8, 20])
def test_items_are_chosen_once_and_the_same_ones_with_the_same_seed(count: int) -> None:
    def choose(seed: int) -> list[tuple[Shard, int]]:
        chosen = _choose(iter(SIZES), count, random.Random(seed))
        return [(shard, position) for shard, found in chosen.items() for position in found]

    assert len(set(choose(5))) == len(choose(5)) == min(count, 8)
    assert set(choose(5)) <= ALL
    assert choose(5) == choose(5)


def test_every_item_is_as_likely_as_any_other() -> None:
    counts: Counter[tuple[Shard, int]] = Counter()
    for seed in range(4000):
        for place, found in _choose(iter(SIZES), 2, random.Random(seed)).items():
            counts.update((place, position) for position in found)
    assert set(counts) == ALL
    # 1,000 each; five standard deviations.
    assert all(abs(count - 1000) < 140 for count in counts.values()), counts
