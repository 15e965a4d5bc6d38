"""How a cluster is shared out; whatever claims a share must find it on some machine."""

from __future__ import annotations

import os
import shutil
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import cluster, one_machine, workers
from pipeline.budgets import Claims
from pipeline.config import EmbedConfig
from pipeline.errors import UsageError
from pipeline.workers import Workers, plan_workers

GIB = 2**30
Node = dict[str, float]


def planned(
    nodes: list[Node],
    device: Any = "cpu",
    claims: tuple[float, float] = (2.5, 1),
    **options: Any,
) -> Workers:
    """Of actors that claim so many GiB, of the first and of the second kind."""
    preprocess, encode = (max(1, int(claim * GIB)) for claim in claims)
    totals = {name: sum(node.get(name, 0) for node in nodes) for name in ("CPU", "GPU", "memory")}
    if "object_store_memory" in nodes[0]:
        totals["object_store_memory"] = sum(node["object_store_memory"] for node in nodes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "resources", lambda: totals)
        patch.setattr(workers, "nodes", lambda: nodes)
        config = EmbedConfig(**{"output": "unused"} | options)
        return plan_workers(config, device, Claims(preprocess=preprocess, encode=encode))


def node(cpus: float, memory_gib: float, gpus: float = 0) -> Node:
    return {"CPU": cpus, "memory": memory_gib * GIB, "GPU": gpus}


def test_where_memory_is_ample_every_actor_claims_its_own() -> None:
    found = planned([node(8, 64)])
    assert (found.preprocess, found.encode) == (8, 4)
    assert (found.preprocess_cpus, found.encode_cpus) == (0.5, 0.5)
    assert (found.preprocess_bytes, found.encode_bytes) == (2.5 * GIB, GIB)


def test_in_a_cluster_no_cpu_is_claimed_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    found = planned([node(8, 64), node(4, 64)])
    assert (found.preprocess, found.encode) == (6, 6)
    assert (found.preprocess_cpus, found.encode_cpus) == (1, 1)


def test_where_memory_is_short_fewer_actors_preprocess() -> None:
    # 16 encoders' GiB are left out; 2.5 GiB each of the rest.
    assert planned([node(32, 34)]).preprocess == 7
    assert planned([node(8, 11, gpus=1)], "cuda").preprocess == 4
    assert planned([node(8, 11, gpus=1)] * 3, "cuda").preprocess == 12
    assert planned([node(8, 11, gpus=1)], "cuda", gpus_per_encoder=0.5).preprocess == 3
    # So do fewer encoders run on CPUs, if their weights take all.
    found = planned([node(32, 34)], claims=(2.5, 10))
    assert (found.preprocess, found.encode) == (1, 3)
    assert planned([node(32, 4)], claims=(2.5, 10)).encode == 1
    assert planned([node(32, 34)], claims=(2.5, 10), encoder_actors=4).encode == 4
    # Eight CPUs and 8 GiB, of which 3 are taken.
    found = planned([node(8, 5)], claims=(2.8, 0.7))
    assert (found.preprocess, found.encode) == (1, 4)
    # What the user says goes, at smaller claims.
    assert planned([node(8, 11, gpus=1)], "cuda", preprocess_actors=8).preprocess == 8


@pytest.mark.parametrize(
    ("cpus", "options", "threads"),
    [
        (2, {}, 2),
        (1, {}, 1),
        (3, {}, 3),
        (5, {}, 2),  # One CPU is never handed out.
        (8, {}, 2),
        (8, {"encoder_actors": 1}, 8),
        (8, {"preprocess_actors": 1}, 1),
        (2, {"encoder_actors": 2, "preprocess_actors": 2}, 1),
        (2, {"encoder_actors": 1, "preprocess_actors": 4}, 2),
    ],
)
def test_encoders_have_the_cpus_that_preprocessing_leaves_idle(
    monkeypatch: pytest.MonkeyPatch, cpus: int, options: dict[str, int], threads: int
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert planned([node(cpus, 64)], **options).most_threads == threads


def test_encoders_have_no_more_in_a_cluster_or_beside_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert planned([node(8, 64, gpus=1)], "cuda").most_threads == 1
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert planned([node(8, 64)] * 2).most_threads == 1


def test_a_disk_keeps_up_with_a_cpu_and_what_is_slower_has_two_commits_at_once() -> None:
    assert planned([node(4, 64)]).commits == 2
    assert planned([node(4, 64)], output="s3://bucket/output").commits == 4
    assert planned([node(4, 64, gpus=1)], "cuda").commits == 2
    assert planned([node(400, 6400)]).commits == 16


def test_commits_may_become_as_many_as_there_are_cpus() -> None:
    assert planned([node(2, 16)]).most_commits == 2
    assert planned([node(96, 1000, gpus=8)], "cuda").most_commits == 96
    assert planned([node(192, 2000, gpus=8)] * 8, "cuda").most_commits == 128


def test_one_driver_has_fewer_than_500_actors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    found = planned([node(192, 2000, gpus=8)] * 8, "cuda")
    # 1,536 files at once, beside 64 encoders: four of them an actor, 48 actors a machine.
    assert (found.preprocess, found.decoders_an_actor, found.encode) == (384, 4, 64)
    assert (found.preprocess_cpus, found.preprocess_bytes) == (4, 10 * GIB)
    # Machines whose CPUs are no multiple of four are not all used, but no actor waits for room.
    found = planned([node(190, 2000, gpus=8)] * 8, "cuda")
    assert (found.preprocess, found.decoders_an_actor) == (8 * 47, 4)
    found = planned([node(192, 2000, gpus=8)] * 8, "cuda", preprocess_actors=1000)
    assert (found.preprocess, found.decoders_an_actor) == (1000, 1)
    assert found.source_tasks == 8
    assert planned([node(32, 128)]).source_tasks == 2
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    on_cpus = planned([node(192, 2000)] * 8)
    assert on_cpus.encode + on_cpus.preprocess < 500
    assert on_cpus.encode + on_cpus.decoders <= 1536


@pytest.mark.parametrize(
    ("nodes", "device"),
    [
        ([node(96, 1000, gpus=8)] * 64, "cuda"),  # As many encoders as one driver has actors.
        ([node(8, 32)] * 300, "cpu"),
        ([node(4, 16)] * 500, "cpu"),
        ([node(2, 16)] * 500, "cpu"),
        ([node(32, 256, gpus=1), *[node(2, 16)] * 500], "cuda"),
    ],
    ids=["64x8 GPUs", "300x8 CPUs", "500x4 CPUs", "500x2 CPUs", "one GPU, 500x2 CPUs"],
)
def test_clusters_of_any_shape_have_actors_that_fit(
    monkeypatch: pytest.MonkeyPatch, nodes: list[Node], device: Any
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    found = planned(nodes, device)
    assert found.preprocess >= 64
    room = sum(one["CPU"] // found.decoders_an_actor for one in nodes)
    assert found.preprocess <= room


@pytest.mark.parametrize(
    ("cpus", "gpus", "store_gib", "mib"),
    [
        (2, 0, 2, 64),  # Never more.
        (16, 0, 2, 10.7),  # 16 decoders and 8 encoders, of 8 blocks each.
        (16, 1, 8, 60.2),
        (256, 8, 2, 8),  # Nor less.
    ],
)
def test_blocks_are_so_small_that_every_call_finds_room_in_the_object_store(
    monkeypatch: pytest.MonkeyPatch, cpus: int, gpus: int, store_gib: float, mib: float
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    one = node(cpus, 1000, gpus=gpus) | {"object_store_memory": store_gib * GIB}
    found = planned([one], "cuda" if gpus else "cpu")
    assert found.block_bytes / 2**20 == pytest.approx(mib, rel=0.01)


@pytest.mark.parametrize(
    ("device", "cpus", "memory_gib", "shared_gib", "expected"),
    [
        ("cuda", 4, 1000, 100, 8),
        ("cuda", 96, 1000, 100, 48),
        ("cuda", 4, 1000, 5, 4.5),
        ("cuda", 4, 48, 100, 6),
        ("cpu", 4, 1000, 100, 2),
        ("cpu", 16, 1000, 100, 8),
        ("cpu", 4, 1000, 1, 0.9),
        ("cpu", 4, 8, 100, 1),
        ("cpu", 4, 2, 100, 0.5),
        ("cpu", 4, 1000, 0.0625, 0.5),  # what Docker's containers have
    ],
)
def test_the_object_store_is_as_large_as_memory_has_room(
    monkeypatch: pytest.MonkeyPatch,
    device: Any,
    cpus: int,
    memory_gib: float,
    shared_gib: float,
    expected: float,
) -> None:
    usage = shutil._ntuple_diskusage(0, 0, int(shared_gib * GIB))
    monkeypatch.setattr(cluster, "count_gpus", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    monkeypatch.setattr(cluster, "system_memory", lambda: int(memory_gib * GIB))
    assert cluster._object_store_bytes(device) / GIB == pytest.approx(expected)


def test_a_machine_s_memory_is_known_with_any_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    told = one_machine.system_memory()
    monkeypatch.setattr(one_machine, "is_known_ray", lambda: False)
    assert GIB < told <= one_machine.system_memory()


@pytest.mark.parametrize(
    ("gpus", "options", "encode", "waiting", "share"),
    [
        ([8], {}, 8, 0, 1),
        ([8], {"encoder_actors": 9}, 8, 1, 1),
        ([2, 0, 1], {"encoder_actors": 3}, 3, 0, 1),
        ([2, 0, 1], {"encoder_actors": 5}, 3, 2, 1),
        ([2], {"encoder_actors": 1}, 1, 0, 1),
        ([0], {"encoder_actors": 3}, 1, 2, 1),  # A pool of none would ask for nothing.
        ([0], {}, 1, 0, 1),
        ([2, 1], {"gpus_per_encoder": 0.5}, 6, 0, 0.5),
        ([4], {"gpus_per_encoder": 0.3}, 12, 0, 0.3),  # Three on each; none on two at once.
        ([2, 1], {"gpus_per_encoder": 0.5, "encoder_actors": 9}, 6, 3, 0.5),
        ([3, 3, 1], {"gpus_per_encoder": 2}, 2, 0, 2),  # None spans two nodes.
    ],
    ids=str,
)
def test_encoders_claim_the_share_of_a_gpu_that_is_asked_for_and_others_wait(
    gpus: list[int], options: dict[str, Any], encode: int, waiting: int, share: float
) -> None:
    found = planned([node(16, 256, gpus=n) for n in gpus], "cuda", **options)
    assert (found.encode, found.waiting, found.encode_gpus) == (encode, waiting, share)


@pytest.mark.parametrize(
    ("gpus", "share", "devices"),
    [([8], 1, 8), ([2, 1], 0.5, 3), ([4], 0.3, 4), ([3, 3, 1], 2, 2)],
)
def test_encoders_that_share_a_gpu_have_one_device(
    gpus: list[int], share: float, devices: int
) -> None:
    nodes = [node(16, 256, gpus=n) for n in gpus]
    assert planned(nodes, "cuda", gpus_per_encoder=share).devices == devices


def test_of_cpus_one_device_at_least_is_expected() -> None:
    assert planned([node(8, 64)]).devices == 1


def test_a_line_about_workers_says_how_many_wait() -> None:
    found = planned([node(4, 64, gpus=2)], "cuda", encoder_actors=3)
    assert str(found) == "4 preprocess and 2 GPU encoder actors (1 more wait for GPUs)"


@given(
    nodes=st.lists(
        st.builds(
            node,
            cpus=st.integers(1, 16),
            memory_gib=st.floats(0.5, 100),
            gpus=st.integers(0, 4),
        ),
        min_size=1,
        max_size=5,
    ),
    device=st.sampled_from(["cpu", "cuda"]),
    actors=st.none() | st.integers(1, 40),
    claims=st.tuples(st.floats(1e-9, 64), st.floats(1e-9, 64)),
)
def test_claims_fit_wherever_the_cpus_and_gpus_do(
    nodes: list[Node], device: str, actors: int | None, claims: tuple[float, float]
) -> None:
    found = planned(nodes, device, claims, preprocess_actors=actors)
    for each in nodes:
        claimed = 0.0
        if device == "cuda":
            claimed = each["GPU"] * found.encode_bytes
        # However the actors that claim CPUs are spread.
        shares = each["CPU"] / found.preprocess_cpus
        most = max(found.preprocess_bytes, 0 if device == "cuda" else found.encode_bytes)
        assert claimed + shares * most <= max(each["memory"], 2 * shares + 1) * (1 + 1e-9)


def test_ray_s_client_is_refused_before_anything_is_joined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://192.0.2.2:10001")
    with (
        pytest.raises(UsageError, match=r"^RAY_ADDRESS=ray://192\.0\.2\.2:10001 is Ray's client"),
        cluster.ray_running(verbose=False),
    ):
        pass
