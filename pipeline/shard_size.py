"""How many items a shard may have, by the most bytes that an item can become."""

from __future__ import annotations

import numpy as np

from pipeline.config import DEFAULT_SHARD_ROWS
from pipeline.errors import UsageError
from pipeline.identity import Identity

# A shard is a block in memory and, in its intent, one PUT, which S3 bounds at 5 GiB.
_MOST_SHARD_BYTES = 2 * 2**30


def default_shard_rows(what: Identity) -> int:
    """Items a shard where nothing else is said or planned."""
    return max(1, min(DEFAULT_SHARD_ROWS, _MOST_SHARD_BYTES // _item_bytes(what)))


def check_shard_size(rows: int, what: Identity) -> None:
    """Refuses shards whose vectors may be more than one object should be.

    Raises:
        UsageError: With the most rows that a shard may have.
    """
    item = _item_bytes(what)
    most = max(1, _MOST_SHARD_BYTES // item)
    if rows > most:
        raise UsageError(
            f"--shard-rows {rows}: vectors of up to {item} bytes an item allow {most} rows at "
            "most; choose another --output with fewer"
        )


def _item_bytes(what: Identity) -> int:
    """The most bytes of an item's vectors and tokens, at the level that is kept."""
    width = what.encoder.config.out_hidden_size
    vector: int = width * np.dtype(what.semantics["output_dtype"]).itemsize
    if what.semantics["level"] == "item":
        return vector
    segments, tokens = _most_segments_and_tokens(what)
    if what.semantics["level"] == "frame":
        tokens = 0
    return vector * (1 + segments) + tokens * width * 2  # Tokens are float16.


def _most_segments_and_tokens(what: Identity) -> tuple[int, int]:
    """The most that one item can have, be it a still or a clip."""
    options = what.processors
    frames = options.videos.temporal_patch_size
    token_pixels = (options.videos.patch_size * options.videos.merge_size) ** 2
    # A clip's token has a place in every frame of a segment, a still's in the one there is.
    pixels = max(options.most_still_pixels, options.most_clip_pixels // frames)
    return options.sampling.most_frames // frames, pixels // token_pixels
