"""Which frames of a clip its model family looks at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from processors.metadata import VideoMetadata

VideoFamily = Literal["glmga", "glm46v", "glm4v"]


@dataclass(frozen=True, kw_only=True)
class VideoSampling:
    """How frames are chosen."""

    family: VideoFamily = "glmga"
    fps: float | None = None
    max_frames: int | None = None
    max_duration: float | None = None
    temporal_patch_size: int = 2

    def indices(self, metadata: VideoMetadata) -> NDArray[np.int64]:
        """Indices of the frames, ascending, an even number of them."""
        raise NotImplementedError
