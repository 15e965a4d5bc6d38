"""How many actors a run has of each kind, and what each of them claims of the cluster."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from pipeline.budgets import BLOCK_BYTES, Claims
from pipeline.config import ComputeDevice, EmbedConfig
from pipeline.head_start import in_cluster

# Of tasks that read shards of the manifest, the engine takes two calls' rows each every tenth of a
# second. A decoder process is through with a call of photos in a second or so.
_DECODERS_A_SOURCE_TASK = 12
_MOST_SOURCE_TASKS = 8
# Blocks that object stores are to have room for: those of a decoder process's two calls, with what
# waits for an encoder, and those in an encoder's hands.
_BLOCKS_A_DECODER = 8
_BLOCKS_AN_ENCODER = 8
_LEAST_BLOCK_BYTES = 8 * 2**20
# At first; more where shards come faster than that, up to the second.
_MOST_COMMITS = 16
_MOST_COMMITS_OF_A_CLUSTER = 128
# Of both kinds: one driver is good for about 500 actors (ray#54790).
MOST_ACTORS = 480


@dataclass(frozen=True, kw_only=True)
class Workers:
    """How many actors of each kind, and what share of the cluster each one claims.

    Claims on memory are in bytes.
    """

    preprocess: int
    encode: int
    preprocess_cpus: float
    encode_cpus: float
    encode_gpus: float
    preprocess_bytes: int
    encode_bytes: int
    most_threads: int
    """Those of an encoder while preprocessing leaves CPUs idle: then it has those too."""
    commits: int
    """The fewest at once, each in a process of its own."""
    most_commits: int
    """The most at once, where shards come faster than those are done."""
    decoders_an_actor: int = 1
    """Decoder processes of a preprocessing actor: more than one where a driver would otherwise have
    more actors than it is good for."""
    block_bytes: int = BLOCK_BYTES
    """Patches that a block has at the most, but for a single item's."""
    waiting: int = 0
    """Encoders asked for beyond `encode`, for which no GPU has room; see `pipeline.gpu_demand`."""

    @property
    def decoders(self) -> int:
        """Files that are decoded at once."""
        return self.preprocess * self.decoders_an_actor

    @property
    def devices(self) -> int:
        """The fewest that encoders have: GPUs, or groups of them; the CPUs of a machine are one."""
        return math.ceil(self.encode * min(1.0, self.encode_gpus)) or 1

    @property
    def source_tasks(self) -> int:
        """Tasks that read shards of the manifest at once."""
        return min(_MOST_SOURCE_TASKS, -(-self.decoders // _DECODERS_A_SOURCE_TASK))

    @property
    def share_of_machines(self) -> float:
        """CPUs and GPUs that all actors claim together: less where machines were lost."""
        cpus = self.preprocess * self.preprocess_cpus + self.encode * self.encode_cpus
        return cpus + self.encode * self.encode_gpus

    def __str__(self) -> str:
        kind = "GPU" if self.encode_gpus else "CPU"
        waiting = f" ({self.waiting} more wait for GPUs)" if self.waiting else ""
        return f"{self.preprocess} preprocess and {self.encode} {kind} encoder actors{waiting}"


def resources() -> dict[str, float]:
    """What all nodes of the running Ray have together."""
    import ray  # noqa: PLC0415

    found: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return found


def nodes() -> list[dict[str, float]]:
    """What each node that is alive has."""
    import ray  # noqa: PLC0415

    found: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node["Resources"] for node in found if node["Alive"]]


def plan_workers(config: EmbedConfig, device: ComputeDevice, claims: Claims) -> Workers:
    """How the cluster's CPUs, GPUs and memory are shared out; what the user says goes."""
    alive, gpus_each = nodes(), config.gpus_per_encoder
    cpus = max(1, int(resources().get("CPU", 1)))
    per_cpu, encoders, fitting = _memory(alive, claims, device, gpus_each)
    # A cluster's CPUs may be those of another machine, or of somebody else by then.
    alone = device == "cpu" and not in_cluster()
    waiting = 0
    if device == "cuda":
        room = sum(encoders_on(node, gpus_each) for node in alive)
        # An actor without a GPU would take that of one that is to be started again, whose calls
        # would then wait for ever.
        asked = config.encoder_actors or max(1, room)
        encode = min(asked, max(1, room))
        waiting = asked - encode
        preprocess, decoders = _preprocess_actors(config, min(sum(fitting), cpus), fitting, encode)
        # A GPU's actor feeds it and little more: claiming a CPU could keep it off its machine.
        cpu_actors, encode_cpus, encode_gpus = preprocess * decoders, 0.0, gpus_each
    else:
        encode = config.encoder_actors or min(encoders, max(1, cpus // 2), MOST_ACTORS // 2)
        # Encoders come first at a CPU, and where files take longer than packs, as clips do, none
        # may stand idle: 32 of them took 27 s on two CPUs, and 37 where only one was decoding.
        left = cpus if alone else max(1, cpus - encode)
        preprocess, decoders = _preprocess_actors(config, min(sum(fitting), left), fitting, encode)
        cpu_actors, encode_cpus, encode_gpus = preprocess * decoders + encode, 1.0, 0.0
    # A disk is done with a shard before a CPU has embedded the next.
    commits_are_short = device == "cpu" and not config.output.startswith("s3://")
    # More actors than CPUs share them, so many to each: any other share might fit on no machine.
    share = 1 / -(-cpu_actors // cpus)
    # Nor might a claim on memory: it is kept to what goes with the CPUs that are claimed.
    commits = min(_MOST_COMMITS, encode * (1 if commits_are_short else 2))
    return Workers(
        preprocess=preprocess,
        encode=encode,
        preprocess_cpus=share * decoders,
        encode_cpus=min(encode_cpus, share),
        encode_gpus=encode_gpus,
        preprocess_bytes=max(1, int(decoders * min(claims.preprocess, share * per_cpu))),
        encode_bytes=max(1, int(min(claims.encode, share * per_cpu))),
        most_threads=max(1, min(cpus, cpu_actors) // encode) if alone else 1,
        commits=commits,
        # Each holds a shard, which with segments and tokens may be gibibytes.
        most_commits=max(commits, min(_MOST_COMMITS_OF_A_CLUSTER, cpus))
        if config.level == "item"
        else commits,
        block_bytes=_block_bytes(preprocess * decoders, encode),
        decoders_an_actor=decoders,
        waiting=waiting,
    )


def _block_bytes(decoders: int, encoders: int) -> int:
    """The size of a block of patches that the object stores have room for.

    The engine starts no call unless there is room for two blocks of every call that runs, and for
    what waits: with blocks of a 32nd of the store, 3 of 16 calls were at work, with a 256th 14.
    """
    blocks = _BLOCKS_A_DECODER * decoders + _BLOCKS_AN_ENCODER * encoders
    room = resources().get("object_store_memory", math.inf) / blocks
    return max(_LEAST_BLOCK_BYTES, int(min(BLOCK_BYTES, room)))


def _preprocess_actors(
    config: EmbedConfig, files: int, fitting: list[int], encode: int
) -> tuple[int, int]:
    """How many preprocessing actors there are, and how many decoder processes each of them has.

    Args:
        config: May say how many actors.
        files: That are to be decoded at once.
        fitting: How many each machine has room for.
        encode: Actors that encode.
    """
    if config.preprocess_actors is not None:
        return config.preprocess_actors, 1
    most_actors = max(MOST_ACTORS - encode, MOST_ACTORS // 4)
    wanted = -(-files // most_actors)
    # No more than the smallest machine has room for, or it would have no actor at all.
    decoders = max(1, min(wanted, *(most for most in fitting if most)))
    actors = min(files // decoders, sum(most // decoders for most in fitting), most_actors)
    return max(1, actors), decoders


def encoders_on(node: dict[str, float], gpus_each: float) -> int:
    """Returns the number of encoders that a node's GPUs have room for: no fraction spans two."""
    gpus = int(node.get("GPU", 0))
    return gpus * int(1 / gpus_each) if gpus_each < 1 else gpus // int(gpus_each)


def _memory(
    nodes: list[dict[str, float]], claims: Claims, device: ComputeDevice, gpus_each: float
) -> tuple[float, int, list[int]]:
    """Bytes for every CPU, on the machine that has the fewest; and how many actors have room.

    Those are the encoders that a CPU runs, in all, and what decodes beside them on each machine.
    """
    per_cpu, encode = math.inf, 0
    preprocess: list[int] = []
    for node in nodes:
        cpus, most = node.get("CPU", 0.0), node.get("memory", math.inf)
        if not cpus:
            continue
        encode += int(min(cpus, most / claims.encode))
        encoders: float = encoders_on(node, gpus_each)
        if device == "cpu":
            encoders = max(1.0, min(cpus // 2, most // claims.encode))
        left = max(0.0, most - encoders * claims.encode)
        per_cpu = min(per_cpu, (left if device == "cuda" else most) / cpus)
        preprocess.append(int(min(cpus, left / claims.preprocess)))
    if not sum(preprocess):
        preprocess = [1]
    return per_cpu, max(1, encode), preprocess
