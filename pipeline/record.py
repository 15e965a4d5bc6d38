"""`run.json`: what an output was begun with, written once and held against every later run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from typing import Any

from encoder import Glm4vVisionConfig
from pipeline import layout
from pipeline.config import ComputeDevice, EmbedConfig, RunConfig
from pipeline.errors import StorageError, UsageError
from pipeline.identity import Identity, fingerprint, identity_of
from pipeline.limits import Limits
from pipeline.location import join
from pipeline.options import decode_of, recorded_options
from pipeline.origin import Encoder
from pipeline.processor_files import Brought
from pipeline.sealed import seal, unseal
from pipeline.storage import storage_for
from pipeline.tower import keep

SCHEMA_VERSION = 5


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What `run.json` says: the configuration that an output was begun with."""

    encoder: Encoder
    seed: int | None
    """Of random weights."""
    semantics: dict[str, Any]
    fingerprint: str
    limits: Limits

    def embed_config(self, free: RunConfig, output: str) -> EmbedConfig:
        """The command line that began the output, as far as results depend on it."""
        names = (
            *("min_pixels", "max_pixels", "video_max_pixels", "fps", "max_frames", "animated"),
            *("level", "pool", "features", "normalize"),
        )
        return EmbedConfig(
            encoder=self.encoder.location,
            seed=self.seed or 0,
            dtype=self.semantics["compute_dtype"],
            output_dtype=self.semantics["output_dtype"],
            decode=decode_of(self.semantics),
            **{name: self.semantics[name] for name in names},
            **{field.name: getattr(free, field.name) for field in fields(RunConfig)}
            | asdict(free.limits(self.limits))
            | {"output": output},
        )

    def identity(self, config: EmbedConfig, device: ComputeDevice) -> Identity:
        """`identity` of `config`, this one's, without a look at where the encoder came from."""
        return identity_of(
            config, self.encoder, recorded_options(self.semantics, self.encoder.config), device
        )


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
            asked=encoder["asked"],
            location=encoder["location"],
            digest=encoder["digest"],
            random=encoder["random_weights"],
            config=Glm4vVisionConfig(**encoder["config"]),
            brought=Brought(**encoder["processors"]),
            versions=encoder["versions"],
        ),
        seed=encoder["seed"],
        semantics=run["semantics"],
        fingerprint=run["fingerprint"],
        limits=Limits(**run["limits"]),
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
            "Give the same options to resume (compute_dtype is --dtype's, decode --decode's), "
            "or choose another --output"
        )
    return True


def record(config: EmbedConfig, identity: Identity) -> None:
    """Writes `run.json`, and before it the vision tower of a checkpoint."""
    encoder, storage = identity.encoder, storage_for(config.output)
    keep(config.output, encoder)
    run = {
        "schema_version": SCHEMA_VERSION,
        "fingerprint": fingerprint(identity.semantics),
        "semantics": identity.semantics,
        "encoder": {
            "asked": encoder.asked,
            "location": encoder.location,
            "digest": encoder.digest,
            "random_weights": encoder.random,
            "seed": config.seed if encoder.random else None,
            "config": asdict(encoder.config),
            "processors": asdict(encoder.brought),
            "versions": encoder.versions,
        },
        "limits": asdict(config.limits()),
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    if not storage.create(join(config.output, layout.RUN), seal(run)):
        # Another driver was faster; it must have written the same.
        check_resumable(config.output, identity.semantics)
