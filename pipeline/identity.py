"""Which encoder and which processor a run uses, and the fingerprint that results depend on."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import fsspec

from encoder import (
    PRESETS,
    CheckpointError,
    Glm4vVisionConfig,
    checkpoint_digest,
    preset_digest,
    vision_tensors,
    write_vision_tower,
)
from pipeline import layout
from pipeline.config import ComputeDevice, ComputeDtype, EmbedConfig, RunConfig
from pipeline.errors import PatchflowError, StorageError, UsageError
from pipeline.location import digest, join
from pipeline.sealed import seal, unseal
from pipeline.storage import storage_for
from processors import ImageOptions

SCHEMA_VERSION = 1
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
    with _checkpoint(config.encoder):
        tensors = vision_tensors(config.encoder)
        name = checkpoint_digest(tensors)
    return Encoder(location=config.encoder, digest=name, random=False, config=tensors.config)


@contextmanager
def _checkpoint(location: str) -> Iterator[None]:
    """Says in a line what is wrong with a checkpoint, or with the storage that it lies on."""
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
        with _checkpoint(encoder.location):
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
    return _identity(config, encoder, _image_options(config, encoder), device)


def _identity(
    config: EmbedConfig, encoder: Encoder, images: ImageOptions, device: ComputeDevice
) -> Identity:
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


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What `run.json` says: the configuration that an output was begun with."""

    encoder: Encoder
    seed: int | None
    """Of random weights."""
    semantics: dict[str, Any]
    fingerprint: str

    def embed_config(self, free: RunConfig, output: str) -> EmbedConfig:
        """The command line that began the output, as far as results depend on it."""
        names = ("min_pixels", "max_pixels", "level", "pool", "features", "normalize")
        return EmbedConfig(
            encoder=self.encoder.location,
            seed=self.seed or 0,
            output_dtype=self.semantics["output_dtype"],
            **{name: self.semantics[name] for name in names},
            **{field.name: getattr(free, field.name) for field in fields(RunConfig)}
            | {"output": output},
        )

    def identity(self, config: EmbedConfig, device: ComputeDevice) -> Identity:
        """`identity` of `config`, this one's, without a look at where the encoder came from."""
        shape = self.encoder.config
        images = ImageOptions(
            min_pixels=self.semantics["min_pixels"] * shape.temporal_patch_size,
            max_pixels=self.semantics["max_pixels"] * shape.temporal_patch_size,
            patch_size=shape.patch_size,
            temporal_patch_size=shape.temporal_patch_size,
            merge_size=shape.spatial_merge_size,
            patch_expand_factor=self.semantics["patch_expand_factor"],
        )
        return _identity(config, self.encoder, images, device)


def recorded(output: str) -> Recorded | None:
    """What an output was begun with, None where it was not begun.

    Raises:
        UsageError: By a patchflow whose outputs are others.
        StorageError: Storage failed, or `run.json` is damaged.
    """
    place = join(output, layout.RUN)
    try:
        data = storage_for(output).read(place)
        version = json.loads(data)["schema_version"]
        if version == SCHEMA_VERSION:
            return _recorded(unseal(data))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise StorageError(f"{place} is damaged: {error}") from error
    raise UsageError(
        f"{output} has schema version {version}; this patchflow writes {SCHEMA_VERSION}: "
        "choose another --output"
    )


def _recorded(run: dict[str, Any]) -> Recorded:
    encoder = run["encoder"]
    return Recorded(
        encoder=Encoder(
            location=encoder["location"],
            digest=encoder["digest"],
            random=encoder["random_weights"],
            config=Glm4vVisionConfig(**encoder["config"]),
        ),
        seed=encoder["seed"],
        semantics=run["semantics"],
        fingerprint=run["fingerprint"],
    )


def check_resumable(output: str, semantics: dict[str, Any]) -> bool:
    """Whether the output was begun already, with this very configuration.

    Raises:
        UsageError: With another one, naming the fields that differ.
    """
    run = recorded(output)
    if run is None:
        return False
    old = run.semantics
    names = [name for name in {**old, **semantics} if old.get(name) != semantics.get(name)]
    if names:
        differ = "; ".join(
            f"{name} was {old.get(name)}, now {semantics.get(name)}" for name in names
        )
        raise UsageError(
            f"{output} was made with another configuration: {differ}. "
            "Give the same options to resume, or choose another --output"
        )
    return True


def record(config: EmbedConfig, identity: Identity) -> None:
    """Writes `run.json`, and before it the vision tower of a checkpoint."""
    encoder, storage = identity.encoder, storage_for(config.output)
    place = join(config.output, layout.encoder(encoder.digest))
    if not encoder.random and storage.stat(place) is None:
        with tempfile.TemporaryDirectory(prefix="patchflow-encoder-") as folder:
            tower = Path(folder) / "tower.safetensors"
            with tower.open("wb") as file, _checkpoint(encoder.location):
                write_vision_tower(vision_tensors(encoder.location), file)
            storage.upload(place, str(tower))
    run = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(identity.semantics),
        "semantics": identity.semantics,
        "encoder": {
            "location": encoder.location,
            "digest": encoder.digest,
            "random_weights": encoder.random,
            "seed": config.seed if encoder.random else None,
            "config": asdict(encoder.config),
        },
        "limits": {
            "max_file_bytes": config.max_file_bytes,
            "max_source_pixels": config.max_source_pixels,
        },
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not storage.create(join(config.output, layout.RUN), seal(run)):
        # Another driver was faster; it must have written the same.
        check_resumable(config.output, identity.semantics)
