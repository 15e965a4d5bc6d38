"""Which segments share a forward pass. Pure arithmetic, no torch."""

from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple

from encoder.grids import read_grids


class Segment(NamedTuple):
    """One temporal slice of one item: the unit that attention never crosses.

    Attributes:
        item: Index of the item's row in the grids.
        slice: Index of the temporal slice in the item.
        height: Patches from top to bottom.
        width: Patches from left to right.
    """

    item: int
    slice: int
    height: int
    width: int

    @property
    def num_patches(self) -> int:
        """Patches before merging."""
        return self.height * self.width


def segments_of(grid_thw: Iterable[Sequence[int]]) -> list[Segment]:
    """Cuts items into segments, in the order of their patches.

    >>> [segment.num_patches for segment in segments_of([(1, 4, 6), (2, 2, 2)])]
    [24, 4, 4]

    Args:
        grid_thw: `(t, h, w)` an item, in patches before merging.

    Returns:
        `t` segments of `h * w` patches an item.

    Raises:
        ValueError: A row is not three positive integers.
    """
    grids = read_grids(grid_thw)
    return [
        Segment(item, index, h, w) for item, (t, h, w) in enumerate(grids) for index in range(t)
    ]


def next_pack(lengths: Sequence[int], budget: int) -> list[int]:
    """Takes the first segment, and of the others, in their order, each that still fits.

    For a queue that others add to: whatever stands first is in the next pack. Taken until nothing
    is left of segments that run from long to short, packs are first-fit decreasing: never over
    11/9 of the least possible number of packs (plus one).

    >>> next_pack([5, 4, 3, 2], budget=8)
    [0, 2]

    Args:
        lengths: Length of each segment that waits, in patches or tokens.
        budget: Most that a pack may hold, in the same unit.

    Returns:
        Indices into `lengths`, ascending; only the first segment, where it is over the budget.
    """
    pack: list[int] = []
    room = budget
    for index, length in enumerate(lengths):
        if length <= room or not pack:
            pack.append(index)
            room -= length
    return pack


def cu_seqlens(lengths: Iterable[int]) -> list[int]:
    """Returns where each segment starts, and where the last one ends.

    >>> cu_seqlens([2, 3])
    [0, 2, 5]
    """
    return [0, *accumulate(lengths)]
