"""The encoder stage: patches in, vectors out, packed to a token budget."""

from __future__ import annotations

import math
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from pipeline import ending, schema
from pipeline.attempts import MOST_DEATHS, OwnAttempts
from pipeline.block import Block, Failure, Floats, PackCounts
from pipeline.config import (
    ComputeDevice,
    ComputeDtype,
    EmbedConfig,
    Features,
    Level,
    OutputDtype,
    Pool,
)
from pipeline.encode_rows import failure_of, patches_of, segment_columns
from pipeline.errors import DeviceError
from pipeline.identity import Identity
from pipeline.idle_cpus import IdleCpus, Sharing
from pipeline.packs import PackedEncoder
from pipeline.pass_on import PassOn, offer
from pipeline.progress import Counts
from pipeline.rungs import RUNGS
from pipeline.tower import tower_of
from pipeline.watchdog import Watchdog

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# Calls at once. On a GPU, as many as hold the segments of the pack that runs, of the one that
# follows on, and of a full one to choose from, also where blocks are small: of three web photos
# each, 16 fill packs of 16,384 tokens to 99%, 8 to 67% (benchmarks/packs.py). On a CPU a second
# call has nothing to overlap with, and costs memory.
_CALLS: dict[ComputeDevice, int] = {"cpu": 1, "cuda": 16}
# A tower may be read from far away.
_LOAD_S = 1800.0


@dataclass(frozen=True, kw_only=True)
class EncodeConfig:
    """What the stage needs to know. `location` and `seed` are `encoder.load_encoder`'s.

    Attributes:
        calls: The most calls at once, which share packs.
        gpu_share: GPUs that each encoder claims; below 1, also its fraction of a GPU's memory.
        output: Where the quick check of a GPU is kept; None keeps it nowhere.
        tower: The encoder's digest.
        sharing: Of one machine's CPUs; None where an encoder has one thread, whatever else happens.
    """

    location: str
    seed: int
    device: ComputeDevice
    dtype: ComputeDtype
    token_budget: int
    level: Level
    pool: Pool
    features: Features
    normalize: bool
    output_dtype: OutputDtype
    calls: int = 1
    gpu_share: float = 1.0
    output: str | None = None
    tower: str = ""
    sharing: Sharing | None = None

    @classmethod
    def of(cls, config: EmbedConfig, what: Identity, token_budget: int) -> EncodeConfig:
        """That of a run on an output.

        A checkpoint is read from the copy that the output keeps: the one that was fingerprinted.
        """
        encoder = what.encoder
        kept = tower_of(config.output, encoder)
        return cls(
            location=encoder.location if encoder.random else kept,
            seed=config.seed,
            device=what.device,
            dtype=what.dtype,
            token_budget=token_budget,
            level=config.level,
            pool=config.pool,
            features=config.features,
            normalize=config.normalize,
            output_dtype=config.output_dtype,
            calls=_CALLS[what.device],
            gpu_share=config.gpus_per_encoder,
            output=config.output,
            tower=encoder.digest,
        )


class Encode:
    """Embeds blocks. Calls may overlap: they share packs.

    With `notes`, an actor of Ray that is to outlive its processes:

    - A device error, after which a process can do nothing more, ends the process; Ray starts
      another, which takes its calls over.
    - A block whose process has ended twice is split: its items are done one by one, each alone
      on the device and announced before. The item that ends its process twice when it is alone
      becomes an error; the others are embedded.
    - A GPU that hangs, computes something else or refuses to goes on in a plainer way, as do others
      of its model (`pipeline.rungs`).
    - A device with too many ends in a row, or that computes something else in every way, is set
      aside: its blocks are passed on to other encoders. With too few devices left, the run fails.
    """

    def __init__(
        self,
        config: EncodeConfig,
        notes: ActorHandle[Any] | None = None,
    ) -> None:
        self._config = config
        self._attempts = OwnAttempts(notes) if notes is not None else None
        self._failure: Exception | None = None
        self._threads = 1
        self._idle_cpus = IdleCpus(config.sharing) if config.sharing is not None else None
        self._pass_on: PassOn | None = None  # Where the device is set aside.
        offer(self)
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
        if self._pass_on is not None:
            return self._pass_on(rows)
        present = rows["error_code"].is_null().combine_chunks().to_numpy(zero_copy_only=False)
        items = np.flatnonzero(present).tolist()
        block = self._encoder.block(
            rows["item_id"].take(items).to_pylist() if items else [],
            rows["grid_thw"].take(items).to_pylist() if items else [],
            patches_of(rows["patches"], items),
        )
        if self._attempts is None:
            self._encoder(block)
            return self._table(rows, items, block)
        name = f"{rows['item_id'][0].as_py()} and {rows.num_rows - 1} more"
        deaths = self._attempts.begin_block(name, rows["shard"][0].as_py())
        self._take_idle_cpus(self._attempts)
        try:
            self._embed(block, deaths, self._attempts)
        except DeviceError as error:
            self._attempts.end_block(name, Counts(), embedded=False)
            return self._set_aside(str(error), self._attempts)(rows)
        except RuntimeError as error:
            ending.end_if_sick(error, self._attempts)
            if self._config.device == "cuda":
                ending.end_failed_pack(error, self._attempts, self._encoder.rung)
            raise
        table = self._table(rows, items, block)
        counts = self._counts(table, block.counts)
        embedded = len(block.failures) < len(block.names)
        self._attempts.end_block(name, counts, embedded=embedded)
        return table

    def _take_idle_cpus(self, attempts: OwnAttempts) -> None:
        """Lets packs have more threads while that takes nothing from preprocessing."""
        if self._idle_cpus is None or self._config.sharing is None:
            return
        idle = self._idle_cpus.are_there(time.monotonic(), attempts.run_counts())
        threads = self._config.sharing.threads if idle else 1
        if threads != self._threads:
            self._encoder.use_threads(threads)
            self._threads = threads

    def _start(self) -> None:
        if self._attempts is None:
            self._encoder = PackedEncoder(self._config)
            self._encoder.prepare(RUNGS[self._config.device])
        elif self._attempts.start():
            self._start_encoder(self._attempts)
        else:
            self._pass_on = PassOn(type(self), self._config, self._attempts)

    def _set_aside(self, why: str, attempts: OwnAttempts) -> PassOn:
        """Uses the device no more: blocks are passed on."""
        attempts.set_aside(why)
        self._pass_on = PassOn(type(self), self._config, attempts)
        return self._pass_on

    def _start_encoder(self, attempts: OwnAttempts) -> None:
        kind = self._config.device
        encoder: PackedEncoder | None = None
        watchdog = None
        if kind == "cuda":
            watchdog = Watchdog(lambda what: ending.end_hung(what, attempts, encoder))
            watchdog.start()
        try:
            with ending.warnings_remarked(attempts):
                with nullcontext() if watchdog is None else watchdog.limit("loading", _LOAD_S):
                    self._encoder = encoder = PackedEncoder(self._config, watchdog)
                encoder.prepare(attempts.rungs(encoder.device_name, kind))
            # Only now is it known that the device itself is not at fault.
            for rung, reason in encoder.failures:
                attempts.give_up(rung, reason)
        except DeviceError as error:
            self._set_aside(str(error), attempts)
        except RuntimeError as error:
            if kind == "cuda":
                ending.end_failed_start(error, attempts, encoder)
            ending.end_if_sick(error, attempts)
            raise

    def _embed(self, block: Block, deaths: int, attempts: OwnAttempts) -> None:
        """Fills in what comes of each item."""
        if deaths < MOST_DEATHS or not block.names:
            self._encoder(block)
        else:
            with self._encoder.alone():
                self._one_by_one(block, attempts)

    def _one_by_one(self, block: Block, attempts: OwnAttempts) -> None:
        """The same, of a block that has ended processes: split until the item is found.

        Those that have ended a process when alone come last. So whatever can be embedded is,
        which shows that the device is well, before an item is found guilty; on a device that
        fails with every item, `MOST_ENDS` is reached before any is. An item's ends on other
        devices do not count: those may have been sick.
        """
        tasks = [f"{name} alone on {attempts.device}" for name in block.names]
        deaths = attempts.deaths(tasks)
        for item in sorted(range(len(tasks)), key=deaths.__getitem__):
            if deaths[item] >= MOST_DEATHS:
                self._check_device(attempts)
                message = "ended the encoder's process twice, alone in it"
                block.failures[item] = Failure(message, deaths[item])
                attempts.clear_device()
                continue
            attempts.begin(tasks[item])
            self._encoder(block, [item])
            attempts.done(tasks[item], embedded=item not in block.failures)

    def _check_device(self, attempts: OwnAttempts) -> None:
        """Where no item has shown that the device is well, lets a whole pack of blank images.

        That does not start the count of the device's ends anew: one that fails with every item,
        if not with blank ones, is found at the next item.
        """
        if attempts.ends():
            self._encoder.check(tokens=self._config.token_budget)

    def _table(self, rows: pa.Table, items: list[int], block: Block) -> pa.Table:
        vectors = self._stored(block.pooled(self._config.pool))
        segments = self._stored(block.vectors) if self._config.level != "item" else None
        finite: list[bool] = np.logical_and.reduce(np.isfinite(vectors), axis=1).tolist()
        found = {name: rows[name].to_pylist() for name in schema.FAILURE.names}
        found["num_tokens"] = [None] * rows.num_rows
        for item, row in enumerate(items):
            found["num_tokens"][row] = math.prod(block.grids[item]) // block.merged
            failure = failure_of(block, item, vectors, finite[item], segments)
            for name, value in zip(schema.FAILURE.names, failure or (), strict=False):
                found[name][row] = value
        widths = np.zeros(rows.num_rows + 1, np.int32)
        widths[np.array(items, np.int64) + 1] = block.width
        found["embedding"] = pa.ListArray.from_arrays(np.cumsum(widths), vectors.reshape(-1))
        if segments is not None:
            found |= segment_columns(block, items, found, segments)
        found["device"] = [self._encoder.device_name] * rows.num_rows
        kernels = str(self._encoder.rung) if self._config.device == "cuda" else None
        found["device_kernels"] = [kernels] * rows.num_rows
        target = schema.encoded(rows.schema, pa.from_numpy_dtype(vectors.dtype), self._config.level)
        columns = [
            found.get(field.name, rows[field.name] if field.name in rows.column_names else None)
            for field in target
        ]
        return pa.table(columns, schema=target)

    def _stored(self, vectors: Floats) -> Floats:
        """Vectors [any, D] as they are stored."""
        if self._config.normalize:
            vectors = vectors.astype(np.float64)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            with np.errstate(invalid="ignore"):  # What is not finite is told apart later.
                vectors = vectors / np.where(norms == 0, 1.0, norms)
        dtype = np.float32 if self._config.output_dtype == "float32" else np.float16
        with np.errstate(over="ignore"):  # What overflows float16 is reported as not finite.
            return vectors.astype(np.float32, copy=False).astype(dtype, copy=False)

    def _counts(self, table: pa.Table, packs: PackCounts) -> Counts:
        """What a block adds to the run's counts."""
        ceiling_flop_s = self._encoder.ceiling_flop_s
        return Counts(
            items=table.num_rows,
            errors=Counter(table["error_code"].drop_null().to_pylist()),
            tokens=packs.tokens,
            capacity=packs.capacity,
            encoded_blocks=1,
            encode_s=packs.seconds,
            flop=packs.flop if ceiling_flop_s else 0,
            ceiling_flop=packs.seconds * ceiling_flop_s,
        )
