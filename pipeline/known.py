"""What is planned already: looked up on disk, so that memory does not grow with the collection."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.location import item_id
from pipeline.sources import Skipped


@dataclass
class PlanReport:
    """What a planning found."""

    new: int = 0
    changed: int = 0
    unchanged: int = 0
    duplicates: int = 0
    size_bytes: int = 0
    shards: int = 0
    skipped: Skipped = field(default_factory=Skipped)

    @property
    def seen(self) -> int:
        """Items of the inputs, planned before or now."""
        return self.planned + self.unchanged

    @property
    def planned(self) -> int:
        """Items of the new generation."""
        return self.new + self.changed


def scratch(path: Path, table: str) -> sqlite3.Connection:
    """A new SQLite file with one table, by its key; transactions are the caller's."""
    db = sqlite3.connect(path, isolation_level=None)
    # The file is thrown away with its folder: durability would only cost time.
    db.executescript(
        "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;"
        f"CREATE TABLE {table} WITHOUT ROWID"
    )
    return db


class Known:
    """Every planned item, and the newest version of those planned before, on disk."""

    def __init__(self, path: Path, generation: int) -> None:
        self._generation = generation
        self._db = scratch(path, "known (id BLOB PRIMARY KEY, version TEXT, generation INT)")

    def close(self) -> None:
        """Lets go of the file."""
        self._db.close()

    def load(self, batch: pa.RecordBatch) -> None:
        """Takes in rows of an older generation; later calls win."""
        ids, versions = batch["item_id"].to_pylist(), batch["version"].to_pylist()
        self._db.execute("BEGIN")
        self._db.executemany(
            "INSERT OR REPLACE INTO known VALUES (?, ?, -1)",
            zip(map(bytes.fromhex, ids), versions, strict=True),
        )
        self._db.execute("COMMIT")

    def fresh(self, table: pa.Table, report: PlanReport, limit: int | None) -> pa.Table:
        """The rows of `table` that are new or changed, with their `item_id`, counted."""
        ids = [item_id(uri) for uri in table["uri"].to_pylist()]
        keep: list[int] = []
        self._db.execute("BEGIN")
        for row, (key, version) in enumerate(zip(ids, table["version"].to_pylist(), strict=True)):
            if report.seen == limit:
                break
            if self._plan(bytes.fromhex(key), version, report):
                keep.append(row)
        self._db.execute("COMMIT")
        with_ids = table.append_column("item_id", pa.array(ids, pa.string())).take(
            pa.array(keep, pa.int64())
        )
        report.size_bytes += pc.sum(with_ids["size_bytes"]).as_py() or 0
        return with_ids

    def _plan(self, key: bytes, version: str | None, report: PlanReport) -> bool:
        old = self._db.execute(
            "SELECT version, generation FROM known WHERE id = ?", (key,)
        ).fetchone()
        if old is None:
            report.new += 1
        elif old[1] == self._generation:
            report.duplicates += 1
            return False
        elif old[0] == version:
            report.unchanged += 1
            return False
        else:
            report.changed += 1
        # None asks for a version of this generation; without it a row is less than half as large.
        self._db.execute(
            "INSERT OR REPLACE INTO known VALUES (?, NULL, ?)", (key, self._generation)
        )
        return True
