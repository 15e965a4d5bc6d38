"""How many images a second does one driver feed, and what does a block cost each process?

The whole pipeline runs on Ray over a manifest of files that are not there, with stages that do
nothing but report: no bytes are read, patches are a few bytes long, vectors are zeros. Blocks have
the rows that the real files' sizes and patches would give them. What is left is what the engine,
the driver, the coordinator beside it and the actors' own bookkeeping take. `floor` is what Ray Data
itself takes of a block that one stage of actors hands on as it is.

    python -m benchmarks.driver [--items N] [--actors N]

On a machine of few cores all of these share them, so that the measured rate is a lower bound. The
rate of a driver with a core of its own follows from its CPU time a block. Prints a table and writes
benchmarks/results/driver.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks import report
from pipeline.budgets import BLOCK_BYTES

# Of the default tower on an H200: the floor of what its matrix products take.
H200_PATCHES_S = 477_000
PIXELS_A_PATCH = 14 * 14
# A driver that is busier than this share of its core is late.
BUSY = 0.8
WIDTH = 256
FLOOR, FLOOR_BLOCKS = "floor", 2000
# What goes through Ray in place of an image's patches.
PATCHES = bytes(2352)


@dataclass(frozen=True, kw_only=True)
class Images:
    """A kind of collection.

    Attributes:
        file_bytes: Size of each file, as its manifest says.
        pixels: Of an image as it is encoded.
        max_pixels: The option of that name; None takes the default.
        items: How many are run.
    """

    file_bytes: int
    pixels: int
    max_pixels: int | None
    items: int

    @property
    def patch_bytes(self) -> int:
        """Of an image, one byte a channel."""
        return 3 * self.pixels

    @property
    def rows_a_block(self) -> int:
        """Those whose patches fill a block."""
        return -(-BLOCK_BYTES // self.patch_bytes)


CASES = {
    "thumbnails": Images(file_bytes=6_000, pixels=19_600, max_pixels=None, items=120_000),
    "web photos": Images(file_bytes=180_000, pixels=700_000, max_pixels=None, items=30_000),
    "50,176 pixels": Images(file_bytes=180_000, pixels=50_176, max_pixels=50_176, items=80_000),
}


def main() -> None:
    """Runs each case in a process of its own and writes the results down."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, help="of each case, instead of its own number")
    parser.add_argument("--actors", type=int, default=2, help="of each of the two stages")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.case == FLOOR:
        print(json.dumps(run_floor(arguments.actors)))
        return
    if arguments.case:
        images = CASES[arguments.case]
        print(json.dumps(run(images, arguments.items or images.items, arguments.actors)))
        return
    found = {}
    for name in (FLOOR, *CASES):
        command = [sys.executable, "-m", "benchmarks.driver", "--case", name]
        command += ["--actors", str(arguments.actors)]
        command += ["--items", str(arguments.items)] if arguments.items else []
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[name] = json.loads(out.splitlines()[-1])
        print("\n".join(describe(name, found[name])), flush=True)
    floor = found.pop(FLOOR)
    results = {"actors_a_stage": arguments.actors, "floor": floor, "cases": found}
    report.write("driver", results)


def describe(name: str, found: dict[str, Any]) -> Iterator[str]:
    """A case's figures as lines to read."""
    parts = ", ".join(f"{part} {ms:.2f}" for part, ms in found["cpu_ms_a_block"].items())
    if name == FLOOR:
        yield f"{name}: CPU ms a block: {parts}"
        return
    yield (
        f"{name}: {found['rows_a_block']:.0f} rows a block, {found['items_s']:,.0f} images/s = "
        f"{found['blocks_s']:.0f} blocks/s here"
    )
    yield f"  CPU ms a block: {parts}"
    yield (
        f"  a driver with a core of its own: {found['driver_items_s']:,.0f} images/s, which is "
        f"{found['h200s']:.0f} H200s at their ceiling"
    )


def run(images: Images, items: int, actors: int) -> dict[str, Any]:
    """One run; what a block took between the first shard's commit and the last one's."""
    from pipeline.cluster import quiet  # noqa: PLC0415 (comes before Ray)

    quiet()
    from pipeline import build, drive, embed, encode, summary  # noqa: PLC0415
    from pipeline.config import EmbedConfig  # noqa: PLC0415

    seen: list[tuple[float, int, dict[str, float]]] = []
    blocks = Blocks()
    add = summary.Summary.add

    def watch(self: summary.Summary, marker: Any) -> None:
        if not seen or time.monotonic() > seen[-1][0] + 1:
            seen.append((time.monotonic(), self.items + marker.rows, cpu_seconds()))
        add(self, marker)

    configure = build._configure
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.multiple(
            build,
            Preprocess=idle_preprocess(images),
            Encode=idle_encode(),
            # The engine takes them for full.
            _configure=lambda full: configure(images.rows_a_block * len(PATCHES)),
        ),
        mock.patch.object(summary.Summary, "add", watch),
        mock.patch.object(drive.build, "committed", blocks.counting(build.committed)),
        mock.patch.dict(encode._CALLS, cpu=encode._CALLS["cuda"]),
        mock.patch.dict(build._CALL_ROWS, cpu=build._CALL_ROWS["cuda"]),
    ):
        manifest = Path(folder, "manifest.parquet")
        write_manifest(manifest, images, items)
        config = EmbedConfig(
            inputs=(str(manifest),),
            root=("/nowhere",),
            output=f"{folder}/output",
            device="cpu",
            encoder_actors=actors,
            preprocess_actors=actors,
            max_pixels=images.max_pixels,
            shard_rows=4096 if items > 40_000 else 1024,
        )
        embed.embed(config, on_plan=lambda found: None)
    (start_s, first, before), (end_s, last, after) = seen[0], seen[-1]
    rows = blocks.rows / blocks.count
    done = (last - first) / rows
    used = {name: after[name] - before.get(name, 0.0) for name in after}
    cpu_ms = {name: 1e3 * seconds / done for name, seconds in sorted(used.items())}
    rate = BUSY * rows / (cpu_ms["driver"] / 1e3)
    return {
        "images": asdict(images),
        "items": items,
        "rows_a_block": rows,
        "items_s": (last - first) / (end_s - start_s),
        "blocks_s": done / (end_s - start_s),
        "cpu_ms_a_block": {name: round(ms, 3) for name, ms in cpu_ms.items()},
        "driver_items_s": rate,
        "h200s": rate * images.pixels / PIXELS_A_PATCH / H200_PATCHES_S,
    }


def run_floor(actors: int) -> dict[str, Any]:
    """What Ray Data takes of a block that does not change, by the stage's actors and the driver."""
    from pipeline.cluster import quiet  # noqa: PLC0415 (comes before Ray)

    quiet()
    import ray  # noqa: PLC0415
    import ray.data  # noqa: PLC0415

    class HandOn:
        def __call__(self, block: pa.Table) -> pa.Table:
            return block

    ray.init(num_cpus=2 * actors, include_dashboard=False, log_to_driver=False)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.memory_usage_poll_interval_s = None
    rows = pa.table({"id": range(31), "patches": [PATCHES] * 31})
    blocks = ray.data.from_arrow([rows] * FLOOR_BLOCKS).map_batches(
        HandOn,
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
    )
    seen = []
    for number, _ in enumerate(blocks.iter_internal_ref_bundles()):
        if number in (FLOOR_BLOCKS // 4, FLOOR_BLOCKS - FLOOR_BLOCKS // 20):
            seen.append((number, cpu_seconds()))
    (first, before), (last, after) = seen
    names = {"driver": "driver", "stage": "other stages"}
    spent = {name: 1e3 * (after[part] - before[part]) for name, part in names.items()}
    return {"cpu_ms_a_block": {name: round(ms / (last - first), 3) for name, ms in spent.items()}}


class Blocks:
    """Counts the blocks that reach the driver."""

    def __init__(self) -> None:
        self.count = self.rows = 0

    def counting(self, committed: Any) -> Any:
        """`pipeline.assemble.committed`, whose blocks are counted."""
        from pipeline.assemble import _Assembly  # noqa: PLC0415

        came = _Assembly._came

        def counted(assembly: _Assembly, block: Any) -> None:
            self.count += 1
            self.rows += block.metadata.num_rows
            came(assembly, block)

        def run(*arguments: Any) -> Any:
            with mock.patch.object(_Assembly, "_came", counted):
                yield from committed(*arguments)

        return run


def write_manifest(path: Path, images: Images, items: int) -> None:
    """A manifest of files that are not there."""
    columns = {
        "uri": [f"/nowhere/{number:09d}.jpg" for number in range(items)],
        "version": ["1"] * items,
        "size_bytes": [images.file_bytes] * items,
    }
    pq.write_table(pa.table(columns), path)


def idle_preprocess(images: Images) -> type:
    """A stage that reads nothing, and says that every item has become patches of `images`."""
    from pipeline import schema  # noqa: PLC0415 (brings what comes after `quiet`)
    from pipeline.preprocess import unnest  # noqa: PLC0415
    from pipeline.progress import Counts  # noqa: PLC0415

    class Preprocess:
        def __init__(self, config: Any, notes: Any) -> None:
            self._notes = notes

        def __call__(self, block: pa.Table) -> Iterator[pa.Table]:
            rows = unnest(block)
            self._notes.add.remote(
                Counts(
                    preprocessed=rows.num_rows,
                    preprocessed_blocks=1,
                    stills=rows.num_rows,
                    still_file_bytes=images.file_bytes * rows.num_rows,
                    still_patch_bytes=images.patch_bytes * rows.num_rows,
                )
            )
            for start in range(0, rows.num_rows, images.rows_a_block):
                yield self._table(rows.slice(start, images.rows_a_block))

        def _table(self, rows: pa.Table) -> pa.Table:
            target = schema.preprocessed(rows.schema)
            given = {"width": 28, "height": 28, "grid_thw": [1, 2, 2], "patches": PATCHES}
            columns = [
                rows[field.name]
                if field.name in rows.column_names and field.name not in given
                else pa.array([given.get(field.name)] * rows.num_rows, field.type)
                for field in target
            ]
            return pa.Table.from_arrays(columns, schema=target)

    return Preprocess


def idle_encode() -> type:
    """The real stage, over an encoder that does nothing."""
    from pipeline.block import Block  # noqa: PLC0415
    from pipeline.encode import Encode  # noqa: PLC0415

    class IdleEncoder:
        device_name, ceiling_flop_s = "none", 0.0

        def block(self, names: Any, grids: Any, patches: Any) -> Block:
            return Block(names=names, grids=grids, patches=patches, width=WIDTH, merged=4)

        def __call__(self, block: Block) -> None:
            block.vectors[:] = np.float32(1)

        def use_threads(self, threads: int) -> None:
            """It has none."""

    class IdleEncode(Encode):
        def _start(self) -> None:
            assert self._attempts is not None
            self._attempts.start()
            self._encoder: Any = IdleEncoder()

    IdleEncode.__name__ = "Encode"
    return IdleEncode


def cpu_seconds() -> dict[str, float]:
    """CPU seconds so far: of this process, and of those below it by what they do."""
    found = {"driver": sum(psutil.Process().cpu_times()[:2])}
    for process in psutil.Process().children(recursive=True):
        try:
            name, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        for part, sign in PARTS.items():
            if sign in name:
                found[part] = found.get(part, 0.0) + times.user + times.system
                break
    return found


# Workers that read shards of the manifest and commit them are idle between their tasks.
PARTS = {
    "preprocess": "(Preprocess)",
    "encode": "(Encode)",
    "other stages": "ray::MapWorker",
    "coordinator": "ray::Notes",
    "source and commits": "ray::",
    "raylet": "raylet",
    "gcs": "gcs_server",
}


if __name__ == "__main__":
    main()
