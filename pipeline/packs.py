"""The encoder on its device: items' patches in, their segments' vectors and tokens out."""

from __future__ import annotations

import math
import socket
import warnings
from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import numpy as np

from pipeline.block import Block, Levels
from pipeline.errors import DeviceError
from pipeline.gpus import check_visible, torch_device
from pipeline.imports import collector_at_rest
from pipeline.shared_packs import SharedPacks

if TYPE_CHECKING:
    from pipeline.encode import EncodeConfig


class PackedEncoder:
    """Holds the encoder. Calls may overlap: they share packs (`SharedPacks`)."""

    def __init__(self, config: EncodeConfig) -> None:
        with collector_at_rest():
            import torch  # noqa: PLC0415 (only the actor pays its second)

            from encoder import (  # noqa: PLC0415
                CompileError,
                PackRunner,
                ceiling_flop_s,
                load_encoder,
            )

        torch.set_num_threads(1)
        if config.device == "cuda":
            check_visible()
        self._config = config
        dtype: torch.dtype = getattr(torch, config.dtype)
        device = torch_device(config.device)
        if device == "cuda" and config.gpu_share < 1:
            torch.cuda.set_per_process_memory_fraction(config.gpu_share)
        self._model = load_encoder(config.location, seed=config.seed, device=device, dtype=dtype)
        if device == "cuda":
            try:
                self._model.compile_blocks()
            except CompileError as error:
                warnings.warn(str(error), stacklevel=2)
        self.ceiling_flop_s = ceiling_flop_s(device, dtype)
        self.device_name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        runner = PackRunner(
            self._model,
            device=device,
            pool=config.pool,
            features=config.features,
            keep_tokens=config.level == "token",
        )
        self._packs = SharedPacks(runner, budget=config.token_budget, calls=config.calls)

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
