"""The process that parses manifests: what it is denied, and what becomes of it."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import MachineError
from pipeline.parquet_child import MEMORY_BYTES
from pipeline.parquet_reader import ParquetError, ParquetReader

TABLE = pa.table({"uri": [f"{n}.jpg" for n in range(10)], "n": range(10)})


@pytest.fixture
def reader() -> Iterator[ParquetReader]:
    with closing(ParquetReader()) as found:
        yield found


def tables(reader: ParquetReader, table: pa.Table = TABLE, rows: int = 4) -> Iterator[pa.Table]:
    file = io.BytesIO()
    pq.write_table(table, file)
    return reader.read(file, len(file.getvalue()), rows)


def children() -> list[psutil.Process]:
    """Processes of this one that parse."""
    found = psutil.Process().children()
    return [child for child in found if "pipeline.parquet_child" in child.cmdline()]


def test_the_first_table_tells_the_columns_and_the_others_have_the_rows(
    reader: ParquetReader,
) -> None:
    for _ in range(2):
        found = list(tables(reader))
        assert [table.num_rows for table in found] == [0, 4, 4, 2]
        assert pa.concat_tables(found).equals(TABLE)
        assert len(children()) == 1  # One for both.


def test_categories_come_as_their_values(reader: ParquetReader) -> None:
    label = pa.array(["a", "b", "a"]).dictionary_encode()
    schema, rows = tables(reader, pa.table({"label": label}))
    assert schema.schema.field("label").type == pa.string()
    assert rows["label"].to_pylist() == ["a", "b", "a"]


def tagged(kind: pa.DataType, name: str = "item") -> pa.Field:
    """A field that names the class by which Ray Data unpickles its values."""
    return pa.field(name, kind, metadata={"ARROW:extension:name": "ray.data.arrow_pickled_object"})


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        pytest.param(pa.struct([tagged(pa.binary(), "x")]), {"x": b"a"}, id="struct"),
        pytest.param(pa.list_(tagged(pa.binary())), [b"a"], id="list"),
        pytest.param(pa.large_list(tagged(pa.binary())), [b"a"], id="large list"),
        pytest.param(pa.list_(tagged(pa.binary()), 1), [b"a"], id="fixed size list"),
        pytest.param(pa.map_(pa.string(), tagged(pa.binary())), [("k", b"a")], id="map"),
        pytest.param(
            pa.list_(pa.struct([tagged(pa.list_(tagged(pa.binary())), "x")])),
            [{"x": [b"a"]}],
            id="nested",
        ),
    ],
)
def test_no_name_of_a_class_comes_with_a_column(
    reader: ParquetReader, kind: pa.DataType, value: object
) -> None:
    schema, rows = tables(reader, pa.table({"x": pa.array([value], kind)}))
    for found in schema, rows:
        assert b"ARROW:extension" not in found.schema.serialize().to_pybytes()
    assert rows["x"].to_pylist() == [value]


def test_values_of_extensions_come_as_they_are_stored(reader: ParquetReader) -> None:
    ids = pa.array([b"0123456789abcdef"], pa.uuid())
    label = pa.array(["a"]).dictionary_encode()
    both = pa.StructArray.from_arrays([ids, label], ["id", "label"])
    _, rows = tables(reader, pa.table({"id": ids, "both": both}))
    stored = pa.binary(16)
    assert rows.schema.types == [stored, pa.struct([("id", stored), ("label", pa.string())])]
    assert rows["both"].to_pylist() == [{"id": b"0123456789abcdef", "label": "a"}]


def test_the_process_is_locked_down_and_knows_no_credentials(
    reader: ParquetReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "very secret")
    reading = tables(reader)
    next(reading)
    (child,) = children()
    place = Path(f"/proc/{child.pid}")
    assert b"secret" not in (place / "environ").read_bytes()
    status = dict(line.split(":\t", 1) for line in (place / "status").read_text().splitlines())
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert int(status["CapEff"], 16) == 0
    assert child.rlimit(psutil.RLIMIT_NOFILE) == (0, 0)
    held = child.memory_info().vms
    assert child.rlimit(psutil.RLIMIT_AS)[0] <= held + MEMORY_BYTES


def test_who_stops_in_the_middle_leaves_no_process(reader: ParquetReader) -> None:
    reading = tables(reader)
    next(reading)
    assert len(children()) == 1
    reading.close()  # type: ignore[attr-defined]
    assert children() == []


def test_a_process_that_is_killed_is_told_and_replaced(reader: ParquetReader) -> None:
    reading = tables(reader)
    next(reading)
    (child,) = children()
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(ParquetError, match=r"ends the process that reads it \(SIGKILL\)"):
        list(reading)
    assert len(list(tables(reader))) == 4


def test_a_file_that_takes_too_long_is_given_up(
    reader: ParquetReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    list(tables(reader))
    monkeypatch.setattr("pipeline.parquet_reader._FILE_LIMIT_S", 0.2)
    reading = tables(reader)
    next(reading)
    (child,) = children()
    child.suspend()
    with pytest.raises(ParquetError, match="takes longer than 0 s to read"):
        list(reading)
    assert children() == []


def test_where_no_process_comes_up_it_is_the_machine_s_fault(
    reader: ParquetReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(MachineError, match="manifests cannot be read on this machine"):
        next(tables(reader))


def test_a_few_bytes_do_not_become_many_long_names(reader: ParquetReader) -> None:
    """One name of 8 KiB, 300,000 times: each batch is small enough, and all would take hours."""
    name = pa.DictionaryArray.from_arrays(pa.array([0] * 300_000, pa.int32()), ["x" * 8192])
    with pytest.raises(ParquetError, match=r"^becomes more than [0-9,]+ bytes, of [0-9,]+: that"):
        for _ in tables(reader, pa.table({"uri": name}), rows=8192):
            pass
