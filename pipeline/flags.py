"""Options by their spelling on the command line, and what is wrong with one's value."""

from __future__ import annotations

import math

from pipeline.errors import UsageError


def flag(name: str) -> str:
    """The command line's spelling of a field."""
    return "--" + name.replace("_", "-")


def check_positive(config: object, *names: str) -> None:
    """Fields that are numbers, or None.

    Raises:
        UsageError: One is not positive, or not finite.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not 0 < value < math.inf:
            raise UsageError(f"{flag(name)} must be positive, got {value}")


def check_text(name: str, *texts: str) -> None:
    """What is typed for the option `name`.

    Raises:
        UsageError: A text is empty.
    """
    if not all(text.strip() for text in texts):
        raise UsageError(f"{name} is empty")
