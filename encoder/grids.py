"""The grids of a pack, checked. Pure arithmetic, no torch."""

from collections.abc import Iterable
from operator import index
from typing import Any

from encoder.describe import describe

Grid = tuple[int, int, int]


def read_grids(grid_thw: Any, merge_size: int = 1) -> list[Grid]:
    """Returns grids as integers.

    Args:
        grid_thw: `(t, h, w)` an item, in patches before merging; a list, an array or a tensor
            [items, 3] of integers.
        merge_size: What h and w must be multiples of.

    Raises:
        ValueError: It is none of these; one line that shows which row, or all, and what would do.
    """
    given = _listed(grid_thw)
    rows = [_listed(row) for row in given] if isinstance(given, Iterable) else [given]
    if rows and not isinstance(rows[0], Iterable):
        raise ValueError(
            f"grid_thw={describe(given)} is not a list of grids; "
            "for one item, pass its (t, h, w) in a list: [(1, 4, 6)]"
        )
    return [_read_grid(number, row, merge_size) for number, row in enumerate(rows)]


def _listed(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # A tensor, or an array.


def _read_grid(number: int, row: Any, merge_size: int) -> Grid:
    try:
        t, h, w = map(index, row)
    except (TypeError, ValueError):
        t = h = w = 0
    if min(t, h, w) < 1:
        fault = " is not three positive integers (t, h, w)"
    elif h % merge_size or w % merge_size:
        fault = f": h and w must be multiples of spatial_merge_size={merge_size}"
    else:
        return t, h, w
    raise ValueError(f"grid_thw[{number}]={describe(row)}{fault}")
