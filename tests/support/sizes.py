"""Every combination of sizes that a tower of the family may have."""

from __future__ import annotations

import pytest

SIZES = pytest.mark.parametrize(
    "sizes",
    [
        {"patch_size": patch, "temporal_patch_size": frames, "merge_size": merge}
        for patch in (14, 16)
        for frames in (1, 2, 4)
        for merge in (1, 2, 3)
    ],
    ids=lambda sizes: "-".join(map(str, sizes.values())),
)
