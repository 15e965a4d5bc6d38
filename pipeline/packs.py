"""The encoder run on packs: items' patches in, one pooled vector an item out."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from encoder import Segment, capacity, plan_packs, segments_of
from pipeline.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from pipeline.encode import EncodeConfig

Levels = npt.NDArray[np.uint8]
Vectors = npt.NDArray[np.float32]
T = TypeVar("T")

# What PyTorch's own exception for it does not cover: host memory, pinned memory, libraries'.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "_STATUS_ALLOC_FAILED")
# After any of these a process's CUDA context answers nothing but errors.
_DEVICE_ERRORS = (
    "CUDA error",
    "CUDA driver error",
    "Triton Error [CUDA]",
    "_STATUS_EXECUTION_FAILED",  # cuBLAS's and cuDNN's, as are the next.
    "_STATUS_INTERNAL_ERROR",
    "_STATUS_MAPPING_ERROR",
    "_STATUS_NOT_INITIALIZED",
)


@dataclass
class PackCounts:
    """What forward passes held and could have held, in tokens."""

    tokens: int = 0
    capacity: int = 0


@dataclass(frozen=True)
class Failure:
    """Why an item has no vector."""

    message: str
    attempts: int = 1


class PackedEncoder:
    """Holds the encoder. Calls may overlap: one packs and copies while another's pack runs."""

    def __init__(self, config: EncodeConfig) -> None:
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
        self.width = self._model.config.out_hidden_size
        self.merged = self._model.config.spatial_merge_size**2
        self.device_name = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
        self._running = threading.RLock()

    def __call__(
        self, grids: list[list[int]], patches: list[Levels], counts: PackCounts
    ) -> tuple[Vectors, dict[int, Failure]]:
        """One pooled vector an item, [items, D], and why an item has none."""
        segments = segments_of(grids)
        sliced = [_slice(patches[s.item], s, grids[s.item][0]) for s in segments]
        lengths = [segment.num_patches // self.merged for segment in segments]
        packs = plan_packs(lengths, self._config.token_budget) if lengths else []
        counts.tokens += sum(lengths)
        counts.capacity += capacity(packs, lengths, self._config.token_budget)

        def forward(pack: list[int]) -> torch.Tensor:
            return self._forward(pack, segments, sliced)

        with self._running:
            results = [result for pack in packs for result in _halved(pack, forward)]
        pooled = np.zeros((len(segments), self.width), np.float32)
        failures: dict[int, Failure] = {}
        for pack, vectors in results:
            for part, found in self._copied(pack, vectors, forward):
                if found is None:
                    failure = Failure("one segment does not fit in memory")
                    failures |= {segments[index].item: failure for index in part}
                else:
                    pooled[part] = found
        return self._combine(segments, lengths, pooled, len(grids)), failures

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keeps other calls' packs off the device, whose work for them is done by then."""
        with self._running:
            if self._config.device == "cuda":
                import torch  # noqa: PLC0415

                torch.cuda.synchronize()
            yield

    def check(self, *, tokens: int) -> None:
        """Embeds blank images of `tokens` or, if more, of one image.

        Raises:
            DeviceError: Not one of them fits in memory: no fault of any item.
        """
        config = self._model.config
        # 64 tokens an image, as a small photo has.
        side = config.spatial_merge_size * min(8, math.isqrt(tokens))
        grids = [[1, side, side]] * max(1, tokens * self.merged // side**2)
        blank = np.zeros((side**2, config.in_channels * config.patch_size**2), np.uint8)
        _, failures = self(grids, [blank] * len(grids), PackCounts())
        if len(failures) == len(grids):
            raise DeviceError(
                f"the encoder's device, {self.device_name}, has no memory for a blank image of "
                f"{side} x {side} patches; shards stay open, run the same command again"
            )

    def _copied(
        self,
        pack: list[int],
        vectors: torch.Tensor | None,
        forward: Callable[[list[int]], torch.Tensor],
    ) -> list[tuple[list[int], Vectors | None]]:
        """Vectors on the host; where memory for that is short, of the pack run in halves."""
        if vectors is None:
            return [(pack, None)]
        try:
            return [(pack, vectors.cpu().numpy())]
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
        with self._running:
            return _halved(pack, lambda part: forward(part).cpu().numpy())

    def _forward(
        self, pack: list[int], segments: list[Segment], sliced: list[Levels]
    ) -> torch.Tensor:
        """Pooled vectors [segments, D], still on the device."""
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
            counts = [segments[index].num_patches // self.merged for index in pack]
            parts = torch.split(tokens, counts)
            if self._config.pool == "max":
                return torch.stack([part.amax(0) for part in parts])
            return torch.stack([part.mean(0) for part in parts])

    def _combine(
        self, segments: list[Segment], lengths: list[int], pooled: Vectors, items: int
    ) -> Vectors:
        """Segments' vectors to items' vectors [items, D]."""
        out = np.zeros((items, self.width), np.float64)
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


def is_device_error(error: RuntimeError) -> bool:
    """Whether the process can do nothing more on its device; running out of memory is none."""
    if _is_out_of_memory(error):
        return False
    import torch  # noqa: PLC0415

    return isinstance(error, torch.AcceleratorError) or any(
        sign in str(error) for sign in _DEVICE_ERRORS
    )


def _is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    import torch  # noqa: PLC0415

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
        sign in str(error) for sign in _OUT_OF_MEMORY
    )


def _halved(pack: list[int], run: Callable[[list[int]], T]) -> list[tuple[list[int], T | None]]:
    """Runs one pack, in halves of halves where memory asks for it.

    Returns:
        Segments and what `run` gave for them; None for a segment that does not fit even alone.
    """
    import torch  # noqa: PLC0415

    try:
        return [(pack, run(pack))]
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
    # Only now has the exception let go of what the pack held. The allocator's fragments may be
    # what is missing.
    torch.cuda.empty_cache()
    if len(pack) == 1:
        return [(pack, None)]
    half = len(pack) // 2
    return [*_halved(pack[:half], run), *_halved(pack[half:], run)]


def _slice(patches: Levels, segment: Segment, slices: int) -> Levels:
    """One segment of an item's patches, uint8 [num_patches, bytes_a_patch]."""
    sliced: Levels = patches.reshape(slices, segment.num_patches, -1)[segment.slice]
    return sliced
