"""What `benchmarks.scale` measures: each case at one number of items, in a process of its own.

The cases of one number share a folder and follow each other, as a backfill's commands do: planned,
committed, resumed, looked at, added to.
"""

from __future__ import annotations

import io
import re
import shutil
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline import build, drive, layout, schema
from pipeline import embed as embedding
from pipeline.commit import CommitConfig, commit_shard
from pipeline.config import DEFAULT_SHARD_ROWS, EmbedConfig, InputConfig
from pipeline.identity import fingerprint, identity
from pipeline.manifest import generations, read_shard, shards_of
from pipeline.objects import Fetched
from pipeline.plan import plan_next
from pipeline.preprocess import Preprocess
from pipeline.record import record
from pipeline.retry import plan_retry
from pipeline.status import status

WIDTH = 256  # Of the tiny preset's vectors.
# One item in as many has failed.
FAILED = 100
# The driver's work is a shard's, so that shards are small: as many as of 64 times the items.
DRIVEN_SHARD_ROWS = 64
PARTITIONS = 1000
_MANIFEST_ROWS = 100_000
# Nothing lies there: whoever looks an item up finds nothing.
_MEDIA = "/nowhere/photos"
_SIDE = 28


def _peak_mib() -> float:
    # `ru_maxrss` begins with that of the process that started this one.
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return int(peak) / 2**10


@dataclass
class Meter:
    """Seconds of what is done within it, and the memory of this process."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    before_mib: float = field(default_factory=_peak_mib)
    peak_mib: float = 0.0

    def __enter__(self) -> Self:
        self._began = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        self.wall_s += time.perf_counter() - self._began[0]
        self.cpu_s += time.process_time() - self._began[1]
        self.peak_mib = _peak_mib()

    def told(self) -> dict[str, float]:
        """The figures, to four digits."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}


def prepare(folder: Path, items: int, *, parted: bool) -> None:
    """The manifest that all cases of so many items begin with, and one with a column more."""
    _write_manifest(folder / "items.parquet", items)
    if parted:
        _write_manifest(folder / "parted.parquet", items, parted=True)


def _write_manifest(path: Path, items: int, *, parted: bool = False) -> None:
    """A person's manifest, as a listing of a store would make it."""
    fields = [schema.MANIFEST.field(name) for name in ("uri", "version", "size_bytes")]
    columns = pa.schema([*fields, *([("kind", pa.int64())] if parted else [])])
    with pq.ParquetWriter(path, columns, compression="zstd") as writer:
        for start in range(0, items, _MANIFEST_ROWS):
            numbers = np.arange(start, min(items, start + _MANIFEST_ROWS))
            values = [
                [f"{_MEDIA}/{n // 1000:06d}/{n:012d}.jpg" for n in numbers],
                [f"{n * 2654435761:032x}" for n in numbers.tolist()],
                100_000 + numbers % 7919,
                numbers * 2654435761 // 2**16 % PARTITIONS,  # In no order.
            ]
            writer.write_table(pa.table(values[: len(columns)], schema=columns))


def plan_manifest(folder: Path, items: int, meter: Meter) -> None:
    """`plan`, out of a Parquet manifest."""
    with meter:
        report, _ = plan_next(_inputs(folder), str(folder / "out"))
    assert report.new == items


def plan_folder(folder: Path, items: int, meter: Meter) -> None:
    """`plan`, out of a folder without any folders in it."""
    media = folder / "media"
    media.mkdir()
    for number in range(items):
        (media / f"{number:012d}.jpg").touch()
    with meter:
        report, _ = plan_next(InputConfig(inputs=(str(media),)), str(folder / "listed"))
    shutil.rmtree(media)
    assert report.new == items


def plan_parted(folder: Path, items: int, meter: Meter) -> None:
    """`plan --partition-by`, of values that come in no order."""
    config = InputConfig(
        inputs=(str(folder / "parted.parquet"),), root=(_MEDIA,), partition_by=("kind",)
    )
    with meter:
        report, _ = plan_next(config, str(folder / "parted"))
    assert report.new == items


def commit(folder: Path, items: int, meter: Meter) -> None:
    """Real tables of random vectors, shard by shard, to this disk."""
    config = _embed_config(folder)
    what = identity(config, "cpu")
    record(config, what)
    (generation,) = generations(config.output)
    shards = list(shards_of(generation, without=set()))
    to = CommitConfig(
        output=config.output,
        run="benchmark",
        fingerprint=fingerprint(what.semantics),
        partition_by=(),
        columns=(),
        level="item",
        embedding=schema.embedding_type(WIDTH, "float32"),
        rows={shard.id: shard.rows for shard in shards},
    )
    for shard in shards:
        block = encoded(read_shard(config.output, shard))
        with meter:
            commit_shard(block, to)


def encoded(rows: pa.Table) -> pa.Table:
    """A shard's rows as Encode would hand them on, one in `FAILED` of them failed."""
    count = rows.num_rows
    failed = np.arange(count) % FAILED == FAILED - 1
    vectors = np.random.default_rng(0).random((count, WIDTH), np.float32)
    columns = {
        "content_hash": pa.array([f"{n:032x}" for n in range(count)]),
        "width": pa.array(np.full(count, 1024, np.int32)),
        "height": pa.array(np.full(count, 768, np.int32)),
        "grid_thw": pa.array([[1, 54, 72]] * count, pa.list_(pa.int32(), 3)),
        "num_tokens": pa.array(np.full(count, 972, np.int32)),
        "embedding": pa.array(list(vectors), pa.list_(pa.float32())),
        "device": pa.array(["cpu"] * count),
        "stage": _where(failed, "preprocess"),
        "error_code": _where(failed, "corrupt"),
        "error_message": _where(failed, "broken"),
        "attempts": pa.array(np.ones(count, np.int32), mask=~failed),
    }
    target = schema.encoded(schema.preprocessed(rows.schema), pa.float32())
    found = [
        rows[f.name]
        if f.name in rows.column_names
        else columns.get(f.name, pa.nulls(count, f.type))
        for f in target
    ]
    return pa.Table.from_arrays(found, schema=target)


def _where(chosen: np.ndarray, value: str) -> pa.Array:
    return pa.array(np.where(chosen, value, ""), pa.string(), mask=~chosen)


def status_of_one(folder: Path, items: int, meter: Meter) -> None:
    """`status`, of one generation, all of it committed."""
    with meter:
        found = status(str(folder / "out"))
    assert found.items.items == items


def resume_all(folder: Path, items: int, meter: Meter) -> None:
    """`embed` on what is all committed, to its end."""
    _resume(folder, meter, lambda shards: 0)


def resume_half(folder: Path, items: int, meter: Meter) -> None:
    """`embed` on what is half committed, until Ray would be started."""
    _keep_markers(folder, lambda index: index % 2 == 0)
    _resume(folder, meter, lambda shards: shards // 2)


def resume_none(folder: Path, items: int, meter: Meter) -> None:
    """`embed` on what is planned and no more, until Ray would be started."""
    _keep_markers(folder, lambda _: False)
    _resume(folder, meter, lambda shards: shards)
    _keep_markers(folder, lambda _: True)


def _resume(folder: Path, meter: Meter, expected: Callable[[int], int]) -> None:
    found: list[int] = [0]
    embedding.ray_running = lambda **_: nullcontext()
    drive.drive = lambda config, what, shards, planned, summary: found.append(len(shards))
    config = _embed_config(folder)
    with meter:
        embedding.embed(config, on_plan=lambda _: None)
    assert found[-1] == expected(generations(config.output)[0].shards)


def _keep_markers(folder: Path, keep: Callable[[int], bool]) -> None:
    """Moves markers aside, and back."""
    commits, aside = folder / "out" / layout.COMMITS, folder / "aside"
    aside.mkdir(exist_ok=True)
    for path in [*commits.iterdir(), *aside.iterdir()]:
        parsed = layout.parse_shard(path.stem)
        assert parsed is not None
        path.rename((commits if keep(parsed[1]) else aside) / path.name)


def add_one(folder: Path, items: int, meter: Meter) -> None:
    """`plan` of the same manifest and one with a single new item, a generation of its own."""
    more = pa.table({"uri": [f"{_MEDIA}/new.jpg"], "version": ["1"], "size_bytes": [1]})
    pq.write_table(more, folder / "more.parquet")
    with meter:
        report, planned = plan_next(_inputs(folder, "more"), str(folder / "out"))
    assert (report.new, report.unchanged, len(planned)) == (1, items, 2)


def status_of_two(folder: Path, items: int, meter: Meter) -> None:
    """`status`, of two generations: every item's newest is looked up."""
    with meter:
        found = status(str(folder / "out"))
    assert found.items.items == items + 1


def retry(folder: Path, items: int, meter: Meter) -> None:
    """What `retry` plans: the one item in `FAILED` that has failed."""
    with meter:
        report, _ = plan_retry(str(folder / "out"))
    whole, rest = divmod(items, DEFAULT_SHARD_ROWS)
    assert report.errors.total() == whole * (DEFAULT_SHARD_ROWS // FAILED) + rest // FAILED


def run_driver(folder: Path, items: int, meter: Meter) -> None:
    """The driver of a whole run on Ray: a 28x28 picture for every item, the tiny encoder."""
    sink = io.BytesIO()
    Image.fromarray(np.full((_SIDE, _SIDE, 3), 128, np.uint8)).save(sink, "PNG")
    # By value: the actors' processes import no benchmarks.
    build.Preprocess = type("Preprocess", (Preprocess,), {"_read": _reader(sink.getvalue())})
    config = EmbedConfig(
        inputs=(str(folder / "items.parquet"),),
        root=(_MEDIA,),
        output=str(folder / "driven"),
        shard_rows=DRIVEN_SHARD_ROWS,
        min_pixels=_SIDE**2,
        max_pixels=_SIDE**2,
    )
    with meter:
        summary = embedding.embed(config, on_plan=lambda _: None)
    assert summary.embedded == items


def _reader(data: bytes) -> Callable[..., list[Fetched]]:
    """Reads the same file for every item."""

    def read(self: object, uri: str, version: str, most: int) -> list[Fetched]:
        return [Fetched(data=data, version=version)]

    return read


def _inputs(folder: Path, *more: str) -> InputConfig:
    names = ("items", *more)
    return InputConfig(
        inputs=tuple(str(folder / f"{name}.parquet") for name in names), root=(_MEDIA,)
    )


def _embed_config(folder: Path) -> EmbedConfig:
    return EmbedConfig(
        inputs=_inputs(folder).inputs, root=(_MEDIA,), output=str(folder / "out"), device="cpu"
    )
