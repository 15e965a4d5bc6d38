"""The copy that an output keeps of a checkpoint's vision tower, for its actors and later runs."""

from __future__ import annotations

import tempfile
from pathlib import Path

from encoder import CheckpointError, checkpoint_digest, vision_tensors, write_vision_tower
from pipeline import layout
from pipeline.errors import UsageError
from pipeline.location import join
from pipeline.origin import Encoder
from pipeline.processor_files import reading
from pipeline.storage import storage_for


def find_damage(output: str, encoder: Encoder) -> str | None:
    """What is wrong with an output's copy, as the end of a sentence that begins with its name.

    All of it is read, so that no wrong weight is used without a word. A preset needs no copy.

    Raises:
        StorageError: Storage failed.
    """
    if encoder.random:
        return None
    place = join(output, layout.encoder(encoder.digest))
    if storage_for(place).stat(place) is None:
        return "is missing"
    with reading(place):
        try:
            found = checkpoint_digest(vision_tensors(place))
        except CheckpointError as error:
            return f"is damaged: {error}"
    return None if found == encoder.digest else "is not the encoder that was recorded"


def keep(output: str, encoder: Encoder) -> None:
    """Copies a checkpoint's vision tower into an output, over whatever is there.

    Raises:
        UsageError: The checkpoint is no such encoder any more.
        StorageError: Storage failed.
    """
    if encoder.random:
        return
    with tempfile.TemporaryDirectory(prefix="patchflow-encoder-") as folder:
        tower = Path(folder) / "tower.safetensors"
        with tower.open("wb") as file, reading(encoder.location):
            write_vision_tower(vision_tensors(encoder.location), file)
        if checkpoint_digest(vision_tensors(str(tower))) != encoder.digest:
            raise UsageError(f"--encoder {encoder.location} was changed while it was read")
        storage_for(output).upload(join(output, layout.encoder(encoder.digest)), str(tower))
