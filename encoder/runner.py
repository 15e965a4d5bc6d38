"""Packs run on a device: patches there, and their segments' vectors and tokens back.

Shape suffixes:
    N: patches of a pack
    T: tokens of a pack
    S: segments of a pack
    P: values of a patch
    D: out_hidden_size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from encoder.costs import forward_flop
from encoder.model import Glm4vVisionModel
from encoder.out_of_memory import is_out_of_memory
from encoder.pack_time import PackSpan

Levels = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True, eq=False)
class PackResults:
    """Of one pack, on the host, or on their way there: complete once `wait` has returned.

    Attributes:
        vectors: Pooled tokens of each segment, float32 [S, D].
        tokens: Float16 [T, D], one segment after the other; empty unless they are kept.
        finite: Whether all values of a kept token are finite in float16, [T].
        copied: Where the copies from a GPU are done.
        span: What it took on its device.
        flop: What `forward_flop` counts for it.
    """

    vectors: torch.Tensor
    tokens: torch.Tensor
    finite: torch.Tensor
    copied: torch.cuda.Event | None
    span: PackSpan
    flop: int

    @property
    def seconds(self) -> float:
        """How long the device was at it, known once `wait` has returned."""
        return self.span.seconds

    def wait(self) -> None:
        """Waits until the results are there.

        Raises:
            RuntimeError: The device failed at some time before.
        """
        if self.copied is not None:
            self.copied.synchronize()


class PackRunner:
    """Runs packs, in order, each while the host goes on to the next.

    On a GPU `start` waits for nothing: patches are copied on a stream of their own while the pack
    before is computed, and results come back by themselves. One pack that runs and one that
    follows on keep a GPU busy; more would only hold memory. On a CPU a pack is done when `start`
    returns.

        under_way = deque()
        for levels, sizes in packs:
            under_way += runner.start(levels, sizes)
            while len(under_way) > 1:
                part, results = under_way.popleft()  # None: a segment that does not fit.
                results.wait()

    Calls of `start` must not overlap.

    Args:
        model: In eval mode, on `device`.
        device: `cpu`, or `cuda` for the current GPU.
        pool: What makes a segment's vector of its tokens.
        features: Which tokens: `merged`, the model's own, or `last_hidden_state`.
        keep_tokens: Whether tokens come back beside the vectors.
    """

    def __init__(
        self,
        model: Glm4vVisionModel,
        *,
        device: Literal["cpu", "cuda"],
        pool: Literal["mean", "max"] = "mean",
        features: Literal["merged", "last_hidden_state"] = "merged",
        keep_tokens: bool = False,
    ) -> None:
        self._model = model
        self._device = device
        self._pool = pool
        self._features = features
        self._keep_tokens = keep_tokens
        self._merged = model.config.spatial_merge_size**2
        self._sending: torch.cuda.Stream | None = None
        if device == "cuda":
            self._sending = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def start(
        self, levels: Sequence[Levels], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[slice, PackResults | None]]:
        """Starts one pack; in halves of halves, one after the other, where memory asks for it.

        Args:
            levels: uint8 [h * w, P] a segment, as `Glm4vVisionModel.forward` takes them; they
                are free when this returns. Best sorted by P, then by length.
            sizes: `(h, w)` a segment, in patches.

        Returns:
            Parts of the pack, in order, and the results of each; None for a segment that does
            not fit in the device's memory even with all of it to itself.

        Raises:
            RuntimeError: The device fails.
        """
        return self._start(levels, sizes, slice(0, len(levels)))

    def synchronize(self) -> None:
        """Waits until the device has done all that was started."""
        if self._sending is not None:
            torch.cuda.synchronize()

    def _start(
        self, levels: Sequence[Levels], sizes: Sequence[tuple[int, int]], part: slice
    ) -> list[tuple[slice, PackResults | None]]:
        results = self._try(levels[part], sizes[part])
        length = part.stop - part.start
        if results is None and length == 1:
            # Now the device is empty: the first time, other packs may have been in the way.
            results = self._try(levels[part], sizes[part])
        if results is not None or length == 1:
            return [(part, results)]
        half = part.start + length // 2
        return [
            *self._start(levels, sizes, slice(part.start, half)),
            *self._start(levels, sizes, slice(half, part.stop)),
        ]

    def _try(
        self, levels: Sequence[Levels], sizes: Sequence[tuple[int, int]]
    ) -> PackResults | None:
        """Results, on their way; None where memory ran out, with all that can be freed free."""
        try:
            return self._run(levels, sizes)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        # Only now has the exception let go of what the pack held. What the packs before it held
        # is free once they are done. The allocator's fragments may be what is missing.
        self.synchronize()
        torch.cuda.empty_cache()
        return None

    def _run(self, levels: Sequence[Levels], sizes: Sequence[tuple[int, int]]) -> PackResults:
        kinds = [self._send(list(run)) for _, run in groupby(levels, lambda kind: kind.shape[1])]
        grids = [(1, height, width) for height, width in sizes]
        span = PackSpan(self._device)
        with torch.inference_mode():
            output = self._model.forward_features(kinds[0] if len(kinds) == 1 else kinds, grids)
            tokens_TD = (
                output.pooler_output if self._features == "merged" else output.last_hidden_state
            ).float()
            lengths = [height * width // self._merged for height, width in sizes]
            kept_TD = (tokens_TD if self._keep_tokens else tokens_TD[:0]).half()
            vectors, tokens, finite = (
                found.to("cpu", non_blocking=True)  # Into pinned memory: nobody waits.
                for found in (
                    self._pooled(tokens_TD, lengths),
                    kept_TD,
                    torch.isfinite(kept_TD).all(1),
                )
            )
        span.end()
        copied = None
        if self._sending is not None:
            # Whoever waits for it sleeps, and leaves the CPU to those that decode.
            copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            copied.record()
        return PackResults(
            vectors=vectors,
            tokens=tokens,
            finite=finite,
            copied=copied,
            span=span,
            flop=forward_flop(self._model.config, grids),
        )

    def _send(self, segments: list[Levels]) -> torch.Tensor:
        """A run of one kind of patches, uint8 [N, P], where the model's next work finds it."""
        rows, values = sum(map(len, segments)), segments[0].shape[1]
        on_gpu = self._sending is not None
        # PyTorch keeps pinned buffers for reuse, and hands one out again only once the copies
        # from it are done: two or three serve a whole run.
        levels_NP = torch.empty(rows, values, dtype=torch.uint8, device="cpu", pin_memory=on_gpu)
        np.concatenate(segments, out=levels_NP.numpy())
        if self._sending is None:
            return levels_NP
        with torch.cuda.stream(self._sending):
            sent_NP = levels_NP.to("cuda", non_blocking=True)
        computing = torch.cuda.current_stream()
        computing.wait_stream(self._sending)
        # It was allocated on the other stream, which must not reuse it before it is read here.
        sent_NP.record_stream(computing)
        return sent_NP

    def _pooled(self, tokens_TD: torch.Tensor, lengths: list[int]) -> torch.Tensor:
        """Vectors [S, D]. Neighbours of equal length go together: so few lengths fit in a pack
        that there are never many kernels to start, however small the segments are.
        """
        runs = [(length, len(list(run))) for length, run in groupby(lengths)]
        parts = torch.split(tokens_TD, [length * count for length, count in runs])
        stacks = (
            part.view(count, length, -1) for (length, count), part in zip(runs, parts, strict=True)
        )
        return torch.cat(
            [stack.amax(1) if self._pool == "max" else stack.mean(1) for stack in stacks]
        )
