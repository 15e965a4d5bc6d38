"""The frames of a clip to patches, one frame after another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from processors.resize import resize_torch
from processors.sizes import require_counts, target_size

if TYPE_CHECKING:
    from numpy.typing import DTypeLike, NDArray

    from processors.options import ImageOptions


def clip_grid(
    num_frames: int, height: int, width: int, options: ImageOptions
) -> tuple[int, int, int]:
    """Finds the grid of patches ``(t, h, w)`` of a clip.

    Args:
        num_frames: Frames kept. Where they do not divide, the last one is repeated.
        height: Pixels, before resizing.
        width: Likewise.
        options: What the processor was told.

    Raises:
        AspectRatioError: If a side is over 200 times the other.
        ValueError: If frames or sides are no integers of at least 1 or, without resizing, the sides
            do not divide.
    """
    require_counts(num_frames=num_frames)
    new_height, new_width = target_size(num_frames, height, width, options)
    return (
        -(-num_frames // options.temporal_patch_size),
        new_height // options.patch_size,
        new_width // options.patch_size,
    )


class FramePatcher:
    """Cuts a clip into patches frame by frame, holding no frame but the one at hand.

    Each frame is resized and filed where its pixels belong, in the layout of ``patchify``: levels
    are bit for bit those of the whole clip at once.

    Args:
        num_frames: Frames to come.
        height: Pixels of the first one, before resizing.
        width: Likewise.
        options: What the processor was told.
        dtype: Of the frames: uint8, or float32.

    Raises:
        AspectRatioError: If a side is over 200 times the other.
        ValueError: As ``clip_grid`` does.

    Attributes:
        grid_thw: Patches over time, height and width.
    """

    grid_thw: tuple[int, int, int]

    def __init__(
        self,
        num_frames: int,
        height: int,
        width: int,
        *,
        options: ImageOptions,
        dtype: DTypeLike = np.uint8,
    ) -> None:
        self.grid_thw = clip_grid(num_frames, height, width, options)
        self._num_frames = num_frames
        self._num_added = 0
        self._options = options
        t, h, w = self.grid_thw
        m, T, P = options.merge_size, options.temporal_patch_size, options.patch_size
        self._patches: NDArray[Any] = np.empty((t * h * w, 3 * T * P * P), dtype)
        # The letters of `patches.py`; a view, so that a frame is copied once.
        self._thwmmCTPP = self._patches.reshape(t, h // m, w // m, m, m, 3, T, P, P)

    def add(self, frame: NDArray[Any]) -> None:
        """Files the next frame, resized to the clip's size whatever its own; it may be reused then.

        Args:
            frame: ``[H, W, 3]``, RGB.

        Raises:
            ValueError: If it is another array, one too many, or, without resizing, of another size.
        """
        if self._num_added == self._num_frames:
            raise ValueError(f"expected {self._num_frames} frames, got one more")
        dtype = self._patches.dtype
        if frame.dtype != dtype or frame.ndim != 3 or frame.shape[2] != 3 or not frame.size:
            raise ValueError(
                f"expected a frame of {dtype} [H, W, 3], got {frame.dtype} {list(frame.shape)}"
            )
        t, T = divmod(self._num_added, self._options.temporal_patch_size)
        hmPwmPC = self._resized(frame)
        self._thwmmCTPP[t, ..., T, :, :] = hmPwmPC.transpose(0, 3, 1, 4, 6, 2, 5)
        self._num_added += 1

    def finish(self) -> tuple[NDArray[Any], tuple[int, int, int]]:
        """Repeats the last frame where its patches have room for more.

        Returns:
            Levels ``[t * h * w, 3 * temporal_patch_size * patch_size**2]``, in the layout of
            ``patchify``, and the grid ``(t, h, w)``.

        Raises:
            ValueError: If frames are missing.
        """
        if self._num_added < self._num_frames:
            raise ValueError(f"expected {self._num_frames} frames, got {self._num_added}")
        T = (self._num_frames - 1) % self._options.temporal_patch_size
        last = self._thwmmCTPP[-1]
        last[..., T + 1 :, :, :] = last[..., T : T + 1, :, :]
        return self._patches, self.grid_thw

    def _resized(self, frame: NDArray[Any]) -> NDArray[Any]:
        _, h, w = self.grid_thw
        m, P = self._options.merge_size, self._options.patch_size
        if frame.shape[:2] != (h * P, w * P):
            if not self._options.do_resize:
                raise ValueError(
                    f"do_resize=False takes frames of one size, {h * P} x {w * P}, "
                    f"got {frame.shape[0]} x {frame.shape[1]}"
                )
            resample = self._options.resample
            frame = resize_torch(frame, height=h * P, width=w * P, resample=resample)
        return frame.reshape(h // m, m, P, w // m, m, P, 3)
