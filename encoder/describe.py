"""How an error shows what it did not expect, whatever it is."""

import reprlib

_LONGEST = 200  # of a name that is shown as it is; those of tensors have some 60 characters


def describe(value: object) -> str:
    """Returns a value as a part of one line: short, or where it is no builtin's, its type."""
    kind = type(value)
    if kind.__module__ != "builtins":
        return f"<{kind.__module__}.{kind.__qualname__}>"
    return " ".join(reprlib.repr(value).split())


def shown(name: str) -> str:
    """Returns a name out of a file as a part of one line, quoted where a terminal might obey it."""
    return name if name.isprintable() and len(name) <= _LONGEST else describe(name)
