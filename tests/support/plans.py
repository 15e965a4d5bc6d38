"""Tiny plans and committed outputs, made without the engine."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from encoder import preset_digest
from pipeline import schema
from pipeline.commit import CommitConfig, commit_shard
from pipeline.config import EmbedConfig, InputConfig
from pipeline.identity import Identity, fingerprint, identity
from pipeline.known import PlanReport
from pipeline.location import item_id
from pipeline.manifest import Generation, generations, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.parquet_reader import ParquetReader
from pipeline.plan import plan
from pipeline.record import record
from pipeline.schema import MANIFEST


class _Here:
    """A `ParquetReader` that trusts files, and reads them in this process."""

    def read(self, file: BinaryIO, size_bytes: int, batch_rows: int) -> Iterator[pa.Table]:
        parquet = pq.ParquetFile(file)
        yield parquet.schema_arrow.empty_table()
        yield from (pa.Table.from_batches([b]) for b in parquet.iter_batches(batch_size=batch_rows))

    def close(self) -> None:
        """Nothing was started."""


@pytest.fixture(scope="session", autouse=True)
def manifests_read_here() -> Iterator[None]:
    """Plans of our own need no process for their manifests: each would start for 0.4 s."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.sources.ParquetReader", _Here)
        yield


@pytest.fixture
def manifests_read_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests are read as commands read them."""
    monkeypatch.setattr("pipeline.sources.ParquetReader", ParquetReader)


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., str]:
    """Writes a user's Parquet manifest, `NAME.parquet`, and returns its path."""

    def write(columns: dict[str, Any] | pa.Table, name: str = "items") -> str:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        return str(path)

    return write


@pytest.fixture
def freeze() -> Callable[..., tuple[PlanReport, Generation | None]]:
    """Plans inputs, whose items lie anywhere, into an output on top of what is planned there."""

    def run(output: str, *inputs: str, **options: Any) -> tuple[PlanReport, Generation | None]:
        config = InputConfig(inputs=inputs, **{"root": ("/", "s3://media")} | options)
        return plan(config, output, generations(output))

    return run


@pytest.fixture(scope="session")
def manifest_rows() -> Callable[..., pa.Table]:
    """Manifest rows for uris, as `read_shard` gives them."""

    def rows(
        uris: list[str], shard: str = "g000000-00000000", own: pa.Table | None = None, **given: Any
    ) -> pa.Table:
        columns = {
            "item_id": [item_id(uri) for uri in uris],
            "uri": uris,
            "version": [None] * len(uris),
            "size_bytes": [None] * len(uris),
            "media_type": ["image"] * len(uris),
            "shard": [shard] * len(uris),
        } | given
        table = pa.table(columns, schema=MANIFEST)
        for field in own.schema if own is not None else ():
            table = table.append_column(field, own[field.name])
        return table

    return rows


@pytest.fixture(scope="session")
def encoded_block() -> Callable[..., pa.Table]:
    """What Encode would make of a shard's manifest rows: item n's vector is [n, n, ...].

    The `clips` have three segments, half a second apart. Segment s of item n is n + s / 8 all over,
    and its token k is n + s / 8 + k / 64, which float16 holds.
    """

    def block(
        rows: pa.Table,
        failed: dict[int, str] | None = None,
        width: int = 4,
        dtype: str = "float32",
        level: Any = "item",
        clips: Collection[int] = (),
    ) -> pa.Table:
        codes, count = failed or {}, rows.num_rows
        slices = [3 if n in clips else 1 for n in range(count)]
        found: dict[str, list[Any]] = {
            "content_hash": [f"hash{n}" for n in range(count)],
            "width": [28 * (n + 1) for n in range(count)],
            "height": [28] * count,
            "num_frames": [6 if n in clips else None for n in range(count)],
            "duration_s": [1.5 if n in clips else None for n in range(count)],
            "grid_thw": [[slices[n], 2, 2 * (n + 1)] for n in range(count)],
            "timestamps": [[0.0, 0.5, 1.0] if n in clips else None for n in range(count)],
            "stage": ["preprocess" if n in codes else None for n in range(count)],
            "error_code": [codes.get(n) for n in range(count)],
            "error_message": ["broken" if n in codes else None for n in range(count)],
            "attempts": [1 if n in codes else None for n in range(count)],
            "num_tokens": [None if n in codes else slices[n] * (n + 1) for n in range(count)],
        }
        good = [n for n in range(count) if n not in codes]
        firsts = {n: np.arange(slices[n])[:, None] / 8 + n for n in good}
        within = {n: firsts[n] + np.arange(n + 1) / 64 for n in good}
        results = {
            "embedding": {n: [n] for n in good},
            "segment_embeddings": firsts,
            "token_embeddings": within,
        }
        target = schema.encoded(
            schema.preprocessed(rows.schema), pa.from_numpy_dtype(np.dtype(dtype)), level
        )
        columns = []
        for field in target:
            if field.name in results:
                kind = field.type.value_type.to_pandas_dtype()
                flat = [np.ravel(results[field.name].get(n, [])) for n in range(count)]
                columns.append([np.repeat(values, width).astype(kind) for values in flat])
            elif field.name == "device":
                columns.append(["cpu"] * count)
            elif field.name == "device_kernels":
                columns.append([None] * count)
            else:
                columns.append(found.get(field.name) or rows[field.name].to_pylist())
        return pa.table(columns, schema=target)

    return block


def made_up(width: int, dtype: Any, level: Any = "item") -> Identity:
    """The preset `tiny` with vectors of another width."""
    what = identity(EmbedConfig(output="unused", output_dtype=dtype, level=level), "cpu")
    shape = replace(what.encoder.config, out_hidden_size=width)
    encoder = replace(what.encoder, config=shape, digest=preset_digest(shape, 0))
    return replace(
        what, encoder=encoder, semantics=what.semantics | {"encoder_digest": encoder.digest}
    )


@pytest.fixture(scope="session")
def begin() -> Callable[..., None]:
    """Writes the `run.json` that made-up vectors need."""

    def run(output: str, width: int = 4, dtype: Any = "float32", level: Any = "item") -> None:
        record(EmbedConfig(output=output, output_dtype=dtype), made_up(width, dtype, level))

    return run


@pytest.fixture(scope="session")
def commit_config() -> Callable[..., CommitConfig]:
    """The commit stage's configuration for all shards of a generation."""

    def config(
        output: str,
        generation: Generation,
        width: int = 4,
        dtype: str = "float32",
        level: Any = "item",
    ) -> CommitConfig:
        return CommitConfig(
            output=output,
            run="test",
            fingerprint=fingerprint(made_up(width, dtype, level).semantics),
            partition_by=generation.partition_by,
            columns=tuple(generation.columns),
            level=level,
            embedding=schema.embedding_type(width, dtype),
            rows={shard.id: shard.rows for shard in shards_of(generation, without=set())},
        )

    return config


@pytest.fixture
def commit(
    begin: Callable[..., None],
    encoded_block: Callable[..., pa.Table],
    commit_config: Callable[..., CommitConfig],
) -> Callable[..., list[Marker]]:
    """Commits shards of a generation with made-up vectors.

    `failed` and `clips` are by row within a shard.
    """

    def run(
        output: str,
        generation: Generation,
        indices: list[int] | None = None,
        failed: dict[int, str] | None = None,
        width: int = 4,
        dtype: str = "float32",
        level: str = "item",
        clips: Collection[int] = (),
    ) -> list[Marker]:
        begin(output, width, dtype, level)
        shards = list(shards_of(generation, without=set()))
        config = commit_config(output, generation, width, dtype, level)
        markers = []
        for shard in shards if indices is None else [shards[index] for index in indices]:
            rows = read_shard(output, shard)
            block = encoded_block(rows, failed, width, dtype, level, clips)
            markers.append(Marker.from_json(commit_shard(block, config)))
        return markers

    return run


@pytest.fixture
def healthy(
    tmp_path: Path,
    write_manifest: Callable[..., str],
    freeze: Callable[..., tuple[PlanReport, Generation | None]],
    commit: Callable[..., list[Marker]],
) -> str:
    """An output of 7 items in shards of 3, all committed; the second row of each full one failed.

    The last shard has one row, which is embedded.
    """
    output = str(tmp_path / "out")
    names = [f"/media/{n}.jpg" for n in range(7)]
    _, generation = freeze(output, write_manifest({"uri": names}), shard_rows=3)
    assert generation is not None
    commit(output, generation, failed={1: "corrupt"})
    return output


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its bytes, hidden ones included."""

    def read(folder: Path) -> dict[str, bytes]:
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    return read
