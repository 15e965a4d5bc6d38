"""The audit of `run.json` and of the vision tower that it names."""

from __future__ import annotations

import hashlib
from typing import BinaryIO, cast

from encoder import preset_digest, vision_tensors, write_vision_tower
from pipeline import layout
from pipeline.errors import PatchflowError
from pipeline.identity import fingerprint
from pipeline.location import DIGEST_BYTES, file_digest, join
from pipeline.origin import Encoder
from pipeline.processor_files import reading
from pipeline.record import Recorded, recorded
from pipeline.storage import storage_for
from pipeline.tower import find_damage, tower_of


def check_run(output: str, breaches: list[str], *, begun: bool) -> Recorded | None:
    """Reads `run.json`, which must be there if the output was `begun`; None where it cannot be."""
    try:
        run = recorded(output)
    except PatchflowError as error:
        breaches.append(f"{layout.RUN}: {error}")
        return None
    if run is None:
        if begun:
            breaches.append(f"{layout.RUN} is missing")
        return None
    name = run.encoder.digest
    if run.fingerprint != fingerprint(run.semantics) or name != run.semantics["encoder_digest"]:
        breaches.append(f"{layout.RUN}: its fingerprint is not that of its configuration")
    if run.encoder.random:
        if name != preset_digest(run.encoder.config, run.seed or 0):
            breaches.append(f"{layout.RUN}: its seed does not make its encoder")
    elif reason := find_damage(output, run.encoder) or _difference(output, run.encoder):
        breaches.append(f"{layout.encoder(name)} {reason}")
    return run


class _Hash:
    """A file that keeps only the hash of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.blake2b(digest_size=DIGEST_BYTES)

    def write(self, data: bytes) -> None:
        self.hash.update(data)


def _difference(output: str, encoder: Encoder) -> str | None:
    """Whether a sound tower is not, byte for byte, what `tower.keep` wrote."""
    tower, expected = tower_of(output, encoder), _Hash()
    with reading(tower, what="the kept encoder"):
        write_vision_tower(vision_tensors(tower), cast(BinaryIO, expected))
    place = join(output, layout.encoder(encoder.digest))
    with storage_for(place).open(place) as file:
        same = file_digest(file) == expected.hash.hexdigest()
    return None if same else "is not as it was kept"
