"""The copy that an output keeps of a checkpoint's vision tower, for its actors and later runs."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from encoder import CheckpointError, checkpoint_digest, vision_tensors, write_vision_tower
from pipeline import layout
from pipeline.errors import UsageError
from pipeline.location import join, local_path
from pipeline.origin import Encoder
from pipeline.processor_files import reading
from pipeline.storage import storage_for


def tower_of(output: str, encoder: Encoder) -> str:
    """Where an output's copy is, as `encoder.load_encoder` takes it."""
    return local_path(join(output, layout.encoder(encoder.digest)))


def find_damage(output: str, encoder: Encoder) -> str | None:
    """What is wrong with an output's copy, as the end of a sentence that begins with its name.

    All of it is read, so that no wrong weight is used without a word. A preset needs no copy.

    Raises:
        StorageError: Storage failed.
    """
    if encoder.random:
        return None
    if not _is_there(output, encoder):
        return "is missing"
    place = tower_of(output, encoder)
    with reading(place, what="the kept encoder"):
        try:
            found = checkpoint_digest(vision_tensors(place))
        except CheckpointError as error:
            return f"is damaged: {error}"
    return None if found == encoder.digest else "is not the encoder that was recorded"


def mend(output: str, encoder: Encoder) -> None:
    """Makes an output's copy again if it is lost or damaged, and says so on standard error.

    Raises:
        UsageError: The checkpoint that it was made from is gone, or another one now.
        StorageError: Storage failed.
    """
    if damage := find_damage(output, encoder):
        print(
            f"patchflow: {tower_of(output, encoder)} {damage}: it is made again from "
            f"--encoder {encoder.location}",
            file=sys.stderr,
        )
        _copy(output, encoder)


def keep(output: str, encoder: Encoder) -> None:
    """Copies a checkpoint's vision tower into an output, unless another driver has.

    Raises:
        UsageError: The checkpoint is no such encoder any more.
        StorageError: Storage failed.
    """
    if not encoder.random and not _is_there(output, encoder):
        _copy(output, encoder)


def _is_there(output: str, encoder: Encoder) -> bool:
    place = join(output, layout.encoder(encoder.digest))
    return storage_for(place).stat(place) is not None


def _copy(output: str, encoder: Encoder) -> None:
    with tempfile.TemporaryDirectory(prefix="patchflow-encoder-") as folder:
        tower = Path(folder) / "tower.safetensors"
        with tower.open("wb") as file, reading(encoder.location):
            write_vision_tower(vision_tensors(encoder.location), file)
        if checkpoint_digest(vision_tensors(str(tower))) != encoder.digest:
            raise UsageError(
                f"--encoder {encoder.location} is not the encoder any more that was fingerprinted"
            )
        storage_for(output).upload(join(output, layout.encoder(encoder.digest)), str(tower))
