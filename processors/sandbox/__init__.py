"""Decoding of strangers' files in a process that may crash, hang or be killed."""

from __future__ import annotations

from processors.sandbox.decoder import Decoder, DecoderLimits
from processors.sandbox.decoding import Decoding
from processors.sandbox.protocol import MAX_FRAMES
from processors.sandbox.supervisor import SandboxError

__all__ = ["MAX_FRAMES", "Decoder", "DecoderLimits", "Decoding", "SandboxError"]
