"""One file after the other: decoded in a process of its own, and cut into patches here."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from pipeline.errors import ItemError
from pipeline.fetching import File
from pipeline.location import digest
from pipeline.stopwatch import Stopwatch
from processors import AspectRatioError, DecodeError
from processors.sandbox import Decoder, DecoderLimits, Decoding

if TYPE_CHECKING:
    from pipeline.preprocess import PreprocessConfig
    from processors import GlmgaImageProcessor, VideoProcessor

_LISTED = "a clip that is listed as an image; a manifest's media_type column can say video"


class Processors(NamedTuple):
    """What cuts pixels into patches; any number of threads may use them."""

    images: GlmgaImageProcessor
    videos: VideoProcessor


@dataclass(kw_only=True)
class Item:
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
    file_bytes: int = 0
    patches: npt.NDArray[np.uint8] | None = None


class Lane:
    """A decoder process, for one call at a time, and what the time of its calls goes into."""

    def __init__(self, config: PreprocessConfig) -> None:
        self._config = config
        self._starter = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        self._starting = self._starter.submit(self._start_decoder)
        self.watch = Stopwatch()

    def close(self) -> None:
        """Ends the process."""
        if self._starting.exception() is None:
            self._starting.result().close()
        self._starter.shutdown()

    def items(
        self, fetched: Iterable[tuple[str | None, File]], processors: Processors
    ) -> Iterator[Item]:
        """What becomes of each row: while one is resized, the next one is being decoded."""
        begun: deque[tuple[Item, Decoding | None]] = deque()
        try:
            for kind, file in self.watch.over("fetch_s", fetched):
                begun.append(self._begin(kind, file))
                if len(begun) == 2:
                    yield self._finish(*begun.popleft(), processors)
            while begun:
                yield self._finish(*begun.popleft(), processors)
        finally:
            # A call that fails leaves nothing behind that the next one would have to wait for.
            for _, decoding in begun:
                if decoding is not None:
                    decoding.close()

    def _begin(self, media_type: str | None, fetched: File) -> tuple[Item, Decoding | None]:
        item = Item(media_type=media_type)
        with self.watch.waiting("fetch_s"):
            error = fetched.exception()
        if isinstance(error, ItemError):
            # Not that very error, nor raised: it holds on to the bytes of a file that changed.
            item.error = ItemError(error.code, error.message)
            return item, None
        # Taken out, or a long clip's file would be there twice while it is decoded.
        found = fetched.result().pop()
        item.version, item.content_hash = found.version, digest(found.data)
        item.file_bytes = len(found.data)
        with self.watch.waiting("decode_s"):
            decoder = self._decoder()
        return item, decoder.submit(found.data)

    def _decoder(self) -> Decoder:
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

    def _finish(self, item: Item, decoding: Decoding | None, processors: Processors) -> Item:
        if decoding is None:
            return item
        try:
            with decoding:
                self._cut(item, decoding, processors)
        except DecodeError as error:
            item.error, item.attempts = ItemError(error.code, error.message), error.attempts
        except AspectRatioError as error:
            item.error = ItemError("aspect_ratio", str(error))
        return item

    def _cut(self, item: Item, decoding: Decoding, processors: Processors) -> None:
        with self.watch.waiting("decode_s"):
            info = decoding.info()
        frames = self.watch.over("decode_s", decoding.frames())
        item.height, item.width = info.height, info.width
        if info.kind == "image":
            size = (info.height, info.width)
            item.patches, item.grid_thw = processors.images.patches(next(frames), size=size)
            return
        if item.media_type != "video" and self._config.options.animated != "video":
            # Blocks of images have no room for it.
            raise DecodeError("unsupported_format", _LISTED)
        assert info.indices is not None and info.timestamps_s is not None
        item.num_frames, item.duration_s = info.total_num_frames, info.duration_s
        patcher = processors.videos.patcher(len(info.indices), info.height, info.width)
        for frame in frames:
            patcher.add(frame)
        item.patches, item.grid_thw = patcher.finish()
        # A segment is shown from its first frame on.
        item.timestamps = list(info.timestamps_s[:: processors.videos.options.temporal_patch_size])
