"""Encoded clips to RGB frames, with PyAV."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from processors.metadata import VideoMetadata


class VideoReader:
    """A clip, of which any frames can be had in order.

    Attributes:
        metadata: Exact, where the file's own numbers may not be.
    """

    metadata: VideoMetadata

    def __init__(self, data: bytes | memoryview, *, max_pixels: int) -> None:
        raise NotImplementedError

    def timestamps(self, indices: Sequence[int]) -> list[float]:
        """Seconds from the clip's start of the frames."""
        raise NotImplementedError

    def frames(self, indices: Sequence[int]) -> Iterator[NDArray[np.uint8]]:
        """uint8 [height, width, 3] a frame, valid until the next one is asked for."""
        raise NotImplementedError

    def close(self) -> None:
        """Lets go of the decoder."""
