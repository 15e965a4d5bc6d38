"""What can go wrong, and whose fault it is.

PatchflowError                one clear line for a person; `exit_code` for the shell
|- UsageError           (2)   the command cannot work as typed
|- StorageError         (1)   storage, credentials or network failed; resumable
|  |- RefusedError            storage does not let us have one object, or any
|- ClusterError         (1)   Ray did not start, or could not be joined
|- MachineError         (1)   a machine cannot start decoder processes; resumable
|- DeviceError          (1)   what the encoder runs on keeps failing; resumable
|- InternalError        (1)   an invariant of ours does not hold; shards stay open
|- ResizedError         (1)   machines came or went; the run is laid out anew
|- LostError            (1)   results went with a machine; the run is laid out anew
|- RaceError            (1)   another planner was faster; planning again helps
|- ErrorRateError        (3)   `--max-error-rate` was passed; resumable
ItemError                     true of one item only: becomes its row in `errors/`
"""

from __future__ import annotations

from processors import ErrorCode

# As much of a value as a line has room for.
_SHOWN = 200
# How a line ends that says what stopped a run.
STAY_OPEN = "shards stay open, run the same command again"


def printable(text: str) -> str:
    """`text` with all that a terminal would act upon escaped: controls, line ends, directions."""
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape").decode() for char in text
    )


def shown(value: str) -> str:
    """A value that a stranger may have written, quoted for a line, and cut where it is long."""
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}...")


class PatchflowError(Exception):
    """Base of every failure that ends a command with one line and `exit_code`."""

    exit_code = 1


class UsageError(PatchflowError):
    """The command cannot work as typed: the line names the value and what to do."""

    exit_code = 2


class StorageError(PatchflowError):
    """Storage, credentials or the network failed. Nothing is lost; the run can be resumed."""


class RefusedError(StorageError):
    """Storage does not let us have an object: may be the credentials, may be the object."""


class ClusterError(PatchflowError):
    """Ray did not start, or its cluster could not be joined."""


class MachineError(PatchflowError):
    """A machine cannot do its part: no file can be decoded there. The run can be resumed."""


class DeviceError(PatchflowError):
    """What the encoder runs on keeps failing, whatever the item. The run can be resumed."""


class InternalError(PatchflowError):
    """An invariant of ours does not hold, or a stage has a bug; open shards stay open."""


class ResizedError(PatchflowError):
    """The cluster is no longer the one that the run was laid out for."""


class LostError(PatchflowError):
    """Results went with a machine, and the cluster cannot make them again by itself."""


class RaceError(PatchflowError):
    """Another planner has made the generation that this one was to make."""


class ErrorRateError(PatchflowError):
    """More items failed than `--max-error-rate` allows."""

    exit_code = 3


class ItemError(Exception):
    """One item cannot be embedded, for a reason that is true of the item itself.

    Args:
        code: One of `processors.ErrorCode`.
        message: One line, at most about 200 characters.
    """

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(code, message)
        self.code: ErrorCode = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"
