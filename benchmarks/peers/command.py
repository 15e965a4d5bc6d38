"""The command line that every peer has."""

from __future__ import annotations

import argparse
from pathlib import Path

DIMENSION = 256
"""Of a vector."""


def read_command(description: str | None, **settings: int | str) -> argparse.Namespace:
    """CORPUS OUTPUT WEIGHTS, and a peer's settings with the values that were found to be best."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("weights", help="a .safetensors file")
    for name, best in settings.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(best), default=best)
    return parser.parse_args()


def jpegs(corpus: Path) -> list[str]:
    """The corpus's files, in order."""
    return sorted(map(str, corpus.resolve().glob("*.jpg")))
