"""Which segments share a forward pass. Pure arithmetic, no torch."""

from bisect import bisect_left, insort
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


def plan_packs(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Fills packs to a budget, longest segment first, each into the fullest pack it fits in.

    Best-fit decreasing: never over 11/9 of the least possible number of packs (plus one). The
    plan depends on nothing but the arguments. Runs in O(n log n) but for the upkeep of a sorted
    list of the distinct amounts of room left; 100,000 segments take a fraction of a second.

    >>> plan_packs([2, 5, 4, 3, 9], budget=7)
    [[4], [1, 0], [2, 3]]

    Args:
        lengths: Length of each segment, in patches or tokens.
        budget: Most that a pack may hold, in the same unit.

    Returns:
        Packs as indices into `lengths`, every index once. A pack's segments run from long to
        short, so that equal lengths are neighbours. A segment longer than the budget is a pack
        of its own.

    Raises:
        ValueError: The budget or a length is not positive.
    """
    if budget < 1:
        raise ValueError(f"budget={budget} is not positive")
    packs: list[list[int]] = []
    with_room: dict[int, list[int]] = {}  # room left -> packs that have it, the next one last
    rooms: list[int] = []  # keys of with_room, ascending
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length < 1:
            raise ValueError(f"lengths[{index}]={length} is not positive")
        at = bisect_left(rooms, length)
        if at == len(rooms):
            pack, room = len(packs), budget
            packs.append([])
        else:
            room = rooms[at]
            pack = with_room[room].pop()
            if not with_room[room]:
                del with_room[room], rooms[at]
        packs[pack].append(index)
        left = room - length
        if left > 0:
            if left not in with_room:
                with_room[left] = []
                insort(rooms, left)
            with_room[left].append(pack)
    return packs


def next_pack(lengths: Sequence[int], budget: int) -> list[int]:
    """Takes the first segment, and of the others, in their order, each that still fits.

    For a queue that others add to: whatever stands first is in the next pack. Taken until nothing
    is left of segments that run from long to short, packs are first-fit decreasing, within the
    same bound as `plan_packs`.

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


def capacity(packs: Iterable[Sequence[int]], lengths: Sequence[int], budget: int) -> int:
    """Returns what the packs could hold: the budget each, an oversize pack its own size.

    >>> capacity([[4], [1, 0], [2, 3]], lengths=[2, 5, 4, 3, 9], budget=7)
    23
    """
    return sum(max(budget, sum(lengths[index] for index in pack)) for pack in packs)


def fill_ratio(packs: Sequence[Sequence[int]], lengths: Sequence[int], budget: int) -> float:
    """Returns the share of the budget that the packs use, in 0..1.

    An oversize pack counts as full. No packs waste nothing: 1.0.

    >>> fill_ratio([[0, 1], [2]], lengths=[3, 4, 2], budget=9)
    0.5
    """
    used = sum(lengths[index] for pack in packs for index in pack)
    return used / capacity(packs, lengths, budget) if packs else 1.0


def cu_seqlens(lengths: Iterable[int]) -> list[int]:
    """Returns where each segment starts, and where the last one ends.

    >>> cu_seqlens([2, 3])
    [0, 2, 5]
    """
    return [0, *accumulate(lengths)]
