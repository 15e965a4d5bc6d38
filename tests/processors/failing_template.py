"""A template whose children fail before they see a file."""

from __future__ import annotations

from typing import NoReturn

from processors.sandbox import child, template


def fail(*_: object, **__: object) -> NoReturn:
    raise OSError("no memory for this child")


if __name__ == "__main__":
    child.Region = fail
    template.main()
