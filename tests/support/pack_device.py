"""A device that packs are run on, which takes its time and fails as a test wants it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from pipeline.block import Block

MERGED, WIDTH = 4, 4
# Call, item and slice: all that a patch of a segment says of itself, beside its token's number.
Name = tuple[int, int, int]
Items = list[tuple[int, int, int]]


def block_of(call: int, items: Items) -> Block:
    patches = []
    for n, (t, h, w) in enumerate(items):
        own = np.zeros((t, h * w, WIDTH), np.uint8)
        own[..., 0], own[..., 1] = call, n
        own[..., 2] = np.arange(t)[:, None]
        own[..., 3] = np.arange(h * w) // MERGED
        # The patches of every other item are of another kind.
        patches.append((own if n % 2 else own.repeat(2, axis=-1)).reshape(-1))
    return Block(
        names=[f"item {n}" for n in range(len(items))],
        grids=[list(grid) for grid in items],
        patches=patches,
        width=WIDTH,
        merged=MERGED,
        keeps_tokens=True,
    )


def assert_right(block: Block, call: int, items: Items, failed: Iterable[int] = ()) -> None:
    """Each segment's vector is its name, each token's the same and its number."""
    assert sorted(block.failures) == sorted(failed)
    vectors, tokens = [], []
    for n, (t, h, w) in enumerate(items):
        for s in range(t):
            lost = n in failed
            vectors.append([call, n, s, 0])
            tokens += [] if lost else [[call, n, s, k] for k in range(h * w // MERGED)]
    kept, found = block.without(set(failed))
    assert block.vectors[kept].tolist() == [vectors[index] for index in kept]
    assert found.tolist() == tokens


@dataclass
class Results:
    """Of packs on a device that takes its time."""

    device: Device
    rows: np.ndarray
    starts: list[int]
    done_s: float
    taken_s: float
    error: Exception | None
    error_of_seconds: Exception | None

    def wait(self) -> None:
        time.sleep(max(0.0, self.done_s - time.monotonic()))
        self.device.gate.wait()
        self.device.under_way -= 1
        if self.error is not None:
            raise self.error

    @property
    def seconds(self) -> float:
        if self.error_of_seconds is not None:
            raise self.error_of_seconds
        return self.taken_s

    @property
    def flop(self) -> int:
        return len(self.rows)

    @property
    def vectors(self) -> torch.Tensor:
        return torch.from_numpy(self.rows[self.starts].astype(np.float32))

    @property
    def tokens(self) -> torch.Tensor:
        return torch.from_numpy(self.rows.astype(np.float16))

    @property
    def finite(self) -> torch.Tensor:
        return torch.ones(len(self.rows), dtype=torch.bool)


@dataclass
class Device:
    """Stands for the runner of packs: notes them, and does one after the other.

    It fails as a pack with one of some segments starts, is waited for, or is asked how long it
    took, and has no memory for others. Nothing ends while `gate` is closed.
    """

    token_s: float = 0.0
    fails_at_start: frozenset[Name] = frozenset()
    fails_later: frozenset[Name] = frozenset()
    fails_when_asked: frozenset[Name] = frozenset()
    too_large: frozenset[Name] = frozenset()
    packs: list[list[Name]] = field(default_factory=list)
    lengths: list[list[int]] = field(default_factory=list)
    kinds: list[list[int]] = field(default_factory=list)
    under_way: int = 0
    most_under_way: int = 0
    gate: threading.Event = field(default_factory=threading.Event)
    free_s: float = 0.0

    def __post_init__(self) -> None:
        self.gate.set()

    def start(self, levels: list[np.ndarray], sizes: list[tuple[int, int]]) -> list[Any]:
        assert [len(patches) for patches in levels] == [h * w for h, w in sizes]
        rows = [patches[::MERGED, :: patches.shape[1] // WIDTH] for patches in levels]
        names: list[Name] = [tuple(own[0, :3].tolist()) for own in rows]
        self.packs.append(names)
        self.lengths.append([len(own) for own in rows])
        self.kinds.append([patches.shape[1] for patches in levels])
        if self.fails_at_start & {*names}:
            raise ValueError("it fails as it starts")
        parts: list[Any] = []
        if self.too_large & {*names}:
            half = len(names) // 2
            halves = [slice(0, half), slice(half, len(names))] if half else [slice(0, 1)]
        else:
            halves = [slice(0, len(names))]
        for part in halves:
            parts += self._part(part, names, rows)
        return parts

    def synchronize(self) -> None:
        assert not self.under_way

    def _part(self, part: slice, names: list[Name], rows: list[np.ndarray]) -> list[Any]:
        if self.too_large & {*names[part]}:
            return [
                (slice(at, at + 1), None)
                if names[at] in self.too_large
                else self._done(slice(at, at + 1), names, rows)
                for at in range(part.start, part.stop)
            ]
        return [self._done(part, names, rows)]

    def _done(self, part: slice, names: list[Name], rows: list[np.ndarray]) -> tuple[slice, Any]:
        tokens = np.concatenate(rows[part])
        starts = np.cumsum([0, *map(len, rows[part])])[:-1].tolist()
        takes_s = self.token_s * len(tokens)
        self.free_s = max(self.free_s, time.monotonic()) + takes_s
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        errors = [
            ValueError("it fails later") if bad & {*names[part]} else None
            for bad in (self.fails_later, self.fails_when_asked)
        ]
        return part, Results(self, tokens, starts, self.free_s, takes_s, *errors)
