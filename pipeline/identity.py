"""Which encoder and which processors a run uses, and the fingerprint that results depend on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from encoder import (
    PRESETS,
    Glm4vVisionConfig,
    checkpoint_digest,
    preset_digest,
    vision_tensors,
)
from pipeline.config import ComputeDevice, ComputeDtype, EmbedConfig
from pipeline.location import digest
from pipeline.options import ProcessorOptions, processor_options
from pipeline.processor_files import reading

# Raised whenever the same configuration gives other vectors than it did.
SEMANTICS_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """An encoder by its content: `digest` is of the seed, or of every vision tensor."""

    location: str
    digest: str
    random: bool
    config: Glm4vVisionConfig


def _identify(config: EmbedConfig) -> Encoder:
    """Finds the encoder that `--encoder` names.

    Raises:
        UsageError: It is no preset, and no checkpoint that can be used.
    """
    if config.encoder in PRESETS:
        shape = PRESETS[config.encoder]
        name = preset_digest(shape, config.seed)
        return Encoder(location=config.encoder, digest=name, random=True, config=shape)
    with reading(config.encoder):
        tensors = vision_tensors(config.encoder)
        name = checkpoint_digest(tensors)
    return Encoder(location=config.encoder, digest=name, random=False, config=tensors.config)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that results depend on beside the bytes of an item."""

    encoder: Encoder
    processors: ProcessorOptions
    device: ComputeDevice
    semantics: dict[str, Any]
    """The fields that make the fingerprint."""

    @property
    def dtype(self) -> ComputeDtype:
        """Of the encoder's matrix products."""
        return compute_dtype(self.device)


def compute_dtype(device: ComputeDevice) -> ComputeDtype:
    """bfloat16 on CUDA, float32 on a CPU."""
    return "bfloat16" if device == "cuda" else "float32"


def identity(config: EmbedConfig, device: ComputeDevice) -> Identity:
    """What `config` comes to on `device`.

    Raises:
        UsageError: The encoder or its processor cannot be used.
    """
    encoder = _identify(config)
    checkpoint = None if encoder.random else encoder.location
    return identity_of(
        config, encoder, processor_options(config, checkpoint, encoder.config), device
    )


def identity_of(
    config: EmbedConfig, encoder: Encoder, processors: ProcessorOptions, device: ComputeDevice
) -> Identity:
    """What `config` comes to with an encoder and processors that are known."""
    semantics = {
        "encoder_digest": encoder.digest,
        "encoder_family": "glm4v",
        **processors.semantics,
        "level": config.level,
        "pool": config.pool,
        "features": config.features,
        "normalize": config.normalize,
        "compute_dtype": compute_dtype(device),
        "output_dtype": config.output_dtype,
        "semantics_version": SEMANTICS_VERSION,
    }
    return Identity(encoder=encoder, processors=processors, device=device, semantics=semantics)


def fingerprint(semantics: dict[str, Any]) -> str:
    """128-bit blake2b of the semantic fields."""
    return digest(json.dumps(semantics, sort_keys=True).encode())
