"""The CPU stage: URIs in, uint8 patches and `grid_thw` out, one row for every row."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.budgets import BLOCK_BYTES
from pipeline.errors import MachineError
from pipeline.fetching import Fetcher
from pipeline.imports import collector_at_rest
from pipeline.lane import Item, Lane, Processors
from pipeline.limits import Limits
from pipeline.options import ProcessorOptions
from pipeline.progress import Counts
from pipeline.reach import Reach
from processors import MediaOptions
from processors.sandbox import SandboxError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# Added to an actor's niceness: it and its decoder process take what the encoders leave of a CPU.
# Otherwise, where all need two of them, the encoder is still at work when nothing else is.
_NICENESS = 15


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What the stage needs to know: limits on what comes in, and how it becomes patches."""

    limits: Limits
    options: ProcessorOptions
    reach: Reach
    decoders: int = 1
    """Decoder processes of an actor, each of which works for one call at a time."""
    block_bytes: int = BLOCK_BYTES
    """Bytes of patches that a call passes on as a block as soon as it has them."""

    @property
    def media_options(self) -> MediaOptions:
        """What is decoded of a file."""
        return MediaOptions(
            max_pixels=self.limits.max_source_pixels,
            max_duration_s=self.limits.max_duration_s,
            sampling=self.options.sampling,
            animated=self.options.animated,
            reduce_for=self.options.images if self.options.decode == "fast" else None,
        )

    @property
    def item_bytes(self) -> int:
        """The most bytes of patches that what is listed as an image can become."""
        if self.options.animated == "video":
            return self.clip_bytes
        return 3 * self.options.most_still_pixels

    @property
    def clip_bytes(self) -> int:
        """The most bytes of patches that what is listed as a video can become."""
        return 3 * self.options.most_clip_pixels


class Preprocess:
    """Fetches, decodes, resizes and patchifies.

    Files are decoded in processes of their own; each is at the next file while its call resizes the
    last one's pixels. Twice as many calls as there are decoders may overlap: some fetch while the
    others decode. With `progress`, an actor of Ray, which comes after the encoders wherever CPUs
    are short.
    """

    def __init__(self, config: PreprocessConfig, progress: ActorHandle[Any] | None = None) -> None:
        if progress is not None:
            os.nice(_NICENESS)  # This thread's, and so that of all that are started below.
        self._config = config
        self._fetcher = Fetcher(
            max_bytes=config.limits.max_file_bytes, reach=config.reach, decoders=config.decoders
        )
        # Beside the imports. What a start raises, the first call raises: Ray leaves the calls of an
        # actor that fails here waiting for ever, if it is not the actor's first process (Ray 2.60).
        self._lanes = [Lane(config) for _ in range(config.decoders)]
        self._free: SimpleQueue[Lane] = SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)
        with collector_at_rest():
            import torch  # noqa: PLC0415 (only the actor pays its second)

            from processors import GlmgaImageProcessor  # noqa: PLC0415
            from processors.factories import VIDEO_CLASSES  # noqa: PLC0415

        torch.set_num_threads(1)
        self._processors = Processors(
            images=GlmgaImageProcessor(**vars(config.options.images)),
            videos=VIDEO_CLASSES[config.options.family](**vars(config.options.videos)),
        )
        self._progress = progress

    def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
        """A nested block of `schema.MANIFEST` rows to as many `schema.preprocessed` rows.

        Yields:
            Tables in the order of the rows. A table is yielded as soon as its patches reach
            `block_bytes`; the last one has what is left.

        Raises:
            StorageError: Storage failed, whatever the item.
            MachineError: Decoder processes cannot be had here.
        """
        rows = unnest(block)
        fetched, began = self._fetcher.files(rows), time.monotonic()
        first = next(fetched, None)  # Under way before the other call has done its decoding.
        came = time.monotonic()
        part: list[Item] = []
        done, part_bytes = 0, 0
        lane = self._free.get()
        try:
            with lane.watch.turn(began, came) as counts:
                for item in lane.items(chain([first] if first else [], fetched), self._processors):
                    part.append(item)
                    part_bytes += _count(item, counts)
                    if part_bytes >= self._config.block_bytes:
                        table = _table(rows.slice(done, len(part)), part)
                        done, part_bytes, part = done + len(part), 0, []
                        with lane.watch.paused():
                            yield table
                        del table
        except SandboxError as error:
            raise MachineError(
                f"{socket.gethostname()}: {error}; shards stay open, run the same command again"
            ) from error
        finally:
            self._free.put(lane)
        if self._progress is not None:
            counts.preprocessed, counts.preprocessed_blocks = rows.num_rows, 1
            self._progress.add.remote(counts)
        if part:
            table = _table(rows.slice(done), part)
            part = []  # The table has copies of their patches.
            yield table

    def close(self) -> None:
        """Ends the decoder processes and the threads that fetch."""
        for lane in self._lanes:
            lane.close()
        self._fetcher.close()


def unnest(block: pa.Table) -> pa.Table:
    """The rows that `build.nest` packed into one row."""
    return pa.Table.from_struct_array(block["rows"].combine_chunks().flatten())


def _count(item: Item, counts: Counts) -> int:
    """The bytes of an item's patches, which are counted if it is a still."""
    if item.patches is None:
        return 0
    if item.num_frames is None:
        counts.stills += 1
        counts.still_file_bytes += item.file_bytes
        counts.still_patch_bytes += item.patches.nbytes
    return item.patches.nbytes


def _table(rows: pa.Table, items: list[Item]) -> pa.Table:
    failures = [item.error for item in items]
    columns: dict[str, Any] = {
        "content_hash": [item.content_hash for item in items],
        "width": [item.width for item in items],
        "height": [item.height for item in items],
        "num_frames": [item.num_frames for item in items],
        "duration_s": [item.duration_s for item in items],
        "grid_thw": [item.grid_thw for item in items],
        "timestamps": [item.timestamps for item in items],
        "stage": ["preprocess" if error else None for error in failures],
        "error_code": [error.code if error else None for error in failures],
        "error_message": [error.message if error else None for error in failures],
        "attempts": [item.attempts if item.error else None for item in items],
        "patches": _binary([item.patches for item in items]),
    }
    # Where the manifest gives no version, the one that was read stands for the item.
    seen = pa.array([item.version for item in items], pa.string())
    versions = pc.coalesce(rows["version"], seen)
    rows = rows.set_column(rows.schema.get_field_index("version"), "version", versions)
    target = schema.preprocessed(rows.schema)
    found = [
        pa.array(v, target.field(n).type) if isinstance(v, list) else v for n, v in columns.items()
    ]
    return pa.Table.from_arrays([*rows.columns, *found], schema=target)


def _binary(patches: list[npt.NDArray[np.uint8] | None]) -> pa.Array:
    """A large_binary column over one buffer: patches are copied once at most, here."""
    sizes = np.array([0 if p is None else p.nbytes for p in patches], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    present = [p.reshape(-1) for p in patches if p is not None]
    # A long clip, alone in its block, stays where it is.
    data = present[0] if len(present) == 1 else np.concatenate([np.zeros(0, np.uint8), *present])
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(patches), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
