"""How full are packs, and what does the host do for each, beside a device that takes no CPU?

The encode stage runs as an actor of a GPU runs it: blocks in, 16 calls at once, shared packs. Its
device is a stand-in: laying out a pack's patches is done as for a GPU, and its results are zeros
that are there once a device at an H200's measured ceiling could have computed them. What is left
out is starting the kernels. Blocks have the rows that the source gives them, or three.

    python -m benchmarks.packs [--seconds S] [--case NAME]

Prints a line a case and writes benchmarks/results/packs.json. The first fifth of each case's time
is left out, and so is what comes once no new block does.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
import torch

from benchmarks import report
from encoder import PRESETS, forward_flop
from pipeline import schema
from pipeline.block import Block, Levels
from pipeline.budgets import BLOCK_BYTES
from pipeline.encode import Encode, EncodeConfig
from pipeline.rungs import RUNGS, Rung
from pipeline.shared_packs import SharedPacks

CONFIG = PRESETS["large"]
BUDGET = 16384
CALLS = 16
# bfloat16 products of 8,192 rows and columns, measured on an H200.
FLOP_S = 790e12
TABLES = 6
FEW = 3

Grid = tuple[int, int, int]


def stills(draw: random.Random, side: float, spread: float) -> Grid:
    """A still of about `side` x `side` patches, in some of the shapes that photos have."""
    shape = draw.choice([1.0, 4 / 3, 3 / 4, 3 / 2, 2 / 3, 16 / 9])
    scale = draw.lognormvariate(0, spread)
    height, width = side * scale / shape**0.5, side * scale * shape**0.5
    return 1, max(2, 2 * round(height / 2)), max(2, 2 * round(width / 2))


def large_photos(draw: random.Random) -> Grid:
    """A photo of 12 megapixels, reduced to the most that the family's processor admits."""
    return draw.choice([(1, 150, 200), (1, 200, 150), (1, 140, 212)])


def clips(draw: random.Random) -> Grid:
    """Ten to thirty seconds at two frames a second, of 360, 720 or 1,080 lines."""
    height, width = draw.choice([(26, 46), (52, 92), (78, 138)])
    return draw.randint(10, 30), height, width


KINDS: dict[str, Callable[[random.Random], Grid]] = {
    "thumbnails": lambda draw: stills(draw, 10, 0.1),
    "50,176 pixels": lambda draw: stills(draw, 16, 0.0),
    "web photos": lambda draw: stills(draw, 60, 0.4),
    "12-megapixel photos": large_photos,
    "clips": clips,
}


@dataclass(frozen=True, kw_only=True)
class Results:
    """Of one pack, on a device that has them at a time."""

    vectors: torch.Tensor
    tokens: torch.Tensor
    finite: torch.Tensor
    seconds: float
    flop: int
    done_s: float

    def wait(self) -> None:
        """Sleeps until the device has them."""
        time.sleep(max(0.0, self.done_s - time.monotonic()))


@dataclass
class Runner:
    """A `PackRunner` of a device that is as fast as it could be.

    Attributes:
        packs: When each was started, and how many tokens it has.
        busy: From when to when the device works, a pack each.
    """

    packs: list[tuple[float, int]] = field(default_factory=list)
    busy: list[tuple[float, float]] = field(default_factory=list)
    _buffers: dict[int, Levels] = field(default_factory=dict)

    def start(
        self, levels: Sequence[Levels], sizes: Sequence[tuple[int, int]]
    ) -> list[tuple[slice, Results]]:
        """Lays a pack out, and leaves it to the device."""
        patches = sum(map(len, levels))
        for values in {kind.shape[1] for kind in levels}:
            run = [kind for kind in levels if kind.shape[1] == values]
            rows = sum(map(len, run))
            # Pinned buffers are handed out again.
            if len(self._buffers.get(values, ())) < rows:
                self._buffers[values] = np.empty((rows, values), np.uint8)
            np.concatenate(run, out=self._buffers[values][:rows])
        flop = forward_flop(CONFIG, [(1, height, width) for height, width in sizes])
        now = time.monotonic()
        start_s = max(now, self.busy[-1][1] if self.busy else now)
        self.busy.append((start_s, start_s + flop / FLOP_S))
        self.packs.append((now, patches // 4))
        results = Results(
            vectors=torch.zeros(len(sizes), CONFIG.out_hidden_size),
            tokens=torch.zeros(0, CONFIG.out_hidden_size, dtype=torch.float16),
            finite=torch.ones(0, dtype=torch.bool),
            seconds=flop / FLOP_S,
            flop=flop,
            done_s=self.busy[-1][1],
        )
        return [(slice(0, len(levels)), results)]

    def synchronize(self) -> None:
        """Nothing goes on once results are there."""


class Encoder:
    """`PackedEncoder` with a device of that kind."""

    ceiling_flop_s = FLOP_S
    device_name = "none"
    rung = RUNGS["cuda"][0]

    def __init__(self, config: EncodeConfig) -> None:
        self.runner = Runner()
        packs: Any = SharedPacks
        self._packs = packs(self.runner, budget=config.token_budget, calls=config.calls)

    def block(self, names: list[str], grids: list[list[int]], patches: list[Levels]) -> Block:
        """Items to be encoded."""
        width = CONFIG.out_hidden_size
        return Block(names=names, grids=grids, patches=patches, width=width, merged=4)

    def __call__(self, block: Block) -> None:
        """Encodes a block."""
        self._packs(block, range(len(block.segments)))

    def prepare(self, rung: Rung, give_up: object) -> None:
        """The device is well and right."""


def table_of(grids: list[Grid], seed: int) -> pa.Table:
    """A block as preprocessing hands it over."""
    rows = len(grids)
    values = [588 if t == 1 else 1176 for t, _, _ in grids]
    data = [bytes(t * h * w * each) for (t, h, w), each in zip(grids, values, strict=True)]
    shard = {"shard": ["g000000-00000000"] * rows, "shard_row": list(range(rows))}
    found: dict[str, Any] = {
        "item_id": [f"{seed:016x}{row:016x}" for row in range(rows)],
        "uri": [f"s3://bucket/{row}.jpg" for row in range(rows)],
        "version": ["v"] * rows,
        "size_bytes": [1000] * rows,
        "media_type": ["image"] * rows,
        "grid_thw": [list(grid) for grid in grids],
        "patches": data,
    }
    target = schema.preprocessed(schema.MANIFEST.append(schema.PLACE))
    columns = found | shard
    arrays = [pa.array(columns.get(f.name, [None] * rows), f.type) for f in target]
    return pa.table(arrays, schema=target)


def grids_of_blocks(kind: str, rows: int | None) -> list[list[Grid]]:
    """Items of different blocks of a kind, of so many rows, or as many as fill a block."""
    draw, blocks = random.Random(0), []
    for _ in range(TABLES):
        grids: list[Grid] = []
        taken = 0
        while len(grids) < rows if rows else taken < BLOCK_BYTES:
            grids.append(KINDS[kind](draw))
            t, height, width = grids[-1]
            taken += t * height * width * (588 if t == 1 else 1176)
            if t > 1:  # A clip is alone in its block.
                break
        blocks.append(grids)
    return blocks


def measure(kind: str, rows: int | None, seconds: float) -> dict[str, Any]:
    """Runs blocks of one kind for some time."""
    tables = [table_of(grids, seed) for seed, grids in enumerate(grids_of_blocks(kind, rows))]
    config = EncodeConfig(
        location="none",
        seed=0,
        device="cuda",
        dtype="bfloat16",
        token_budget=BUDGET,
        level="item",
        pool="mean",
        features="merged",
        normalize=False,
        output_dtype="float32",
        calls=CALLS,
    )
    with mock.patch("pipeline.encode.PackedEncoder", Encoder):
        stage = Encode(config)
    encoder: Any = stage._encoder
    runner: Runner = encoder.runner
    begin_s = time.monotonic() + seconds / 5
    end_s = begin_s + seconds
    images: list[tuple[float, int]] = []

    def call(first: int) -> None:
        at = first
        while time.monotonic() < end_s:
            out = stage(tables[at % TABLES])
            images.append((time.monotonic(), out.num_rows))
            at += 1

    threads = [threading.Thread(target=call, args=(first,)) for first in range(CALLS)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, begin_s - time.monotonic()))
    cpu_s = time.process_time()
    time.sleep(max(0.0, end_s - time.monotonic()))
    cpu_s = time.process_time() - cpu_s
    for thread in threads:
        thread.join()
    tokens = [held for at, held in runner.packs if begin_s <= at < end_s]
    done = sum(count for at, count in images if begin_s <= at < end_s)
    busy = sum(max(0.0, min(end, end_s) - max(start, begin_s)) for start, end in runner.busy)
    packs = max(1, len(tokens))
    return {
        "rows_a_block": [table.num_rows for table in tables],
        "fill": round(sum(tokens) / (packs * BUDGET), 4),
        "packs_s": round(len(tokens) / seconds, 2),
        "images_s": round(done / seconds, 1),
        "device_busy": round(busy / seconds, 3),
        "cpu_ms_a_pack": round(1000 * cpu_s / packs, 2),
        "cpu_us_an_image": round(1e6 * cpu_s / max(1, done), 1),
        "cores": round(cpu_s / seconds, 2),
    }


def cases() -> Iterator[tuple[str, str, int | None]]:
    """Names, kinds and rows a block; None for as many as fill one."""
    for kind in KINDS:
        yield kind, kind, None
    for kind in ("thumbnails", "web photos", "12-megapixel photos"):
        yield f"{kind}, {FEW} a block", kind, FEW


def describe(name: str, found: dict[str, Any]) -> str:
    """A case as a line to read."""
    return (
        f"{name:32} fill {found['fill']:6.1%}  {found['packs_s']:6.1f} packs/s  "
        f"{found['images_s']:8.0f} images/s  device busy {found['device_busy']:4.0%}  "
        f"CPU {found['cpu_ms_a_pack']:5.1f} ms a pack, {found['cpu_us_an_image']:6.0f} us an image"
    )


def main() -> None:
    """Runs all cases, or one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=8.0, help="measured, of each case")
    parser.add_argument("--case", choices=[name for name, _, _ in cases()], help="this one alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name, kind, rows in cases():
        if options.case in (None, name):
            results[name] = measure(kind, rows, options.seconds)
            print(describe(name, results[name]), flush=True)
    if options.case is None:
        report.write("packs", {"seconds": options.seconds, "cases": results})


if __name__ == "__main__":
    main()
