"""The CPU stage: URIs in, uint8 patches and `grid_thw` out, one row for every row."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.errors import ItemError, MachineError
from pipeline.fetching import Fetcher, File
from pipeline.imports import collector_at_rest
from pipeline.limits import Limits
from pipeline.location import digest
from pipeline.options import ProcessorOptions
from pipeline.reach import Reach
from pipeline.stopwatch import Stopwatch
from processors import AspectRatioError, DecodeError, MediaOptions
from processors.sandbox import Decoder, DecoderLimits, Decoding, SandboxError

if TYPE_CHECKING:
    from ray.actor import ActorHandle

# Added to an actor's niceness: it and its decoder process take what the encoders leave of a CPU.
# Otherwise, where all need two of them, the encoder is still at work when nothing else is.
_NICENESS = 15
_LISTED = "a clip that is listed as an image; a manifest's media_type column can say video"


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What the stage needs to know: limits on what comes in, and how it becomes patches."""

    limits: Limits
    options: ProcessorOptions
    reach: Reach

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


@dataclass(kw_only=True)
class _Item:
    """What becomes of one row; null where it failed before."""

    media_type: str | None
    version: str | None = None
    content_hash: str | None = None
    width: int | None = None
    height: int | None = None
    num_frames: int | None = None
    duration_s: float | None = None
    timestamps: list[float] | None = None
    grid_thw: tuple[int, int, int] | None = None
    error: ItemError | None = None
    attempts: int = 1
    patches: npt.NDArray[np.uint8] | None = None


class Preprocess:
    """Fetches, decodes, resizes and patchifies.

    Files are decoded in a process of their own, which is at the next one while this one resizes the
    last one's pixels. Two calls may overlap: one fetches, one decodes. With `progress`, an actor of
    Ray, which comes after the encoders wherever CPUs are short.
    """

    def __init__(self, config: PreprocessConfig, progress: ActorHandle[Any] | None = None) -> None:
        if progress is not None:
            os.nice(_NICENESS)  # This thread's, and so that of all that are started below.
        self._config = config
        self._fetcher = Fetcher(max_bytes=config.limits.max_file_bytes, reach=config.reach)
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        # Beside the imports. What it raises, the first call tells: Ray leaves the calls of an actor
        # that raises here waiting for ever, if it is not the actor's first process (Ray 2.60).
        self._starting = self._starter.submit(self._start_decoder)
        with collector_at_rest():
            import torch  # noqa: PLC0415 (only the actor pays its second)

            from processors import GlmgaImageProcessor  # noqa: PLC0415
            from processors.factories import VIDEO_CLASSES  # noqa: PLC0415

        torch.set_num_threads(1)
        self._images = GlmgaImageProcessor(**vars(config.options.images))
        self._videos = VIDEO_CLASSES[config.options.family](**vars(config.options.videos))
        self._decoding = threading.Lock()
        self._progress = progress
        self._watch = Stopwatch()

    def __call__(self, block: pa.Table) -> pa.Table:
        """A nested block of `schema.MANIFEST` rows to as many `schema.preprocessed` rows.

        Raises:
            StorageError: Storage failed, whatever the item.
            MachineError: Decoder processes cannot be had here.
        """
        rows = unnest(block)
        fetched, began = self._fetcher.files(rows), time.monotonic()
        first = next(fetched, None)  # Under way before the other call has done its decoding.
        came = time.monotonic()
        with self._decoding, self._watch.turn(began, came) as counts:
            try:
                items = list(self._items(chain([first] if first else [], fetched)))
            except SandboxError as error:
                raise MachineError(
                    f"{socket.gethostname()}: {error}; shards stay open, run the same command again"
                ) from error
        if self._progress is not None:
            counts.preprocessed, counts.preprocessed_blocks = rows.num_rows, 1
            self._progress.add.remote(counts)
        return _table(rows, items)

    def close(self) -> None:
        """Ends the decoder process and the threads that fetch, as the end of this process does."""
        if self._starting.exception() is None:
            self._starting.result().close()
        self._starter.shutdown()
        self._fetcher.close()

    def _items(self, fetched: Iterable[tuple[str | None, File]]) -> Iterator[_Item]:
        """What becomes of each row: while one is resized, the next one is being decoded."""
        begun: deque[tuple[_Item, Decoding | None]] = deque()
        try:
            for kind, file in self._watch.over("fetch_s", fetched):
                begun.append(self._begin(kind, file))
                if len(begun) == 2:
                    yield self._finish(*begun.popleft())
            while begun:
                yield self._finish(*begun.popleft())
        finally:
            # A call that fails leaves nothing behind that the next one would have to wait for.
            for _, decoding in begun:
                if decoding is not None:
                    decoding.close()

    def _begin(self, media_type: str | None, fetched: File) -> tuple[_Item, Decoding | None]:
        item = _Item(media_type=media_type)
        with self._watch.waiting("fetch_s"):
            error = fetched.exception()
        if isinstance(error, ItemError):
            # Not that very error, nor raised: it holds on to the bytes of a file that changed.
            item.error = ItemError(error.code, error.message)
            return item, None
        # Taken out, or a long clip's file would be there twice while it is decoded.
        found = fetched.result().pop()
        item.version, item.content_hash = found.version, digest(found.data)
        with self._watch.waiting("decode_s"):
            decoder = self._started()
        return item, decoder.submit(found.data)

    def _started(self) -> Decoder:
        if self._starting.done() and self._starting.exception() is not None:
            self._starting = self._starter.submit(self._start_decoder)
        return self._starting.result()

    def _start_decoder(self) -> Decoder:
        limits = self._config.limits
        return Decoder(
            limits=DecoderLimits(
                timeout_s=limits.decode_timeout_s,
                memory_bytes=limits.decoder_memory_bytes,
                max_file_bytes=limits.max_file_bytes,
            ),
            options=self._config.media_options,
        )

    def _finish(self, item: _Item, decoding: Decoding | None) -> _Item:
        if decoding is None:
            return item
        try:
            with decoding:
                self._cut(item, decoding)
        except DecodeError as error:
            item.error, item.attempts = ItemError(error.code, error.message), error.attempts
        except AspectRatioError as error:
            item.error = ItemError("aspect_ratio", str(error))
        return item

    def _cut(self, item: _Item, decoding: Decoding) -> None:
        with self._watch.waiting("decode_s"):
            info = decoding.info()
        frames = self._watch.over("decode_s", decoding.frames())
        item.height, item.width = info.height, info.width
        if info.kind == "image":
            size = (info.height, info.width)
            item.patches, item.grid_thw = self._images.patches(next(frames), size=size)
            return
        if item.media_type != "video" and self._config.options.animated != "video":
            # Blocks of images have no room for it.
            raise DecodeError("unsupported_format", _LISTED)
        assert info.indices is not None and info.timestamps_s is not None
        item.num_frames, item.duration_s = info.total_num_frames, info.duration_s
        patcher = self._videos.patcher(len(info.indices), info.height, info.width)
        for frame in frames:
            patcher.add(frame)
        item.patches, item.grid_thw = patcher.finish()
        # A segment is shown from its first frame on.
        item.timestamps = list(info.timestamps_s[:: self._videos.options.temporal_patch_size])


def unnest(block: pa.Table) -> pa.Table:
    """The rows that `build.nest` packed into one row."""
    return pa.Table.from_struct_array(block["rows"].combine_chunks().flatten())


def _table(rows: pa.Table, items: list[_Item]) -> pa.Table:
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
