"""JSON objects that carry a checksum of themselves: no byte of them changes unseen."""

from __future__ import annotations

import json
from typing import Any

from pipeline.location import digest

_CHECKSUM = "checksum"


def seal(fields: dict[str, Any]) -> bytes:
    """`fields` as one JSON object, their checksum last."""
    checksum = digest(_dump(fields))
    return _dump(fields | {_CHECKSUM: checksum})


def unseal(data: bytes) -> dict[str, Any]:
    """The fields that `seal` wrote.

    Raises:
        ValueError: `data` is not, byte for byte, what it wrote.
    """
    fields = json.loads(data)
    if not isinstance(fields, dict) or _CHECKSUM not in fields:
        raise ValueError("it has no checksum")
    del fields[_CHECKSUM]
    if seal(fields) != data:
        raise ValueError("its checksum is not that of its content")
    return fields


def _dump(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, indent=1).encode()
