"""Blocks of an encoder whose device is set aside, which another encoder embeds.

Ray Data gives blocks to the set-aside actor as before, and does not know: one more hop, to an actor
that embeds them among its own.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

from pipeline.errors import PatchflowError

if TYPE_CHECKING:
    import pyarrow as pa
    from ray.actor import ActorHandle

    from pipeline.attempts import OwnAttempts
    from pipeline.encode import Encode, EncodeConfig

# How often is asked whether another encoder has started. They say so before they load anything.
_WAIT_S = 1.0
_MOST_WAITS = 10

_own: list[Encode] = []


def offer(encode: Encode) -> None:
    """Lets others pass blocks on to this process's encoder."""
    _own[:] = [encode]


class PassOn:
    """Passes blocks on to other encoders.

    At the end of a run Ray Data releases actors that it has no block for, and with them a device:
    where no other is left, one more encoder is started there.

    Args:
        kind: The class of encoders.
        config: Theirs.
        attempts: This encoder's own.
    """

    def __init__(self, kind: type[Encode], config: EncodeConfig, attempts: OwnAttempts) -> None:
        self._kind, self._config = kind, config
        self._attempts = attempts
        self._spares: list[ActorHandle[Any]] = []
        self._unfit = 0
        self._lock = threading.Lock()

    def __call__(self, rows: pa.Table) -> pa.Table:
        """Returns what another encoder makes of a block.

        Raises:
            DeviceError: Too few devices are left.
        """
        import ray  # noqa: PLC0415 (the command line's other jobs do without)

        self._attempts.block_of(rows["shard"][0].as_py())
        waits = 0
        while True:
            other = self._attempts.other_encoder()
            if other.handle is None:
                waits += 1
                if waits > _MOST_WAITS:
                    self._start_spare(other.unfit)
                time.sleep(_WAIT_S)
                continue
            # As Ray Data's own: if its process ends, the next one does it, and is the one to find
            # the item that ends processes.
            call: Any = other.handle.__ray_call__.options(max_task_retries=-1)
            try:
                table: pa.Table = ray.get(call.remote(_embed_here, rows))
            except ray.exceptions.ActorDiedError:
                self._attempts.lose(other.actor)
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, PatchflowError):
                    raise error.cause from None
                raise
            else:
                return table

    def _start_spare(self, unfit: int) -> None:
        """Starts an encoder on any free device, one for each time that `unfit` has grown.

        A spare that finds itself on a device that is set aside is unfit too. It keeps the device
        until this process ends, so that the next spare gets another one.
        """
        import ray  # noqa: PLC0415

        with self._lock:
            if unfit > self._unfit:
                self._unfit = unfit
                actor: Any = ray.remote(self._kind).options(
                    num_cpus=0,
                    num_gpus=self._config.gpu_share if self._config.device == "cuda" else 0,
                    max_concurrency=self._config.calls,
                    max_restarts=-1,
                    max_task_retries=-1,
                )
                self._spares.append(actor.remote(self._config, self._attempts.notes))


def _embed_here(actor: object, rows: pa.Table) -> pa.Table:
    return _own[0](rows)
