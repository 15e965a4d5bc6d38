"""Which encoder and which processor a run uses, and the fingerprint that results depend on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import fsspec

from encoder import (
    PRESETS,
    CheckpointError,
    Glm4vVisionConfig,
    checkpoint_digest,
    preset_digest,
    vision_tensors,
)
from pipeline.config import ComputeDevice, ComputeDtype, EmbedConfig
from pipeline.errors import PatchflowError, StorageError, UsageError
from pipeline.location import digest, join
from processors import ImageOptions

# Raised whenever the same configuration gives other vectors than it did.
SEMANTICS_VERSION = 1


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


@contextmanager
def reading(location: str) -> Iterator[None]:
    """Says in a line what is wrong with a checkpoint, or with the storage that it lies on.

    Raises:
        UsageError: It is no checkpoint that can be used.
        StorageError: Its storage failed.
    """
    try:
        yield
    except CheckpointError as error:
        raise UsageError(f"--encoder {error}") from error
    except PatchflowError:
        raise
    except Exception as error:  # Every file system of fsspec's has exceptions of its own.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise StorageError(f"--encoder {location}: {reason}") from error


def _image_options(config: EmbedConfig, encoder: Encoder) -> ImageOptions:
    """The image processor's options: the checkpoint's own, where it brings some, and ours.

    Raises:
        UsageError: The checkpoint's processor is not one that this version can be.
    """
    options: dict[str, Any] = {}
    if not encoder.random:
        with reading(encoder.location):
            options = _checkpoint_options(encoder.location)
    # The reference's budgets count each frame of a temporal patch; ours count a still's pixels.
    frames = encoder.config.temporal_patch_size
    family = ImageOptions()
    size = options.get("size") or {}
    smallest = size.get("shortest_edge", options.get("min_pixels", family.min_pixels))
    largest = size.get("longest_edge", options.get("max_pixels", family.max_pixels))
    if config.max_pixels is not None:
        largest = config.max_pixels * frames
        smallest = min(smallest, largest)
    if config.min_pixels is not None:
        smallest = config.min_pixels * frames
    if smallest > largest:
        raise UsageError(
            f"--min-pixels {smallest // frames} is more than --max-pixels {largest // frames}"
        )
    return ImageOptions(
        min_pixels=smallest,
        max_pixels=largest,
        patch_size=encoder.config.patch_size,
        temporal_patch_size=frames,
        merge_size=encoder.config.spatial_merge_size,
        patch_expand_factor=options.get("patch_expand_factor", 1),
    )


def _checkpoint_options(location: str) -> dict[str, Any]:
    fs, path = fsspec.core.url_to_fs(location)
    for name, key in (
        ("processor_config.json", "image_processor"),
        ("preprocessor_config.json", None),
    ):
        file = join(path, name)
        if not path.endswith(".safetensors") and fs.exists(file):
            try:
                raw = json.loads(fs.cat_file(file))
                found: dict[str, Any] = raw.get(key, raw) if key else raw
                _check_processor(found, join(location, name))
            except (ValueError, TypeError, AttributeError) as error:
                raise UsageError(f"--encoder {join(location, name)}: {error}") from error
            return found
    return {}


def _check_processor(options: dict[str, Any], location: str) -> None:
    defaults = ImageOptions()
    for name in ("image_mean", "image_std"):
        if name in options and tuple(options[name]) != getattr(defaults, name):
            raise UsageError(f"{location}: {name} {options[name]} is not the family's")
    for name in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        if options.get(name) is False:
            raise UsageError(f"{location}: {name} false is not supported")


@dataclass(frozen=True, kw_only=True)
class Identity:
    """All that results depend on beside the bytes of an item."""

    encoder: Encoder
    images: ImageOptions
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
    return identity_of(config, encoder, _image_options(config, encoder), device)


def identity_of(
    config: EmbedConfig, encoder: Encoder, images: ImageOptions, device: ComputeDevice
) -> Identity:
    """What `config` comes to with an encoder and image options that are known."""
    semantics = {
        "encoder_digest": encoder.digest,
        "encoder_family": "glm4v",
        "min_pixels": images.min_pixels // images.temporal_patch_size,
        "max_pixels": images.max_pixels // images.temporal_patch_size,
        "patch_expand_factor": images.patch_expand_factor,
        "level": config.level,
        "pool": config.pool,
        "features": config.features,
        "normalize": config.normalize,
        "decode": "pillow",
        "resize": "torch-bicubic-antialias",
        "compute_dtype": compute_dtype(device),
        "output_dtype": config.output_dtype,
        "semantics_version": SEMANTICS_VERSION,
    }
    return Identity(encoder=encoder, images=images, device=device, semantics=semantics)


def fingerprint(semantics: dict[str, Any]) -> str:
    """128-bit blake2b of the semantic fields."""
    return digest(json.dumps(semantics, sort_keys=True).encode())
