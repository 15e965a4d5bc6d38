"""What is kept beside the driver, in one actor: its process takes a second of a core to start."""

from __future__ import annotations

from pipeline.attempts import Attempts
from pipeline.progress import ProgressCounter


class Notes(ProgressCounter, Attempts):
    """The run's counts and gate, and what encoders' processes ended at.

    In a module that imports no Ray Data: so does whoever unpickles it.
    """

    def __init__(self, window: int) -> None:
        ProgressCounter.__init__(self, window)
        Attempts.__init__(self)
