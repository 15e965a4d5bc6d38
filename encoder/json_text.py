"""JSON that somebody else wrote, parsed within bounds of time and memory. No torch."""

import json
from collections.abc import Sequence
from typing import Any

MAX_JSON_BYTES = 16 * 2**20  # the index of the largest published checkpoints has some 10 MB
_MAX_VALUES = 500_000  # a tensor has nine in a header; parsed, so many take some 50 MB


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parses one object, in which every reader would find the same.

    Raises:
        ValueError: It is no JSON object, nested too deeply, of too many values, or it has a name
            twice or a number that JSON has not; one line.
    """
    count = 1 + sum(raw.count(mark) for mark in (b",", b"[", b"{"))
    if count > _MAX_VALUES:
        raise ValueError(f"{count:,} values, over {_MAX_VALUES:,}, the most supported")
    try:
        value = json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"a JSON object is expected, not {type(value).__name__}")
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has a name twice")
    return found


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")
