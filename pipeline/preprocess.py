"""The CPU stage: URIs in, uint8 patches and `grid_thw` out, one row for every row."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema
from pipeline.blame import fetch_item
from pipeline.errors import ItemError
from pipeline.location import digest
from pipeline.objects import Fetched
from pipeline.storage import storage_for
from processors import AspectRatioError, DecodeError, ImageOptions, decode_image

# Enough requests in flight to hide an object store's latency behind decoding, and few enough
# bytes that a call's memory stays small beside its output.
_FETCHERS = 8
_FETCHED_BYTES = 64 * 2**20
# Of a file whose manifest says no size: a few of them fill the bound.
_GUESSED_BYTES = _FETCHED_BYTES // 4


@dataclass(frozen=True, kw_only=True)
class PreprocessConfig:
    """What the stage needs to know: limits on what comes in, and the image processor's options."""

    max_file_bytes: int
    max_source_pixels: int
    options: ImageOptions

    @property
    def clip_bytes(self) -> int:
        """The most bytes of patches that one clip can become."""
        return 3 * 87_478_720  # The family's own budget, until there is an option for it.

    @property
    def item_bytes(self) -> int:
        """The most bytes of patches that one still can become."""
        largest = self.options.max_pixels // self.options.temporal_patch_size
        # A strip at the limit of 200 to 1 keeps one merge block's height, whatever the budget.
        return 3 * max(largest, 201 * self.options.factor**2)


@dataclass(kw_only=True)
class _Item:
    """What becomes of one row; everything is null for a failed one."""

    version: str | None = None
    content_hash: str | None = None
    width: int | None = None
    height: int | None = None
    grid_thw: tuple[int, int, int] | None = None
    error: ItemError | None = None
    patches: npt.NDArray[np.uint8] | None = None


class Preprocess:
    """Fetches, decodes, resizes and patchifies. Two calls may overlap: one fetches, one decodes."""

    def __init__(self, config: PreprocessConfig) -> None:
        import torch  # noqa: PLC0415 (only the actor pays its two seconds)

        from processors import GlmgaImageProcessor  # noqa: PLC0415

        torch.set_num_threads(1)
        self._config = config
        self._processor = GlmgaImageProcessor(**vars(config.options))
        self._fetchers = ThreadPoolExecutor(_FETCHERS, thread_name_prefix="fetch")
        self._decoding = threading.Lock()

    def __call__(self, block: pa.Table) -> pa.Table:
        """A nested block of `schema.MANIFEST` rows to as many `schema.preprocessed` rows."""
        rows = unnest(block)
        fetched = self._fetch(rows)
        first = next(fetched, None)  # Under way before the other call has done its decoding.
        with self._decoding:
            items = [self._item(*first)] if first is not None else []
            items += [self._item(kind, data) for kind, data in fetched]
        return _table(rows, items)

    def _fetch(self, rows: pa.Table) -> Iterator[tuple[str | None, Future[Fetched]]]:
        """Media type and bytes of every row in order, fetched ahead within a bound of bytes."""
        waiting: deque[tuple[str | None, Future[Fetched], int]] = deque()
        ahead = 0
        columns = ("uri", "version", "size_bytes", "media_type")
        for uri, version, size, kind in zip(
            *(rows[name].to_pylist() for name in columns), strict=True
        ):
            cost = size or _GUESSED_BYTES
            while waiting and (ahead + cost > _FETCHED_BYTES or len(waiting) >= 2 * _FETCHERS):
                yield waiting[0][:2]
                ahead -= waiting.popleft()[2]
            waiting.append((kind, self._fetchers.submit(self._read, uri, version), cost))
            ahead += cost
        while waiting:
            yield waiting.popleft()[:2]

    def _read(self, uri: str, version: str | None) -> Fetched:
        limit = self._config.max_file_bytes
        return fetch_item(storage_for(uri), uri, version=version, max_bytes=limit)

    def _item(self, media_type: str | None, fetched: Future[Fetched]) -> _Item:
        item = _Item()
        try:
            found = fetched.result()
            item.version, item.content_hash = found.version, digest(found.data)
            if media_type == "video":
                raise ItemError("unsupported_format", "videos are not embedded by this version")
            image = decode_image(found.data, max_pixels=self._config.max_source_pixels)
            item.height, item.width = image.pixels.shape[:2]
            item.patches, item.grid_thw = self._processor.patches(image.pixels)
        except ItemError as error:
            item.error = error
        except DecodeError as error:
            item.error = ItemError(error.code, error.message)
        except AspectRatioError as error:
            item.error = ItemError("aspect_ratio", str(error))
        return item


def unnest(block: pa.Table) -> pa.Table:
    """The rows that `build.nest` packed into one row."""
    return pa.Table.from_struct_array(block["rows"].combine_chunks().flatten())


def _table(rows: pa.Table, items: list[_Item]) -> pa.Table:
    failures = [item.error for item in items]
    columns: dict[str, Any] = {
        "content_hash": [item.content_hash for item in items],
        "width": [item.width for item in items],
        "height": [item.height for item in items],
        # Null for stills, as is the duration: an image has neither.
        "num_frames": [None] * len(items),
        "duration_s": [None] * len(items),
        "grid_thw": [item.grid_thw for item in items],
        "timestamps": [None] * len(items),
        "stage": ["preprocess" if error else None for error in failures],
        "error_code": [error.code if error else None for error in failures],
        "error_message": [error.message if error else None for error in failures],
        "attempts": [1 if error else None for error in failures],
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
    """A large_binary column over one buffer: the patches are copied once, here."""
    sizes = np.array([0 if p is None else p.nbytes for p in patches], np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])
    present = [p.reshape(-1) for p in patches if p is not None]
    data = np.concatenate(present) if present else np.zeros(0, np.uint8)
    return pa.LargeBinaryArray.from_buffers(
        pa.large_binary(), len(patches), [None, pa.py_buffer(offsets), pa.py_buffer(data)]
    )
