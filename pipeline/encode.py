"""The encoder stage: patches in, one vector an item out, packed to a token budget."""

from __future__ import annotations

import math
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import layout, schema
from pipeline.attempts import MOST_DEATHS, OwnAttempts
from pipeline.config import (
    ComputeDevice,
    ComputeDtype,
    EmbedConfig,
    Features,
    OutputDtype,
    Pool,
)
from pipeline.identity import Identity
from pipeline.location import join
from pipeline.packs import Failure, Levels, PackCounts, PackedEncoder, Vectors, is_device_error
from pipeline.progress import Counts, tell_shard

if TYPE_CHECKING:
    from ray.actor import ActorHandle


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

    @classmethod
    def of(cls, config: EmbedConfig, what: Identity, token_budget: int) -> EncodeConfig:
        """That of a run on an output.

        A checkpoint is read from the copy that the output keeps: the one that was fingerprinted.
        """
        encoder = what.encoder
        kept = join(config.output, layout.encoder(encoder.digest))
        return cls(
            location=encoder.location if encoder.random else kept,
            seed=config.seed,
            device=what.device,
            dtype=what.dtype,
            token_budget=token_budget,
            pool=config.pool,
            features=config.features,
            normalize=config.normalize,
            output_dtype=config.output_dtype,
        )


@dataclass(kw_only=True)
class _Block:
    """The items of one call: ids, `(t, h, w)`, patches, and what packs held so far."""

    names: list[str]
    grids: list[list[int]]
    patches: list[Levels]
    counts: PackCounts = field(default_factory=PackCounts)


class Encode:
    """Embeds blocks. Calls may overlap: one packs and copies while another's pack runs.

    With `attempts`, an actor of Ray that is to outlive its processes:

    - A device error, after which a process can do nothing more, ends the process; Ray starts
      another, which takes its calls over.
    - A block whose process has ended twice is split: its items are done one by one, each alone
      on the device and announced before. The item that ends its process twice when it is alone
      becomes an error; the others are embedded.
    - Too many ends in a row on one device fail the run, as `DeviceError`.
    """

    def __init__(
        self,
        config: EncodeConfig,
        progress: ActorHandle[Any] | None = None,
        attempts: ActorHandle[Any] | None = None,
    ) -> None:
        self._config = config
        self._progress = progress
        self._attempts = OwnAttempts(attempts) if attempts is not None else None
        self._failure: Exception | None = None
        try:
            self._start()
        except Exception as error:
            # The first call tells. Ray leaves the calls of an actor that raises here waiting for
            # ever, if it is not the actor's first process (Ray 2.60).
            self._failure = error

    def __call__(self, rows: pa.Table) -> pa.Table:
        """`schema.preprocessed` rows to `schema.encoded` rows, one for one and in order.

        Raises:
            DeviceError: The device fails, whatever the item.
        """
        if self._failure is not None:
            raise self._failure
        present = rows["error_code"].is_null().combine_chunks().to_numpy(zero_copy_only=False)
        items = np.flatnonzero(present).tolist()
        block = _Block(
            names=rows["item_id"].take(items).to_pylist() if items else [],
            grids=rows["grid_thw"].take(items).to_pylist() if items else [],
            patches=_patches(rows["patches"], items),
        )
        try:
            vectors, failures = self._embed(block)
        except RuntimeError as error:
            self._end_if_sick(error)
            raise
        table = self._table(rows, items, block.grids, vectors, failures)
        self._report(table, block.counts)
        if self._progress is not None and self._attempts is not None:
            tell_shard(self._progress, rows["shard"][0].as_py())
        return table

    def _start(self) -> None:
        if self._attempts is not None:
            self._attempts.start()
        try:
            self._encoder = PackedEncoder(self._config)
            # A sick device fails here, before it has an item to be blamed on.
            self._encoder.check(tokens=1)
        except RuntimeError as error:
            self._end_if_sick(error)
            raise

    def _end_if_sick(self, error: RuntimeError) -> None:
        """Ends the process, without any of what Python does at its end, if its device is gone."""
        if self._attempts is not None and is_device_error(error):
            self._attempts.report(str(error).splitlines()[0][:200])
            os._exit(1)

    def _embed(self, block: _Block) -> tuple[Vectors, dict[int, Failure]]:
        """One pooled vector [D] an item, and why an item has none."""
        if self._attempts is None or not block.names:
            return self._encoder(block.grids, block.patches, block.counts)
        name = f"{block.names[0]} and {len(block.names) - 1} more"
        if self._attempts.begin(name) < MOST_DEATHS:
            vectors, failures = self._encoder(block.grids, block.patches, block.counts)
        else:
            with self._encoder.alone():
                vectors, failures = self._one_by_one(block, self._attempts)
        self._attempts.done(name, embedded=len(failures) < len(block.names))
        return vectors, failures

    def _one_by_one(
        self, block: _Block, attempts: OwnAttempts
    ) -> tuple[Vectors, dict[int, Failure]]:
        """The same, of a block that has ended processes: split until the item is found.

        Those that have ended a process when alone come last. So whatever can be embedded is,
        which shows that the device is well, before an item is found guilty; on a device that
        fails with every item, `MOST_ENDS` is reached before any is. An item's ends on other
        devices do not count: those may have been sick.
        """
        vectors = np.zeros((len(block.names), self._encoder.width), np.float32)
        failures: dict[int, Failure] = {}
        tasks = [f"{name} alone on {attempts.device}" for name in block.names]
        deaths = attempts.deaths(tasks)
        for item in sorted(range(len(tasks)), key=deaths.__getitem__):
            if deaths[item] >= MOST_DEATHS:
                self._check_device(attempts)
                message = "ended the encoder's process twice, alone in it"
                failures[item] = Failure(message, deaths[item])
                continue
            attempts.begin(tasks[item])
            found, failed = self._encoder([block.grids[item]], [block.patches[item]], block.counts)
            vectors[item] = found[0]
            if failed:
                failures[item] = failed[0]
            attempts.done(tasks[item], embedded=not failed)
        return vectors, failures

    def _check_device(self, attempts: OwnAttempts) -> None:
        """Where no item has shown that the device is well, lets a whole pack of blank images.

        That does not start the count of the device's ends anew: one that fails with every item,
        if not with blank ones, is found at the next item.
        """
        if attempts.ends():
            self._encoder.check(tokens=self._config.token_budget)

    def _table(
        self,
        rows: pa.Table,
        items: list[int],
        grids: list[list[int]],
        vectors: Vectors,
        failures: dict[int, Failure],
    ) -> pa.Table:
        dtype = np.float32 if self._config.output_dtype == "float32" else np.float16
        with np.errstate(over="ignore"):  # What overflows float16 is reported as not finite.
            stored = vectors.astype(dtype)
        found = {name: rows[name].to_pylist() for name in schema.FAILURE.names}
        found["num_tokens"] = [None] * rows.num_rows
        for item, row in enumerate(items):
            found["num_tokens"][row] = math.prod(grids[item]) // self._encoder.merged
            failure = None
            if item in failures:
                why = failures[item]
                failure = ("encode", "encode_failed", why.message, why.attempts)
            elif not np.isfinite(stored[item]).all():
                message = f"the {self._config.output_dtype} vector is not finite"
                failure = ("encode", "not_finite", message, 1)
            for name, value in zip(schema.FAILURE.names, failure or (), strict=False):
                found[name][row] = value
        widths = np.zeros(rows.num_rows + 1, np.int32)
        widths[np.array(items, np.int64) + 1] = self._encoder.width
        found["embedding"] = pa.ListArray.from_arrays(np.cumsum(widths), stored.reshape(-1))
        found["device"] = [self._encoder.device_name] * rows.num_rows
        target = schema.encoded(rows.schema, pa.from_numpy_dtype(dtype))
        columns = [
            found.get(field.name, rows[field.name] if field.name in rows.column_names else None)
            for field in target
        ]
        return pa.table(columns, schema=target)

    def _report(self, table: pa.Table, counts: PackCounts) -> None:
        if self._progress is None:
            return
        errors = Counter(table["error_code"].drop_null().to_pylist())
        self._progress.add.remote(
            Counts(
                items=table.num_rows,
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
