"""Small real photos."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="session")
def goldens() -> Path:
    return GOLDENS


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """The bytes of a real photo of any size."""
    original = Image.open(GOLDENS / "image6.png").convert("RGB")

    def encode(width: int, height: int, kind: str = "PNG") -> bytes:
        sink = io.BytesIO()
        original.resize((width, height), Image.Resampling.BICUBIC).save(sink, kind)
        return sink.getvalue()

    return encode
