from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from processors import patchify


def unpatchify(
    patches: np.ndarray, grid: tuple[int, int, int], *, patch: int, frames: int, merge: int
) -> np.ndarray:
    """The inverse, patch by patch: slow, and written from the definition."""
    t, h, w = grid
    channels = patches.shape[1] // (frames * patch * patch)
    clip = np.empty((t * frames, h * patch, w * patch, channels), patches.dtype)
    row = 0
    for time in range(t):
        for block_y in range(h // merge):
            for block_x in range(w // merge):
                for y in range(block_y * merge, block_y * merge + merge):
                    for x in range(block_x * merge, block_x * merge + merge):
                        cube = patches[row].reshape(channels, frames, patch, patch)
                        clip[
                            time * frames : (time + 1) * frames,
                            y * patch : (y + 1) * patch,
                            x * patch : (x + 1) * patch,
                        ] = cube.transpose(1, 2, 3, 0)
                        row += 1
    assert row == len(patches)
    return clip


def test_rows_run_by_merge_block() -> None:
    # One-pixel patches show their place: 2 x 2 blocks, left to right, then down.
    image = np.arange(16, dtype=np.uint8).reshape(1, 4, 4, 1)
    patches, grid = patchify(image, patch_size=1, temporal_patch_size=1, merge_size=2)
    assert grid == (1, 4, 4)
    assert patches[:, 0].tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_columns_run_channel_frame_row_column() -> None:
    # A pixel's digits: frame, row, column, channel.
    frame, row, column, channel = np.indices((2, 2, 2, 3))
    clip = (1000 * frame + 100 * row + 10 * column + channel).astype(np.int16)
    patches, grid = patchify(clip, patch_size=2, temporal_patch_size=2, merge_size=1)
    assert grid == (1, 1, 1)
    assert patches[0].tolist() == [
        *(0, 10, 100, 110, 1000, 1010, 1100, 1110),
        *(1, 11, 101, 111, 1001, 1011, 1101, 1111),
        *(2, 12, 102, 112, 1002, 1012, 1102, 1112),
    ]


@given(
    grid_t=st.integers(1, 3),
    blocks=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    patch=st.integers(1, 5),
    frames=st.integers(1, 3),
    merge=st.integers(1, 3),
)
def test_patches_hold_the_clip(
    grid_t: int, blocks: tuple[int, int], patch: int, frames: int, merge: int
) -> None:
    shape = (grid_t * frames, blocks[0] * merge * patch, blocks[1] * merge * patch, 3)
    clip = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    patches, grid = patchify(clip, patch_size=patch, temporal_patch_size=frames, merge_size=merge)
    assert grid == (grid_t, blocks[0] * merge, blocks[1] * merge)
    assert patches.flags.c_contiguous
    np.testing.assert_array_equal(
        unpatchify(patches, grid, patch=patch, frames=frames, merge=merge), clip
    )


def test_a_repeated_still_is_the_references_layout() -> None:
    image = np.random.default_rng(0).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    still, grid = patchify(image[None], temporal_patch_size=1)
    repeated, repeated_grid = patchify(np.broadcast_to(image, (2, *image.shape)))
    assert grid == repeated_grid == (1, 4, 6)
    expected = np.repeat(still.reshape(24, 3, 1, 196), 2, axis=2).reshape(24, -1)
    np.testing.assert_array_equal(repeated, expected)


def test_transposed_frames_need_no_copy_before() -> None:
    planar = np.random.default_rng(0).integers(0, 256, (2, 3, 28, 28), dtype=np.uint8)
    patches, _ = patchify(planar.transpose(0, 2, 3, 1))
    expected, _ = patchify(np.ascontiguousarray(planar.transpose(0, 2, 3, 1)))
    np.testing.assert_array_equal(patches, expected)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 28, 30, 3), "multiples of patch_size . merge_size = 28, got 28 x 30"),
        ((2, 0, 28, 3), "got 0 x 28"),
        ((3, 28, 28, 3), "multiple of temporal_patch_size = 2, got 3"),
        ((0, 28, 28, 3), "multiple of temporal_patch_size = 2, got 0"),
        ((28, 28, 3), r"four dimensions, .*, got shape \(28, 28, 3\); .* as image\[None\]"),
        ((1, 2, 28, 28, 3), r"got shape \(1, 2, 28, 28, 3\)"),
    ],
)
def test_what_cannot_be_cut_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        patchify(np.zeros(shape, np.uint8))
