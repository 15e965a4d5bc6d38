"""A small tower, and what an encoder's stage is configured with."""

from __future__ import annotations

import pytest

from pipeline.encode import EncodeConfig
from tests.support.encoding import DEFAULTS


@pytest.fixture
def encode_config() -> EncodeConfig:
    return EncodeConfig(**DEFAULTS)
