"""The marker: the one small object that says that a shard is done, and what it holds."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pipeline.sealed import seal, unseal


@dataclass(frozen=True, kw_only=True)
class Stored:
    """One object of a shard: its name below the output, size and 128-bit blake2b."""

    name: str
    rows: int
    size_bytes: int
    checksum: str


@dataclass(frozen=True, kw_only=True)
class Marker:
    """What a marker says of its shard.

    `run` names the run that made it, `fingerprint` the configuration, as in `run.json`.
    `partition` are the shard's partition values as text, null for null: a folder's name may
    have to shorten them. `kernels` names the ways in which GPUs computed (see `pipeline.rungs`);
    it is empty where that was the usual one alone.
    """

    shard: str
    run: str
    fingerprint: str
    partition: dict[str, str | None]
    rows: int
    embedded: int
    failed: int
    errors: dict[str, int]
    tokens: int
    objects: list[Stored]
    device: str
    versions: dict[str, str]
    committed_at: str
    kernels: str = ""

    def to_json(self) -> bytes:
        """One JSON object."""
        return seal(asdict(self))

    @classmethod
    def from_json(cls, data: bytes) -> Marker:
        """The marker that `to_json` wrote.

        Raises:
            ValueError: It is no such thing.
        """
        try:
            raw = unseal(data)
            raw["objects"] = [Stored(**stored) for stored in raw["objects"]]
            return cls(**raw)
        except (TypeError, KeyError) as error:
            raise ValueError(f"no marker: {error}") from error
