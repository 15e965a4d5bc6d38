"""The encoder stage: patches in, one vector an item out, packed to a token budget."""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from encoder import Segment, capacity, plan_packs, segments_of
from pipeline import schema
from pipeline.config import ComputeDevice, ComputeDtype, Features, OutputDtype, Pool
from pipeline.progress import Counts

if TYPE_CHECKING:
    import torch
    from ray.actor import ActorHandle

Levels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What the stage needs to know. `location` and `seed` are `encoder.load_encoder`'s."""

    location: str
    seed: int
    device: ComputeDevice
    dtype: ComputeDtype
    token_budget: int
    pool: Pool
    features: Features
    normalize: bool
    output_dtype: OutputDtype


@dataclass
class _PackCounts:
    """What forward passes held and could have held, in tokens."""

    tokens: int = 0
    capacity: int = 0


class Encode:
    """Holds the encoder. Calls may overlap: one packs and copies while another's pack runs."""

    def __init__(self, config: EncodeConfig, progress: ActorHandle[Any] | None = None) -> None:
        import torch  # noqa: PLC0415 (only the actor pays its two seconds)

        from encoder import load_encoder  # noqa: PLC0415

        torch.set_num_threads(1)
        self._config = config
        self._model = load_encoder(
            config.location,
            seed=config.seed,
            device=config.device,
            dtype=torch.float32 if config.dtype == "float32" else torch.bfloat16,
        )
        self._width = self._model.config.out_hidden_size
        self._merged = self._model.config.spatial_merge_size**2
        self._progress = progress
        self._running = threading.Lock()
        self._device_name = (
            torch.cuda.get_device_name() if config.device == "cuda" else config.device
        )

    def __call__(self, rows: pa.Table) -> pa.Table:
        """`schema.preprocessed` rows to `schema.encoded` rows, one for one and in order."""
        present = rows["error_code"].is_null().combine_chunks().to_numpy(zero_copy_only=False)
        present &= rows["item_id"].is_valid().combine_chunks().to_numpy(zero_copy_only=False)
        items = np.flatnonzero(present).tolist()
        grids = rows["grid_thw"].take(items).to_pylist() if items else []
        counts = _PackCounts()
        vectors, failures = self._vectors(grids, _patches(rows["patches"], items), counts)
        table = self._table(rows, items, grids, vectors, failures)
        self._report(table, counts)
        return table

    def _vectors(
        self, grids: list[list[int]], patches: list[Levels], counts: _PackCounts
    ) -> tuple[Vectors, dict[int, str]]:
        """One pooled vector [D] an item, and why an item has none."""
        segments = segments_of(grids)
        sliced = [_slice(patches[s.item], s, grids[s.item][0]) for s in segments]
        lengths = [segment.num_patches // self._merged for segment in segments]
        packs = plan_packs(lengths, self._config.token_budget) if lengths else []
        counts.tokens += sum(lengths)
        counts.capacity += capacity(packs, lengths, self._config.token_budget)
        pooled = np.zeros((len(segments), self._width), np.float32)
        failures: dict[int, str] = {}
        with self._running:
            results = [result for pack in packs for result in self._run(pack, segments, sliced)]
        for pack, vectors in results:
            if vectors is None:
                failures |= {segments[i].item: "one segment does not fit in memory" for i in pack}
            else:
                pooled[pack] = vectors.cpu().numpy()
        return self._combine(segments, lengths, pooled, len(grids)), failures

    def _run(
        self, pack: list[int], segments: list[Segment], sliced: list[Levels]
    ) -> list[tuple[list[int], torch.Tensor | None]]:
        """One pack, in halves of halves where memory asks for it.

        Returns:
            Segments and their pooled vectors [segments, D], still on the device; None for a
            segment that does not fit even alone.
        """
        import torch  # noqa: PLC0415

        try:
            return [(pack, self._forward(pack, segments, sliced))]
        except torch.OutOfMemoryError:
            # The allocator's fragments may be what is missing.
            torch.cuda.empty_cache()
        if len(pack) == 1:
            return [(pack, None)]
        half = len(pack) // 2
        return [
            *self._run(pack[:half], segments, sliced),
            *self._run(pack[half:], segments, sliced),
        ]

    def _forward(
        self, pack: list[int], segments: list[Segment], sliced: list[Levels]
    ) -> torch.Tensor:
        import torch  # noqa: PLC0415

        levels = torch.from_numpy(np.concatenate([sliced[index] for index in pack]))
        if self._config.device == "cuda":
            levels = levels.pin_memory().to("cuda", non_blocking=True)
        grids = [(1, segments[index].height, segments[index].width) for index in pack]
        with torch.inference_mode():
            output = self._model.forward_features(levels, grids)
            tokens = (
                output.pooler_output
                if self._config.features == "merged"
                else output.last_hidden_state
            ).float()
            counts = [segments[index].num_patches // self._merged for index in pack]
            parts = torch.split(tokens, counts)
            if self._config.pool == "max":
                return torch.stack([part.amax(0) for part in parts])
            return torch.stack([part.mean(0) for part in parts])

    def _combine(
        self, segments: list[Segment], lengths: list[int], pooled: Vectors, items: int
    ) -> Vectors:
        """Segments' vectors to items' vectors [items, D]."""
        out = np.zeros((items, self._width), np.float64)
        if self._config.pool == "max":
            out -= np.inf
            for segment, vector in zip(segments, pooled, strict=True):
                np.maximum(out[segment.item], vector, out=out[segment.item])
        else:
            tokens = np.zeros((items, 1))
            for segment, length, vector in zip(segments, lengths, pooled, strict=True):
                out[segment.item] += vector.astype(np.float64) * length
                tokens[segment.item] += length
            out /= tokens
        if self._config.normalize:
            norms = np.linalg.norm(out, axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):  # What is not finite is told apart later.
                out /= np.where(norms == 0, 1.0, norms)
        return out.astype(np.float32)

    def _table(
        self,
        rows: pa.Table,
        items: list[int],
        grids: list[list[int]],
        vectors: Vectors,
        failures: dict[int, str],
    ) -> pa.Table:
        dtype = np.float32 if self._config.output_dtype == "float32" else np.float16
        with np.errstate(over="ignore"):  # What overflows float16 is reported as not finite.
            stored = vectors.astype(dtype)
        found = {name: rows[name].to_pylist() for name in schema.FAILURE.names}
        found["num_tokens"] = [None] * rows.num_rows
        for item, row in enumerate(items):
            found["num_tokens"][row] = math.prod(grids[item]) // self._merged
            failure = None
            if item in failures:
                failure = ("encode", "encode_failed", failures[item], 1)
            elif not np.isfinite(stored[item]).all():
                message = f"the {self._config.output_dtype} vector is not finite"
                failure = ("encode", "not_finite", message, 1)
            for name, value in zip(schema.FAILURE.names, failure or (), strict=False):
                found[name][row] = value
        widths = np.zeros(rows.num_rows + 1, np.int32)
        widths[np.array(items, np.int64) + 1] = self._width
        found["embedding"] = pa.ListArray.from_arrays(np.cumsum(widths), stored.reshape(-1))
        found["device"] = [self._device_name] * rows.num_rows
        target = schema.encoded(rows.schema, pa.from_numpy_dtype(dtype))
        columns = [
            found.get(field.name, rows[field.name] if field.name in rows.column_names else None)
            for field in target
        ]
        return pa.table(columns, schema=target)

    def _report(self, table: pa.Table, counts: _PackCounts) -> None:
        if self._progress is None:
            return
        real = table["item_id"].is_valid()
        errors = Counter(table["error_code"].drop_null().to_pylist())
        self._progress.add.remote(
            Counts(
                items=pc.sum(real).as_py(),
                errors=errors,
                tokens=counts.tokens,
                capacity=counts.capacity,
            )
        )


def _patches(column: pa.ChunkedArray, items: list[int]) -> list[Levels]:
    """The bytes of each item's patches, uint8 [bytes], as views of the block's own buffer."""
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    _, offsets, data = array.buffers()
    starts = np.frombuffer(offsets, np.int64)[array.offset : array.offset + len(array) + 1]
    levels = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    return [levels[starts[row] : starts[row + 1]] for row in items]


def _slice(patches: Levels, segment: Segment, slices: int) -> Levels:
    """One segment of an item's patches, uint8 [num_patches, bytes_a_patch]."""
    sliced: Levels = patches.reshape(slices, segment.num_patches, -1)[segment.slice]
    return sliced
