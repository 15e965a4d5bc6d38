"""What a cluster can do in images a second, and what limits it, from its nodes' findings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.doctor.finding import Finding

# Patches of 14 x 14 pixels: of a photo of 1024 x 683, and of a still of 50,176; bytes a patch.
WEB_PATCHES = 74 * 48
STILL_PATCHES = 256
_PATCH_BYTES = 3 * 14 * 14


@dataclass(frozen=True, kw_only=True)
class Node:
    """One examined machine.

    Attributes:
        name: As the table calls it.
        cpus: What actors may use of it.
        findings: In the order in which they came.
    """

    name: str
    cpus: float
    findings: Sequence[Finding]


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """Images a second of one kind, by what would limit it; None where that was not measured.

    Attributes:
        images: Which images.
        by_decoding: Photos a second of a core times cores.
        by_cpus: Patches a second of a core times cores, over patches an image; without GPUs.
        by_gpus: Patches a second of all GPUs, over patches an image.
        by_copies: Bytes a second to the GPUs over bytes an image.
        per_s: The least of those; where encoders run on CPUs, those decode and encode in turn.
        limit: What limits it.
    """

    images: str
    by_decoding: float | None
    by_cpus: float | None
    by_gpus: float | None
    by_copies: float | None
    per_s: float | None
    limit: str


def capacities(nodes: Sequence[Node]) -> list[Capacity]:
    """Adds up what was measured, for web photos at their own size and for small stills."""
    return [
        _capacity(nodes, "web photos of 0.7 megapixels", "photos_per_s", "web_mix", WEB_PATCHES),
        _capacity(nodes, "stills of 50,176 pixels", "stills_per_s", "256", STILL_PATCHES),
    ]


def _capacity(nodes: Sequence[Node], images: str, rate: str, pack: str, patches: int) -> Capacity:
    decoded = encoded = copied = on_cpus = alone = 0.0
    for node in nodes:
        photos_s = _value(node.findings, "", rate)
        decoded += photos_s * node.cpus
        on_cpu_s = _value(node.findings, "CPU", f"patches_per_s_{pack}") / patches
        on_cpus += on_cpu_s * node.cpus
        if photos_s and on_cpu_s:  # A core decodes, then encodes.
            alone += node.cpus / (1 / photos_s + 1 / on_cpu_s)
        for device in {found.device for found in node.findings if found.device.startswith("GPU")}:
            encoded += _value(node.findings, device, f"patches_per_s_{pack}") / patches
            copied += _value(node.findings, device, "to_device_bytes_per_s") / (
                patches * _PATCH_BYTES
            )
    ways = {"CPUs, which decode": decoded, "GPUs": encoded, "copies to GPUs": copied}
    if not encoded and alone:
        per_s, limit = alone, "CPUs, which decode and encode"
    elif all(ways.values()):
        limit = min(ways, key=ways.__getitem__)
        per_s = ways[limit]
    else:
        per_s, limit = (
            0.0,
            f"not measured: {', '.join(n for n, rate_s in ways.items() if not rate_s)}",
        )
    return Capacity(
        images=images,
        by_decoding=decoded or None,
        by_cpus=on_cpus or None,
        by_gpus=encoded or None,
        by_copies=copied or None,
        per_s=per_s or None,
        limit=limit,
    )


def _value(findings: Sequence[Finding], device: str, name: str) -> float:
    """The largest value of a name: of a tower as it is and compiled, the faster one."""
    found = (
        finding.values[name]
        for finding in findings
        if name in finding.values and (not device or finding.device == device)
    )
    return max((value for value in found if isinstance(value, float)), default=0.0)
