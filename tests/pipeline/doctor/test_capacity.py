"""Images a second, by hand."""

from __future__ import annotations

import pytest

from pipeline.doctor.capacity import WEB_PATCHES, Node, capacities
from pipeline.doctor.finding import Finding, Value


def found(device: str, **values: Value) -> Finding:
    return Finding(step="s", result="ok", figure="", device=device, values=values)


def gpu(index: int, patches_per_s: float, copies: float = 1e12) -> list[Finding]:
    rates: dict[str, Value] = {
        "patches_per_s_256": patches_per_s,
        "patches_per_s_web_mix": patches_per_s,
    }
    return [found(f"GPU {index}", **rates), found(f"GPU {index}", to_device_bytes_per_s=copies)]


PHOTOS = found("CPU", photos_per_s=100.0, stills_per_s=200.0)


def test_gpus_limit_where_cores_are_many() -> None:
    nodes = [
        Node(name="a", cpus=64, findings=[PHOTOS, *gpu(0, 256_000.0), *gpu(1, 256_000.0)]),
        Node(name="b", cpus=36, findings=[PHOTOS]),
    ]
    web, stills = capacities(nodes)
    assert web.by_decoding == 10_000
    assert web.per_s == pytest.approx(2 * 256_000 / WEB_PATCHES)
    assert (stills.per_s, stills.limit) == (2000, "GPUs")


def test_cores_limit_where_they_are_few() -> None:
    node = Node(name="a", cpus=4, findings=[PHOTOS, *gpu(0, 256_000.0)])
    _, stills = capacities([node])
    assert (stills.per_s, stills.limit) == (800, "CPUs, which decode")


def test_copies_limit_where_they_are_slow() -> None:
    # 588 bytes a patch, 256 patches a still.
    node = Node(name="a", cpus=4, findings=[PHOTOS, *gpu(0, 256_000.0, copies=588 * 2560.0)])
    _, stills = capacities([node])
    assert (stills.per_s, stills.limit) == (10, "copies to GPUs")


def test_the_compiled_tower_counts_where_it_is_faster() -> None:
    node = Node(name="a", cpus=64, findings=[PHOTOS, *gpu(0, 1000.0), *gpu(0, 2560.0)])
    assert capacities([node])[1].by_gpus == 10


def test_without_gpus_cores_decode_and_encode() -> None:
    on_cpu = found("CPU", patches_per_s_256=51_200.0, patches_per_s_web_mix=1.0)
    _, stills = capacities([Node(name="a", cpus=2, findings=[PHOTOS, on_cpu])])
    assert stills.per_s == pytest.approx(2 / (1 / 200 + 1 / 200))


def test_what_was_not_measured_is_named() -> None:
    web, _ = capacities([Node(name="a", cpus=2, findings=gpu(0, 1000.0))])
    assert web.per_s is None
    assert web.limit == "not measured: CPUs, which decode"
