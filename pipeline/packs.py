"""The encoder run on packs: items' patches in, their segments' vectors and tokens out."""

from __future__ import annotations

import math
import socket
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from encoder import capacity, plan_packs
from pipeline.block import Block, Failure, Levels
from pipeline.errors import DeviceError

if TYPE_CHECKING:
    import torch

    from pipeline.encode import EncodeConfig

T = TypeVar("T")

# Packs whose results the host does not wait for: while it copies those of one, or lays out the
# next, the device has another to work on. More would only hold more of their memory.
_AHEAD = 2
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


@dataclass(frozen=True, kw_only=True)
class _Results:
    """Of one pack, on the host, or on their way there: complete once `wait` has returned.

    Tokens and whether they are finite are empty where no tokens are kept.
    """

    vectors: torch.Tensor
    tokens: torch.Tensor
    finite: torch.Tensor
    copied: torch.cuda.Event | None

    def wait(self) -> None:
        if self.copied is not None:
            self.copied.synchronize()


class PackedEncoder:
    """Holds the encoder. Calls may overlap: one lays out and copies while another's pack runs."""

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
        self.device_name = torch.cuda.get_device_name() if config.device == "cuda" else "cpu"
        self._running = threading.RLock()

    def block(self, names: list[str], grids: list[list[int]], patches: list[Levels]) -> Block:
        """Items to be encoded."""
        return Block(
            names=names,
            grids=grids,
            patches=patches,
            width=self._model.config.out_hidden_size,
            merged=self._model.config.spatial_merge_size**2,
            keeps_tokens=self._config.level == "token",
        )

    def __call__(self, block: Block, items: Collection[int] | None = None) -> None:
        """Encodes some items of a block, or all: fills in their results, or why there are none."""
        segments = [i for i, s in enumerate(block.segments) if items is None or s.item in items]
        lengths = [block.lengths[index] for index in segments]
        packs = plan_packs(lengths, self._config.token_budget) if lengths else []
        block.counts.tokens += sum(lengths)
        block.counts.capacity += capacity(packs, lengths, self._config.token_budget)

        def forward(pack: list[int]) -> _Results:
            return self._forward(block, pack)

        waiting: deque[tuple[list[int], _Results | None]] = deque()
        with self._running:
            for pack in packs:
                waiting += _halved(block.by_kind([segments[at] for at in pack]), forward)
                while len(waiting) > _AHEAD:
                    _take(block, *waiting.popleft())
        for part, results in waiting:
            _take(block, part, results)

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
        images = max(1, tokens * config.spatial_merge_size**2 // side**2)
        blank = np.zeros(side**2 * config.in_channels * config.patch_size**2, np.uint8)
        block = self.block(["blank"] * images, [[1, side, side]] * images, [blank] * images)
        self(block)
        if len(block.failures) == images:
            raise DeviceError(
                f"the encoder's device, {self.device_name}, has no memory for a blank image of "
                f"{side} x {side} patches; shards stay open, run the same command again"
            )

    def check_results(self) -> None:
        """Holds the encoder, as it stands on its device, against the plain reference.

        Raises:
            DeviceError: It does not compute what it should, whatever the item.
        """
        from encoder import SelfCheckError, check_encoder  # noqa: PLC0415

        try:
            check_encoder(self._model)
        except SelfCheckError as error:
            raise DeviceError(
                f"{error} ({self.device_name} of {socket.gethostname()}); shards stay open, run "
                "the same command again without that device"
            ) from error

    def _forward(self, block: Block, pack: list[int]) -> _Results:
        """Results of a pack, which the device may still be working on."""
        import torch  # noqa: PLC0415

        kinds = [self._on_device(torch.from_numpy(levels)) for levels in block.gather(pack)]
        segments = [block.segments[index] for index in pack]
        grids = [(1, segment.height, segment.width) for segment in segments]
        with torch.inference_mode():
            output = self._model.forward_features(kinds[0] if len(kinds) == 1 else kinds, grids)
            tokens = (
                output.pooler_output
                if self._config.features == "merged"
                else output.last_hidden_state
            ).float()
            parts = torch.split(tokens, [block.lengths[index] for index in pack])
            pooled = [
                part.amax(0) if self._config.pool == "max" else part.mean(0) for part in parts
            ]
            kept = (tokens if block.keeps_tokens else tokens[:0]).half()
            vectors, kept, finite = (
                found.to("cpu", non_blocking=True)  # Into pinned memory: nobody waits.
                for found in (torch.stack(pooled), kept, torch.isfinite(kept).all(1))
            )
        copied = None
        if self._config.device == "cuda":
            copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        return _Results(vectors=vectors, tokens=kept, finite=finite, copied=copied)

    def _on_device(self, levels: torch.Tensor) -> torch.Tensor:
        if self._config.device == "cpu":
            return levels
        return levels.pin_memory().to("cuda", non_blocking=True)


def _take(block: Block, part: list[int], results: _Results | None) -> None:
    """Keeps what came of some segments, once it has come; None: they do not fit in memory."""
    if results is None:
        failure = Failure("one segment does not fit in memory")
        block.failures |= {block.segments[index].item: failure for index in part}
        return
    results.wait()
    block.fill(part, results.vectors.numpy(), results.tokens.numpy(), results.finite.numpy())


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
