"""Which encoder and which processors a run uses, and the fingerprint that results depend on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from encoder import PRESETS, checkpoint_digest, pin_location, preset_digest, vision_tensors
from pipeline.config import ComputeDevice, ComputeDtype, EmbedConfig
from pipeline.errors import UsageError
from pipeline.gpus import default_dtype
from pipeline.location import digest
from pipeline.options import ProcessorOptions, processor_options
from pipeline.origin import Encoder, absolute, has_changed, versions_of
from pipeline.processor_files import brought_options, reading

# Raised whenever the same configuration gives other vectors than it did.
SEMANTICS_VERSION = 2
_CHANNELS = 3


def _identify(config: EmbedConfig, begun: Encoder | None) -> Encoder:
    """Finds the encoder that `--encoder` names.

    Raises:
        UsageError: It is no preset, and no checkpoint that can be used.
    """
    asked = config.encoder
    if asked in PRESETS:
        shape = PRESETS[asked]
        name = preset_digest(shape, config.seed)
        return Encoder(asked=asked, location=asked, digest=name, random=True, config=shape)
    if (
        begun is not None
        and absolute(asked) in (begun.asked, begun.location)
        and not has_changed(begun, config.output)
    ):
        return begun
    with reading(asked):
        location = pin_location(asked)
        tensors = vision_tensors(location)
        if tensors.config.in_channels != _CHANNELS:
            raise UsageError(
                f"--encoder {asked}: its pictures have {tensors.config.in_channels} channels; "
                f"those that are embedded have {_CHANNELS}"
            )
        versions = versions_of(tensors)  # Before the reading: what changes under it is noticed.
        name = checkpoint_digest(tensors)
    return Encoder(
        asked=absolute(asked),
        location=absolute(location),
        digest=name,
        random=False,
        config=tensors.config,
        brought=brought_options(location),
        versions=versions,
    )


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
        dtype: ComputeDtype = self.semantics["compute_dtype"]
        return dtype


def identity(config: EmbedConfig, device: ComputeDevice, begun: Encoder | None = None) -> Identity:
    """What `config` comes to on `device`.

    Args:
        config: What to embed, and how; its dtype `auto` is that of a new output.
        device: Where the encoder runs.
        begun: What the output was begun with and keeps. If `--encoder` names it and its files have
            not changed, it is not read again: they may be gone.

    Raises:
        UsageError: The encoder or its processor cannot be used.
        PatchflowError: The GPUs that decide the dtype cannot be looked at.
    """
    encoder = _identify(config, begun)
    options = processor_options(config, encoder.brought, encoder.config)
    return identity_of(config, encoder, options, device)


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
        "compute_dtype": default_dtype(device) if config.dtype == "auto" else config.dtype,
        "output_dtype": config.output_dtype,
        "semantics_version": SEMANTICS_VERSION,
    }
    return Identity(encoder=encoder, processors=processors, device=device, semantics=semantics)


def fingerprint(semantics: dict[str, Any]) -> str:
    """128-bit blake2b of the semantic fields."""
    return digest(json.dumps(semantics, sort_keys=True).encode())
