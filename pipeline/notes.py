"""What is kept beside the driver, in one actor: its process takes a second of a core to start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.attempts import Attempts
from pipeline.progress import Counts, ProgressCounter

# The name of a block that was done, whether any item of it was embedded, and `Counts.to_plain`.
Ended = tuple[str, bool, dict[str, Any]]


class Notes(ProgressCounter, Attempts):
    """The run's counts and gate, and what encoders' processes ended at.

    In a module that imports no Ray Data: so does whoever unpickles it. Each call costs both sides
    about half a millisecond, so that an encoder calls once a block.
    """

    def __init__(self, window: int, devices: int = 1) -> None:
        ProgressCounter.__init__(self, window)
        Attempts.__init__(self, devices)

    def begin_block(
        self, actor: str, name: str, task: str, shard: str, ended: Sequence[Ended]
    ) -> int:
        """Notes that `actor` works on a block of `shard`, which a task of Ray makes.

        Args:
            actor: An encoder's.
            name: Of the block, in every process that works on it.
            task: Of Ray.
            shard: That all of the block's rows are of.
            ended: What the actor has done since its last call.

        Returns:
            The processes that ended amid this block so far.
        """
        self.end_blocks(actor, ended)
        self.block_of(task, shard)
        return self.begin(actor, name)

    def end_blocks(self, actor: str, ended: Sequence[Ended]) -> None:
        """Notes that blocks are done, and adds their counts."""
        for name, embedded, counts in ended:
            self.done(actor, name, embedded=embedded)
            self.add(Counts.from_plain(counts))
