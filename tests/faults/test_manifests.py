"""Hostile Parquet manifests: each is refused in one line, in bounded memory and time."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import InputConfig
from pipeline.errors import UsageError
from pipeline.manifest import read_shard, shards_of
from pipeline.parquet_child import MEMORY_BYTES, MOST_COLUMNS, MOST_ROWS
from pipeline.plan import plan
from tests.faults.forged_parquet import Long, footer, group, page, parquet, text

pytestmark = pytest.mark.usefixtures("manifests_read_apart")

UNREADABLE = "is not a readable Parquet file"
MEMORY = f"takes more than {MEMORY_BYTES // 2**20} MiB of memory to read"
# Of a process at rest, its libraries included.
AT_REST_BYTES = 2**28
GZIP, BIG = 2, 160 * 2**20

ROW = page(text(b"a.jpg"), rows=1)
HONEST = parquet(ROW, footer(groups=[group(rows=1, size=len(ROW))]))


def lie(**words: Any) -> bytes:
    """An honest file of one row but for some words of its row group."""
    return parquet(ROW, footer(groups=[group(**{"rows": 1, "size": len(ROW)} | words)]))


def lying_page(**words: Any) -> bytes:
    data = page(text(b"a.jpg"), **{"rows": 1} | words)
    return parquet(data, footer(groups=[group(rows=1, size=len(data))]))


def packed(data: bytes, unpacked: int) -> bytes:
    """One page whose bytes are gzipped."""
    pages = page(gzip.compress(data), rows=1, unpacked=unpacked)
    return parquet(pages, footer(groups=[group(rows=1, size=len(pages), codec=GZIP)]))


def nested(depth: int) -> bytes:
    levels = [{3: 0, 4: b"a", 5: 1} for _ in range(depth)]
    return parquet(b"", footer(schema=[{4: b"schema", 5: 1}, *levels, {1: 1, 3: 0, 4: b"x"}]))


FORGED: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", UNREADABLE),
    "text": (lambda: b"uri\na.jpg\n" * 9, UNREADABLE),
    "magic words alone": (lambda: b"PAR1PAR1", UNREADABLE),
    "an encrypted footer": (lambda: b"PARE" + b"\1" * 40 + b"\x28\0\0\0PARE", UNREADABLE),
    "no footer": (lambda: parquet(ROW, b""), UNREADABLE),
    "a footer larger than the file": (lambda: parquet(b"", footer(), 2**31 - 1), UNREADABLE),
    "a footer of minus one byte": (lambda: parquet(b"", footer(), -1), UNREADABLE),
    "a footer of zeros": (lambda: parquet(b"", bytes(2**20)), UNREADABLE),
    "a huge footer": (
        lambda: parquet(b"", b"\x19\xfc\xff\xff\xff\x07" + b"\1" * 2**26),
        UNREADABLE,
    ),
    "a schema of nothing": (lambda: parquet(b"", footer(schema=[])), UNREADABLE),
    "a schema that is its own child": (
        lambda: parquet(b"", footer(schema=[{4: b"schema", 5: 2**31 - 1}])),
        UNREADABLE,
    ),
    "a negative number of children": (
        lambda: parquet(b"", footer(schema=[{4: b"schema", 5: -1}])),
        "",
    ),
    "a hundred thousand levels": (lambda: nested(10**5), UNREADABLE),
    "a million columns": (
        lambda: parquet(
            b"", footer(schema=[{4: b"s", 5: 10**6}, *[{1: 1, 3: 0, 4: b"c"}] * 10**6])
        ),
        "",
    ),
    "a million empty row groups": (
        lambda: parquet(b"", footer(rows=0, groups=[{1: [], 2: Long(0), 3: Long(0)}] * 10**6)),
        "",
    ),
    "a billion rows by its word": (
        lambda: parquet(ROW, footer(rows=10**9, groups=[group(rows=10**9, size=len(ROW))])),
        f"says that it has 1,000,000,000 rows; the most is {MOST_ROWS:,}",
    ),
    "minus one row": (lambda: parquet(ROW, footer(rows=-1)), ""),
    "fewer rows than it says": (
        lambda: parquet(ROW, footer(rows=5, groups=[group(rows=1, size=len(ROW))])),
        "",
    ),
    "a page beyond the end": (lambda: lie(start=2**40), ""),
    "a page before the beginning": (lambda: lie(start=-(2**40)), ""),
    "a chunk of an exabyte": (lambda: lie(size=2**60), ""),
    "an unknown codec": (lambda: lie(codec=99), UNREADABLE),
    "a page of two gigabytes, it says": (lambda: lying_page(packed=2**31 - 1), ""),
    "a page of minus one byte": (lambda: lying_page(packed=-1), ""),
    "a page that unpacks to less than nothing": (lambda: lying_page(unpacked=-1), ""),
    "a gzip page that says it is small": (lambda: packed(bytes(BIG), 10), UNREADABLE),
    "a gzip page that says it is huge": (lambda: packed(bytes(10), 2**31 - 1), MEMORY),
    "a string longer than its page": (
        lambda: parquet(
            page((2**31 - 1).to_bytes(4, "little") + b"a", rows=1),
            footer(groups=[group(rows=1, size=len(page(b"12345", rows=1)))]),
        ),
        "",
    ),
}


def constant(value: str, rows: int) -> pa.Array:
    """One value in every row, by its number in a dictionary."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


def deep(levels: int) -> pa.Array:
    kind = pa.int8()
    for _ in range(levels):
        kind = pa.struct([("a", kind)])
    return pa.nulls(1, kind)


def long_list(values: int) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array([0, values], pa.int32()), pa.nulls(values, pa.int8()))


A = ["a.jpg"]
WRITTEN: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "binary": (lambda: {"uri": pa.array([b"a.jpg"])}, "must be strings, it is binary"),
    "decimal": (lambda: {"uri": pa.array([1], pa.decimal128(9, 2))}, "it is decimal128(9, 2)"),
    "struct": (lambda: {"uri": [{"x": "a.jpg"}]}, "it is struct<x: string>"),
    "null type": (lambda: {"uri": pa.nulls(1)}, "it is null"),
    "null": (lambda: {"uri": ["a.jpg", None]}, "a `uri` is null"),
    "empty": (lambda: {"uri": ["a.jpg", ""]}, "a `uri` is empty"),
    "a uri of megabytes": (lambda: {"uri": ["x" * 2**22]}, "a `uri` has 4,194,304 bytes"),
    "no uri": (lambda: {"\x1b[2J": ["a"]}, r"no `uri` column; it has '\x1b[2J'"),
    "a nameless column": (lambda: {"uri": A, "": [1]}, "the column '' is empty"),
    "a name of a megabyte": (lambda: {"uri": A, "x" * 2**20: [1]}, "longer than 256 bytes"),
    "columns": (
        lambda: {"uri": A} | {f"c{n}": [1] for n in range(MOST_COLUMNS)},
        f"has {MOST_COLUMNS + 1:,} columns; the most is {MOST_COLUMNS:,}",
    ),
    "levels": (lambda: {"uri": A, "d": deep(150)}, UNREADABLE),
    "a negative size": (lambda: {"uri": A, "size_bytes": [-1]}, "one is -1"),
    "an absurd size": (lambda: {"uri": A, "size_bytes": [2**62]}, f"one is {2**62:,}"),
    "an unsigned size": (
        lambda: {"uri": A, "size_bytes": pa.array([2**64 - 1], pa.uint64())},
        "Integer value 18446744073709551615 not in range",
    ),
    "a row of megabytes": (
        lambda: {"uri": A, "label": ["x" * BIG]},
        "on average; the most is 16,384",
    ),
    "a megabyte in every row": (
        lambda: {"uri": constant("a.jpg", 10**6), "label": constant("x" * 2**20, 10**6)},
        MEMORY,
    ),
    "a list of hundreds of millions": (lambda: {"uri": A, "l": long_list(2 * 10**8)}, MEMORY),
}
# One of each kind; each takes half a second at least.
QUICK = {
    *("text", "an encrypted footer", "a footer larger than the file", "a hundred thousand levels"),
    *("a billion rows by its word", "fewer rows than it says", "a chunk of an exabyte"),
    *("a gzip page that says it is huge", "binary", "null", "empty", "a uri of megabytes"),
    *("a nameless column", "columns", "an absurd size", "a megabyte in every row"),
}


def cases(of: dict[str, Any]) -> list[Any]:
    return [pytest.param(n, marks=() if n in QUICK else pytest.mark.whole) for n in of]


def check_refused(location: Path, says: str) -> None:
    """Nothing is frozen, and one line says what and where, soon."""
    output, began = location.parent / "output", time.monotonic()
    with pytest.raises(UsageError) as caught:
        plan(InputConfig(inputs=(str(location),)), str(output), [])
    line = str(caught.value)
    assert str(location) in line
    assert says in line
    assert line.isprintable()
    assert len(line) < 600
    assert not output.exists()
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("case", cases(FORGED))
def test_a_forged_manifest_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    make, says = FORGED[case]
    (tmp_path / "items.parquet").write_bytes(make())
    check_refused(tmp_path / "items.parquet", says)


@pytest.mark.parametrize("case", cases(WRITTEN))
def test_a_hostile_manifest_is_refused_in_a_line(case: str, tmp_path: Path) -> None:
    make, says = WRITTEN[case]
    place = tmp_path / "items.parquet"
    pq.write_table(pa.table(make()), place, compression="zstd", write_statistics=False)
    check_refused(place, says)


@pytest.mark.parametrize(
    "data",
    [HONEST, packed(text(b"a.jpg"), 9), lie(rows=10**6), lying_page(rows=2**31 - 1)],
    ids=["none", "none, packed", "a million values in a page of one", "two billion in its header"],
)
def test_a_lie_that_changes_nothing_is_no_harm(data: bytes, tmp_path: Path) -> None:
    place = tmp_path / "items.parquet"
    place.write_bytes(data)
    report, _ = plan(InputConfig(inputs=(str(place),)), None, [])
    assert report.new == 1


@pytest.mark.whole
def test_a_manifest_cut_anywhere_is_refused(tmp_path: Path) -> None:
    for size in range(0, len(HONEST), 7):
        (tmp_path / "items.parquet").write_bytes(HONEST[:size])
        check_refused(tmp_path / "items.parquet", UNREADABLE)


def test_a_hostile_manifest_costs_the_next_one_nothing(tmp_path: Path) -> None:
    """In one process after the other, where the first ends its own."""
    place = tmp_path / "out of memory.parquet"
    place.write_bytes(packed(bytes(10), 2**31 - 1))
    check_refused(place, MEMORY)
    place.write_bytes(HONEST)
    report, _ = plan(InputConfig(inputs=(str(place), str(place))), None, [])
    assert (report.new, report.duplicates) == (1, 1)


def test_hostile_values_are_just_values(tmp_path: Path, freeze, score) -> None:
    """Duplicates are one item; columns of any name and type are carried through."""
    hostile = ["\x1b[2J", "\u202egnp.exe", "a\nb", "%2e%2e", "x" * 256]
    columns: dict[str, Any] = {"uri": ["a.jpg", "b\n\x1b.jpg", "a.jpg", "./a.jpg", "x/../a.jpg"]}
    columns |= {name: [f"{name}{n}" for n in range(5)] for name in hostile}
    columns["category"] = pa.array(["cat"] * 5).dictionary_encode()
    place = tmp_path / "items.parquet"
    pq.write_table(pa.table(columns), place)
    report, generation = freeze(str(tmp_path / "output"), str(place), root=())
    assert (report.new, report.duplicates) == (2, 3)
    (shard,) = shards_of(generation, without=set())
    rows = read_shard(str(tmp_path / "output"), shard)
    found = [f"{tmp_path}/a.jpg", f"{tmp_path}/b\n\x1b.jpg"]
    assert rows["uri"].to_pylist() == found
    assert rows.select(hostile).to_pylist() == [{h: f"{h}{n}" for h in hostile} for n in (0, 1)]
    assert rows["category"].to_pylist() == ["cat", "cat"]
    score.rows(found, rows["uri"].to_pylist())


def test_a_manifest_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch) -> None:
    place = tmp_path / "items.parquet"
    pq.write_table(pa.table({"uri": [f"{n}.jpg" for n in range(20)]}), place)
    monkeypatch.setattr("pipeline.input_manifest.BATCH_ROWS", 10)
    monkeypatch.setattr("pipeline.input_manifest.parent", lambda _: os.utime(place) or "/")
    with pytest.raises(UsageError, match="changed while it was read; run the same command again"):
        plan(InputConfig(inputs=(str(place),), root=("/",)), str(tmp_path / "output"), [])
    assert not (tmp_path / "output").exists()


# Started by one that is small: a process is said to have had what its parent had before it.
MEASURED = """
import os, sys
pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, "-m", "jobs.plan", *sys.argv[1:]])
_, status, used = os.wait4(pid, 0)
print(used.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status))
"""


def planned_apart(place: Path, output: Path) -> tuple[int, list[str], int]:
    """The command's exit code, its errors, and the most memory of it or of its parser."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, place, "--output", output],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stderr.splitlines(), int(done.stdout)


@pytest.mark.whole
@pytest.mark.parametrize(
    ("compression", "times"),
    [("zstd", 1), ("gzip", 1), ("brotli", 1), ("snappy", 1), ("zstd", 10)],
)
def test_a_parquet_bomb_takes_bounded_memory_whatever_it_is_packed_with(
    compression: str, times: int, tmp_path: Path
) -> None:
    place = tmp_path / "bomb.parquet"
    table = pa.table({"uri": ["a" * BIG] * times})
    options: dict[str, Any] = {"use_dictionary": False, "write_statistics": False}
    pq.write_table(table, place, compression=compression, data_page_size=2**31 - 1, **options)
    assert place.stat().st_size < times * BIG / 15
    code, (line,), memory = planned_apart(place, tmp_path / "output")
    assert code == 2
    assert MEMORY in line or "on average; the most is 16,384" in line
    assert memory < MEMORY_BYTES + AT_REST_BYTES
    assert not (tmp_path / "output").exists()


@pytest.mark.whole
def test_a_million_rows_of_one_long_value_take_bounded_memory(tmp_path: Path) -> None:
    for schema in (True, False):
        columns = {"uri": constant("a.jpg", 10**6), "label": constant("x" * 2**20, 10**6)}
        place = tmp_path / "bomb.parquet"
        pq.write_table(pa.table(columns), place, compression="zstd", store_schema=schema)
        code, (line,), memory = planned_apart(place, tmp_path / "output")
        assert (code, MEMORY in line) == (2, True)
        assert memory < MEMORY_BYTES + AT_REST_BYTES


@pytest.mark.whole
def test_rows_that_run_lengths_make_are_counted_before_they_are_read(tmp_path: Path) -> None:
    place = tmp_path / "items.parquet"
    rows, groups = 26_000_000, 4
    part = pa.table({"uri": pa.array(["a.jpg"]).take(pa.array(np.zeros(rows, np.int8)))})
    with pq.ParquetWriter(place, part.schema, compression="zstd") as writer:
        for _ in range(groups):
            writer.write_table(part, row_group_size=rows)
    assert place.stat().st_size < 2**20
    code, (line,), memory = planned_apart(place, tmp_path / "output")
    assert (code, f"says that it has {groups * rows:,} rows" in line) == (2, True)
    assert memory < AT_REST_BYTES


@pytest.mark.whole
def test_mutants_of_a_manifest_are_planned_or_refused(tmp_path: Path) -> None:
    """Whatever a mutant does to the parser, the command ends, and says so in a line."""
    random, place = np.random.default_rng(6), tmp_path / "items.parquet"
    columns = {"uri": [f"{n}.jpg" for n in range(50)], "label": ["cat", "dog"] * 25}
    pq.write_table(pa.table(columns), place)
    whole = place.read_bytes()
    refused = 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(random.integers(1, 4)):
            data[random.integers(4, len(data) - 4)] = random.integers(256)
        place.write_bytes(data)
        try:
            plan(InputConfig(inputs=(str(place),), root=("/",)), None, [])
        except UsageError as error:
            assert str(error).isprintable()
            refused += 1
    assert refused > 50
