"""How an error shows a value that it did not expect, whatever it is."""

import reprlib


def describe(value: object) -> str:
    """Returns a value as a part of one line: short, or where it is no builtin's, its type."""
    kind = type(value)
    if kind.__module__ != "builtins":
        return f"<{kind.__module__}.{kind.__qualname__}>"
    return " ".join(reprlib.repr(value).split())
