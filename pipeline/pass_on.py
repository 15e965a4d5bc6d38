"""Blocks of an encoder whose device is set aside, which another encoder embeds.

Ray Data gives blocks to the set-aside actor as before, and does not know: one more hop, to an actor
that embeds them among its own.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import PatchflowError

if TYPE_CHECKING:
    import pyarrow as pa

    from pipeline.attempts import OwnAttempts
    from pipeline.encode import Encode

# How often is asked whether another encoder has started.
_WAIT_S = 1.0

_own: list[Encode] = []


def offer(encode: Encode) -> None:
    """Lets others pass blocks on to this process's encoder."""
    _own[:] = [encode]


def pass_on(rows: pa.Table, attempts: OwnAttempts) -> pa.Table:
    """Returns what another encoder makes of a block.

    Raises:
        DeviceError: Too few devices are left.
    """
    import ray  # noqa: PLC0415 (the command line's other jobs do without)

    while True:
        other = attempts.pass_on(rows["shard"][0].as_py())
        if other is None:
            time.sleep(_WAIT_S)
            continue
        # As Ray Data's own: if its process ends, the next one does it, and is the one to find the
        # item that ends processes.
        call: Any = other.__ray_call__.options(max_task_retries=-1)
        try:
            table: pa.Table = ray.get(call.remote(_embed_here, rows))
        except ray.exceptions.ActorDiedError:
            continue  # For good; another is there, or will be.
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, PatchflowError):
                raise error.cause from None
            raise
        return table


def _embed_here(actor: object, rows: pa.Table) -> pa.Table:
    return _own[0](rows)
