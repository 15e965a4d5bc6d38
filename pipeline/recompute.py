"""Random items embedded again, in this process and without the engine, against what is stored."""

from __future__ import annotations

import io
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline import layout
from pipeline.build import nest
from pipeline.config import ComputeDevice, ComputeDtype, OutputDtype, RunConfig
from pipeline.encode import Encode, EncodeConfig
from pipeline.location import join
from pipeline.manifest import Shard, reach_of, read_shard
from pipeline.marker import Marker
from pipeline.preprocess import Preprocess, PreprocessConfig
from pipeline.reach import Reach
from pipeline.record import Recorded, recorded
from pipeline.schema import EMBEDDINGS, check_plain, embedding_type
from pipeline.segments import segment_table
from pipeline.states import Newest, failures, newest_of
from pipeline.status import marked, planned
from pipeline.storage import storage_for

# How far a value may be off, as a share of its vector's largest. What an item is packed with
# changes the order in which matrix products add up, which float32 shows in its last digits: 1e-6
# measured. bfloat16 keeps 8 bits and rounds at every step, on other devices elsewhere: it is 1e-2
# off float32, measured. float16 keeps 11.
_COMPUTE: dict[ComputeDtype, float] = {"float32": 1e-4, "bfloat16": 3e-2, "float16": 5e-3}
# Storing rounds each side once more: half a unit of float16's 11 bits each.
_OUTPUT: dict[OutputDtype, float] = {"float32": 0.0, "float16": 2**-11}
# Items at once: their patches are in memory together.
_ROWS = 8
_TOKEN_BUDGET = 1024
# The object is not what was embedded, or may not be read any more: nothing is there to compare.
_GONE = frozenset(["not_found", "version_changed", "access_denied", "read_failed"])
# The very same bytes were within the limits of the run that embedded them, which may be others.
_LIMITS = frozenset(["too_large", "decode_timeout", "decoder_out_of_memory"])


@dataclass
class Recomputed:
    """What came of embedding items again."""

    compared: int = 0
    not_comparable: int = 0
    """Items whose objects changed, are gone, or are over the limits that the output began with."""
    breaches: list[str] = field(default_factory=list)


def recompute(output: str, count: int, seed: int) -> Recomputed:
    """Embeds `count` random embedded items again and compares every column.

    Args:
        output: Canonical location of an output without breaches.
        count: How many; all where there are fewer. Each one is as likely as any other.
        seed: Of the choice: the same one chooses the same items.

    Raises:
        StorageError: Storage failed.
    """
    found, run, existing = Recomputed(), recorded(output), planned(output)
    if run is None:
        return found
    with newest_of(output, existing) as newest:
        done = {shard: marker for shard, marker in marked(output, existing) if marker is not None}
        chosen = _choose(_embedded(output, done, newest), count, random.Random(seed))
        if not chosen:
            return found
        with closing(_Stages(output, run, reach_of(existing))) as stages:
            for shard, positions in chosen.items():
                stored = pq.read_table(_object(output, done[shard], layout.EMBEDDINGS))
                check_plain(stored.schema, f"{output}: {shard.id}")
                if newest is not None:
                    stored = newest.current(shard.generation, stored)
                rows = stored.take(positions)
                _recompute_shard(
                    output, shard, done[shard], stored=rows, stages=stages, found=found
                )
    return found


def _recompute_shard(
    output: str,
    shard: Shard,
    marker: Marker,
    *,
    stored: pa.Table,
    stages: _Stages,
    found: Recomputed,
) -> None:
    segments = None
    if stages.level != "item":
        segments = _object(output, marker, layout.SEGMENTS[stages.level])
    for rows in _blocks(stored):
        again = stages.embed(read_shard(output, shard), rows)
        _compare(shard, rows, again, stages.tolerance, found)
        if segments is not None:
            ours = segment_table(again, stages.embedding, stages.level)
            these = pc.field("item_id").isin(pc.unique(ours["item_id"]))
            theirs = pq.read_table(segments, filters=these)
            check_plain(theirs.schema, f"{output}: {shard.id}")
            _compare_segments(shard, theirs, ours, stages.tolerance, found)


def _object(output: str, marker: Marker, folder: str) -> io.BytesIO:
    """A shard's object in a folder."""
    (name,) = (o.name for o in marker.objects if o.name.startswith(f"{folder}/"))
    return io.BytesIO(storage_for(output).read(join(output, name)))


def _embedded(
    output: str, done: dict[Shard, Marker], newest: Newest | None
) -> Iterator[tuple[Shard, int]]:
    """How many items of each shard are embedded now."""
    if newest is None:
        yield from ((shard, marker.embedded) for shard, marker in done.items())
        return
    partly = [(s, marker) for s, marker in done.items() if marker.failed and newest.live[s.id]]
    failed = Counter({shard: rows.num_rows for shard, rows in failures(output, partly, newest)})
    yield from ((shard, newest.live[shard.id] - failed[shard]) for shard in done)


def _choose(
    embedded: Iterator[tuple[Shard, int]], count: int, chance: random.Random
) -> dict[Shard, list[int]]:
    """Positions among the embedded items of shards: numbers drawn from all, without repetition."""
    sizes = list(embedded)
    total = sum(size for _, size in sizes)
    drawn = sorted(chance.sample(range(total), min(count, total)), reverse=True)
    chosen: dict[Shard, list[int]] = {}
    start = 0
    for shard, size in sizes:
        while drawn and drawn[-1] < start + size:
            chosen.setdefault(shard, []).append(drawn.pop() - start)
        start += size
    return chosen


def _blocks(rows: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, rows.num_rows, _ROWS):
        yield rows.slice(start, _ROWS)


class _Stages:
    """Preprocess and Encode, as the output was made with them."""

    def __init__(self, output: str, run: Recorded, reach: Reach) -> None:
        import torch  # noqa: PLC0415

        # What was made on a GPU is made on a CPU where there is none, in the same dtype.
        dtype = run.semantics["compute_dtype"]
        here = torch.cuda.is_available()
        device: ComputeDevice = "cuda" if dtype != "float32" and here else "cpu"
        config = run.embed_config(RunConfig(output=output), output)
        what = run.identity(config, device)
        self.level = config.level
        self.embedding = embedding_type(what.encoder.config.out_hidden_size, config.output_dtype)
        self.tolerance = _COMPUTE[dtype] + _OUTPUT[config.output_dtype]
        self._encode = Encode(EncodeConfig.of(config, what, _TOKEN_BUDGET))
        # Last: it starts a process, which nobody would end if the encoder could not be loaded.
        self._preprocess = Preprocess(
            PreprocessConfig(limits=config.limits(), options=what.processors, reach=reach)
        )

    def close(self) -> None:
        """Ends what they have started."""
        self._preprocess.close()

    def embed(self, planned: pa.Table, stored: pa.Table) -> pa.Table:
        """`schema.encoded` rows of the stored ones, read in the very version that they have."""
        ids = planned["item_id"].combine_chunks()
        rows = planned.take(pc.index_in(stored["item_id"].combine_chunks(), ids))
        index = rows.schema.get_field_index("version")
        rows = rows.set_column(index, rows.schema.field(index), stored["version"])
        patches = pa.concat_tables(self._preprocess(nest(rows, [0, rows.num_rows])))
        return self._encode(patches)


def _compare(
    shard: Shard, stored: pa.Table, again: pa.Table, tolerance: float, found: Recomputed
) -> None:
    exact = [n for n in stored.column_names if n in again.column_names and n != "embedding"]
    assert {*EMBEDDINGS} - {*exact} == {"generation", "embedding"}
    for old, new in zip(stored.to_pylist(), again.to_pylist(), strict=True):
        place = f"{shard.id}: {old['uri']}"
        same = new["content_hash"] in (None, old["content_hash"])
        if new["error_code"] in _GONE or (new["error_code"] in _LIMITS and same):
            found.not_comparable += 1
            continue
        found.compared += 1
        if new["error_code"] is not None:
            found.breaches.append(f"{place}: fails now: {new['error_code']}")
            continue
        differ = [name for name in exact if repr(old[name]) != repr(new[name])]
        found.breaches += [f"{place}: {n} is {old[n]!r}, now {new[n]!r}" for n in differ]
        off = _off(np.array(old["embedding"]), np.array(new["embedding"]))
        found.breaches += _told(f"{place}: its vector is", off, tolerance)


def _compare_segments(
    shard: Shard, stored: pa.Table, again: pa.Table, tolerance: float, found: Recomputed
) -> None:
    if stored.num_rows != again.num_rows:
        found.breaches.append(
            f"{shard.id}: {stored.num_rows} segments where there are {again.num_rows} now"
        )
        return
    names = {"embedding": "its vector is", "tokens": "its tokens are"}
    results = {name: what for name, what in names.items() if name in again.column_names}
    exact = [name for name in again.column_names if name not in results]
    pairs = zip(*(table.select(exact).to_pylist() for table in (stored, again)), strict=True)
    for row, (old, new) in enumerate(pairs):
        place = f"{shard.id}: {old['uri']}: segment {old['segment']}"
        differ = [name for name in exact if repr(old[name]) != repr(new[name])]
        found.breaches += [f"{place}: {n} is {old[n]!r}, now {new[n]!r}" for n in differ]
        for name, what in results.items():
            off = _off(*(_numbers(table[name][row]) for table in (stored, again)))
            found.breaches += _told(f"{place}: {what}", off, tolerance)


def _numbers(scalar: pa.Scalar) -> np.ndarray:
    """The numbers of a vector, or of a list of them."""
    values = scalar.values
    while not pa.types.is_floating(values.type):
        values = values.flatten()
    numbers: np.ndarray = values.to_numpy().astype(np.float64)
    return numbers


def _told(what: str, off: float, tolerance: float) -> list[str]:
    if off <= tolerance:
        return []
    return [f"{what} off by {off:.1e} of the largest value; {tolerance:.1e} would be rounding"]


def _off(old: np.ndarray, new: np.ndarray) -> float:
    """The largest difference of two vectors [D], as a share of their largest value."""
    largest = max(np.abs(old).max(), np.abs(new).max())
    return float(np.abs(old - new).max() / largest) if largest else 0.0
