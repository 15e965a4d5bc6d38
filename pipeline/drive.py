"""The driver of one run: actors sized, shards sent, markers counted, failures told in a line."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import build, layout, schema
from pipeline.cluster import plan_workers
from pipeline.commit import CommitConfig
from pipeline.config import ComputeDevice, EmbedConfig
from pipeline.encode import EncodeConfig
from pipeline.errors import ErrorRateError, InternalError, PatchflowError, StorageError
from pipeline.identity import Identity, fingerprint
from pipeline.location import join
from pipeline.manifest import Generation, Shard
from pipeline.preprocess import PreprocessConfig
from pipeline.progress import Counts, ProgressCounter, ProgressLine
from pipeline.storage import storage_for
from pipeline.summary import Summary

_TOKEN_BUDGETS: dict[ComputeDevice, int] = {"cpu": 1024, "cuda": 16384}
# Fewer items than this say nothing about a rate while the run goes on.
_RATE_ITEMS = 100
_TOP_CODES = 3


def drive(
    config: EmbedConfig,
    what: Identity,
    shards: list[Shard],
    frozen: Generation,
    summary: Summary,
) -> None:
    """Embeds `shards` on the running Ray and adds what came of it to `summary`.

    Raises:
        ErrorRateError: `--max-error-rate` was passed.
        PatchflowError: The run failed; what is committed stays.
    """
    workers = plan_workers(config, what.device)
    preprocess = PreprocessConfig(
        max_file_bytes=config.max_file_bytes,
        max_source_pixels=config.max_source_pixels,
        options=what.images,
    )
    items = sum(shard.rows for shard in shards)
    rows_a_block = build.block_rows(preprocess, items, workers)
    counter = _counter(build.window(rows_a_block, frozen.shard_rows, workers))
    brake = _Brake(config)
    line = ProgressLine(counter, items, workers=str(workers), watch=brake.watch)
    with brake, _told_in_a_line(), line:
        markers = build.run(
            shards,
            rows_a_block=rows_a_block,
            preprocess=preprocess,
            encode=_encode_config(config, what),
            commit=_commit_config(config, what, shards, frozen, summary.run),
            workers=workers,
            progress=counter,
        )
        for marker in markers:
            _check_shared(config.output, marker.shard)
            summary.add(marker)
        line.refresh()
    brake.check(summary.items, summary.errors)
    summary.fill = line.counts.fill
    summary.steady_items_s = line.steady_items_s


def _commit_config(
    config: EmbedConfig, what: Identity, shards: list[Shard], frozen: Generation, run: str
) -> CommitConfig:
    return CommitConfig(
        output=config.output,
        run=run,
        fingerprint=fingerprint(what.semantics),
        shard_rows=frozen.shard_rows,
        partition_by=frozen.partition_by,
        columns=tuple(frozen.columns),
        embedding=schema.embedding_type(what.encoder.config.out_hidden_size, config.output_dtype),
        rows={shard.id: shard.rows for shard in shards},
    )


def _encode_config(config: EmbedConfig, what: Identity) -> EncodeConfig:
    encoder = what.encoder
    # A checkpoint is read from the copy that the output keeps: the one that was fingerprinted.
    kept = join(config.output, layout.encoder(encoder.digest))
    return EncodeConfig(
        location=encoder.location if encoder.random else kept,
        seed=config.seed,
        device=what.device,
        dtype=what.dtype,
        token_budget=config.token_budget or _TOKEN_BUDGETS[what.device],
        pool=config.pool,
        features=config.features,
        normalize=config.normalize,
        output_dtype=config.output_dtype,
    )


def _counter(window: int) -> Any:
    # Beside the driver: it must not vanish with a machine that only lends its CPUs.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor = ray.remote(ProgressCounter).options(num_cpus=0, scheduling_strategy=here)
    return actor.remote(window)


def _check_shared(output: str, shard: str) -> None:
    """A marker that the driver cannot see was written to another machine's own disk."""
    place = join(output, layout.marker(shard))
    if storage_for(output).stat(place) is None:
        raise StorageError(
            f"{place} was written, but is not seen from here: --output must be on storage that "
            "all machines share"
        )


class _Brake:
    """Stops the run as soon as more than `--max-error-rate` of its items have failed.

    Counts come in the progress line's thread, while the main thread waits for a shard that may
    be hours away: so it is interrupted as Ctrl-C would.
    """

    def __init__(self, config: EmbedConfig) -> None:
        self._config = config
        self._error: ErrorRateError | None = None

    def watch(self, counts: Counts) -> None:
        """Interrupts the main thread if the rate is passed."""
        if counts.items < _RATE_ITEMS or self._error is not None:
            return
        try:
            self.check(counts.items, counts.errors)
        except ErrorRateError as error:
            self._error = error
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    def check(self, items: int, errors: Counter[str]) -> None:
        """Raises ErrorRateError if the rate is passed."""
        failed = errors.total()
        if failed > items * self._config.max_error_rate:
            top = ", ".join(f"{code} {count:,}" for code, count in errors.most_common(_TOP_CODES))
            raise ErrorRateError(
                f"{failed:,} of {items:,} items failed ({top}), more than --max-error-rate "
                f"{self._config.max_error_rate}; the same command with a higher one resumes"
            )

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, KeyboardInterrupt) and self._error is not None:
            raise self._error from None


@contextmanager
def _told_in_a_line() -> Iterator[None]:
    """Turns what a stage raised in some actor into the one exception that says it."""
    try:
        yield
    except PatchflowError:
        raise
    except (ray.exceptions.RayError, RuntimeError, OSError, ValueError) as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, PatchflowError):
                raise type(cause)(str(cause)) from error
            inner = getattr(cause, "cause", None) or cause.__cause__
            cause = inner if isinstance(inner, BaseException) else None
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise InternalError(
            f"the run failed: {lines[-1] if lines else type(error).__name__}; --verbose tells more"
        ) from error
