"""The encoder on its device: items' patches in, their segments' vectors and tokens out."""

from __future__ import annotations

import math
import socket
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from pipeline.block import Block, Levels
from pipeline.errors import STAY_OPEN, DeviceError
from pipeline.gpus import check_visible, torch_device
from pipeline.imports import collector_at_rest
from pipeline.rungs import RUNGS, Rung
from pipeline.shared_packs import SharedPacks
from pipeline.watchdog import LEAST_S, MOST_S, PackDeadlines, Watchdog

if TYPE_CHECKING:
    from pipeline.encode import EncodeConfig


class PackedEncoder:
    """Holds the encoder. Calls may overlap: they share packs (`SharedPacks`).

    Args:
        config: The stage's.
        watchdog: Watches what may hang; None where nothing could be done about it.

    Attributes:
        rung: What it computes with.
        device_name: The GPU's model, or `cpu`.
        ceiling_flop_s: See `encoder.ceiling_flop_s`; known once `prepare` has returned.
    """

    def __init__(self, config: EncodeConfig, watchdog: Watchdog | None = None) -> None:
        with collector_at_rest():
            import torch  # noqa: PLC0415 (only the actor pays its second)

            from encoder import PackRunner, load_encoder  # noqa: PLC0415

        torch.set_num_threads(1)
        if config.device == "cuda":
            check_visible()
        self._config = config
        dtype: torch.dtype = getattr(torch, config.dtype)
        device = torch_device(config.device)
        if device == "cuda" and config.gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(config.gpu_share)
        self._model = load_encoder(config.location, seed=config.seed, device=device, dtype=dtype)
        self.rung = RUNGS[config.device][0]
        self.ceiling_flop_s = 0.0
        self.device_name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        runner = PackRunner(
            self._model,
            device=device,
            pool=config.pool,
            features=config.features,
            keep_tokens=config.level == "token",
        )
        self._watchdog = watchdog
        self._deadlines = PackDeadlines(watchdog, self._model.config) if watchdog else None
        self._packs = SharedPacks(
            runner, budget=config.token_budget, calls=config.calls, deadlines=self._deadlines
        )

    def prepare(self, rung: Rung, give_up: Callable[[Rung, str], Rung | None]) -> None:
        """Makes the encoder ready to embed, and checks what it computes.

        Args:
            rung: What it computes with, if that works.
            give_up: Is called with a rung on which a GPU fails, and a line that says how; returns
                what to try next, None if there is nothing.

        Raises:
            DeviceError: It does not compute what it should, or there is no memory for an item.
            RuntimeError: The device fails.
        """
        from encoder import SelfCheckError, is_device_error  # noqa: PLC0415

        # Of a GPU's kernels, one that refuses to run is as good as one that is wrong.
        failures = RuntimeError if self._config.device == "cuda" else SelfCheckError
        trying: Rung | None = rung
        while trying is not None:
            try:
                self._prepare(trying)
            except failures as error:
                if is_device_error(error):
                    raise
                failure = error
                trying = give_up(trying, first_line(error))
            else:
                return
        raise DeviceError(
            f"{failure} ({self.device_name} of {socket.gethostname()}); {STAY_OPEN} without that "
            "device"
        ) from failure

    def _prepare(self, rung: Rung) -> None:
        watchdog = self._watchdog
        what = f"the start with {rung} kernels"
        with nullcontext() if watchdog is None else watchdog.limit(what, MOST_S):
            self.use_rung(rung)
            # A sick device fails here, before it has an item to be blamed on.
            self.check(tokens=1)
            # So does one that would embed everything wrong.
            self.check_results()
            self._measure_ceiling()
        if self._deadlines is not None:
            self._deadlines.start_over()

    def use_rung(self, rung: Rung) -> None:
        """Computes in another way from now on: a GPU; a CPU has but one.

        Raises:
            CompileError: Blocks are not compiled.
            RuntimeError: The device fails.
        """
        self.rung = rung
        if self._config.device == "cpu":
            return
        self._model.use_attention(rung.kernel)
        if self._deadlines is not None:
            # A pack that is unlike those before may be what blocks are compiled for once more.
            self._deadlines.least_s = MOST_S if rung.compiled else LEAST_S
        if rung.compiled and torch_device(self._config.device) == "cuda":
            self._model.compile_blocks()
        else:
            self._model.uncompile_blocks()

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
        self._packs(block, segments)

    def use_threads(self, threads: int) -> None:
        """Lets packs on a CPU have so many threads from now on: their results stay the same."""
        self._packs.use_threads(threads)

    def alone(self) -> AbstractContextManager[None]:
        """Keeps other calls' packs off the device, whose work for them is done by then."""
        return self._packs.alone()

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
                f"{side} x {side} patches; {STAY_OPEN}"
            )

    def check_results(self) -> None:
        """Holds the encoder, as it stands on its device, against the plain reference.

        Raises:
            SelfCheckError: It does not compute what it should, whatever the item.
        """
        from encoder import check_encoder  # noqa: PLC0415

        check_encoder(self._model)
        if torch_device(self._config.device) == "cuda":
            from pipeline.doctor.quick import check_gpu  # noqa: PLC0415 (on GPUs only)

            check_gpu(self._model, self._config)

    def _measure_ceiling(self) -> None:
        import torch  # noqa: PLC0415

        from encoder import ceiling_flop_s  # noqa: PLC0415

        dtype: torch.dtype = getattr(torch, self._config.dtype)
        self.ceiling_flop_s = ceiling_flop_s(torch_device(self._config.device), dtype)


def first_line(error: BaseException) -> str:
    """An error in a line."""
    lines = str(error).splitlines()
    return lines[0][:200] if lines else type(error).__name__
