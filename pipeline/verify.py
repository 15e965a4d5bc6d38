"""The audit: what is stored is held against the invariants, and every breach is listed.

Everything is read, so that damage is found wherever it is: `run.json` and the tower that it names,
every generation and its parts, every marker and every row. What cannot be read is a breach too, and
the rest is looked at all the same. Generations are taken newest first: then the newest row of an
item is known when its older ones are met.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import layout
from pipeline.config import Level
from pipeline.errors import UsageError
from pipeline.location import item_id, join
from pipeline.manifest import Generation, Shard, committed, is_whole, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.states import Newest, States, scratch_newest
from pipeline.status import markers
from pipeline.storage import storage_for
from pipeline.verify_run import check_run
from pipeline.verify_shard import PlannedShard, Tables, check_marker, check_tables, read_tables


@dataclass
class Audit:
    """What was looked at, and what is wrong."""

    generations: int = 0
    shards: int = 0
    shards_committed: int = 0
    rows: int = 0
    embedded: int = 0
    failed: int = 0
    items: States = field(default_factory=States)
    """Every item once, in its current state; of no meaning where there are breaches."""
    unfinished: list[str] = field(default_factory=list)
    """Objects of shards that are not committed: overwritten whole when their shard is done."""
    leftovers: list[str] = field(default_factory=list)
    """What runs and planners that were killed or late left behind, and nobody reads."""
    breaches: list[str] = field(default_factory=list)


def verify(output: str) -> Audit:
    """Audits an output.

    Raises:
        UsageError: Nothing is planned there.
        StorageError: Storage failed.
    """
    audit = Audit()
    with scratch_newest() as newest:
        _Auditor(output, audit, newest).look()
    return audit


class _Auditor:
    """One audit under way. What it remembers grows with the shards, not with the items."""

    def __init__(self, output: str, audit: Audit, newest: Newest) -> None:
        self._output, self._audit, self._newest = output, audit, newest
        self._storage = storage_for(output)
        self._done = committed(output)
        self._run = check_run(output, audit.breaches, begun=bool(self._done))
        self._level = self._find_level()
        # Objects of committed shards, and those that open shards will have.
        self._stored: set[str] = set()
        self._to_come: set[str] = set()
        # What is planned cannot be told of these generations and shards.
        self._lost: set[int] = set()
        self._unread: set[str] = set()
        # Objects of no shard that is planned, unless it is by now; and the last generation.
        self._suspects: list[tuple[str, str]] = []
        self._last = -1

    def _find_level(self) -> Level:
        """What `run.json` says, and if it cannot be read, what is there."""
        if self._run is not None:
            level: Level = self._run.semantics["level"]
            return level
        stored = (level for level, folder in layout.SEGMENTS.items() if any(self._names(folder)))
        return next(stored, "item")

    def look(self) -> None:
        shards: set[str] = set()
        for generation in self._generations():
            shards |= {shard.id for shard in shards_of(generation, without=set())}
            self._check_generation(generation)
        for foreign in sorted(self._done - shards):
            if not self._is_lost(foreign):
                self._breach(f"{foreign}: committed, but in no manifest")
        self._check_strays()
        self._check_intents(shards)
        self._judge()

    def _breach(self, text: str) -> None:
        self._audit.breaches.append(text)

    def _is_lost(self, shard: str) -> bool:
        parsed = layout.parse_shard(shard)
        return shard in self._unread or (parsed is not None and parsed[0] in self._lost)

    def _judge(self) -> None:
        """Objects of no shard are a breach, unless another run has planned it meanwhile."""
        names = self._names(layout.MANIFESTS)
        now = {layout.generation_number(name.rsplit("/", 1)[1]) for name in names}
        self._lost |= {n for n in now if n is not None and n > self._last}
        for shard, text in self._suspects:
            if not self._is_lost(shard):
                self._breach(text)

    def _names(self, folder: str) -> Iterator[str]:
        """The names of all objects below a folder of the output."""
        root = join(self._output, "")
        try:
            for info in self._storage.list(join(self._output, folder)):
                yield info.uri.removeprefix(root)
        except FileNotFoundError:
            return

    def _generations(self) -> Iterator[Generation]:
        """Every generation that can be read, newest first."""
        names = set(self._names(layout.MANIFESTS))
        parts = {name for name in names if name.endswith(".parquet")}
        planned = {layout.generation_number(name.rsplit("/", 1)[1]) for name in names - parts}
        last = max((n for n in planned if n is not None), default=0 if self._run else -1)
        committed = set(map(layout.generation_of, self._done))
        numbers = {*range(last + 1), *committed}
        self._last = max(numbers, default=-1)
        if not numbers:
            raise UsageError(f"{self._output} is no patchflow output: no plan is frozen there")
        for number in sorted(numbers, reverse=True):
            generation = self._generation(number)
            if generation is None:
                self._lost.add(number)
                parts -= {name for name in parts if f"/g{number:06d}/" in name}
            else:
                parts -= {*generation.parts}
                yield generation
        self._audit.leftovers += sorted(parts)

    def _generation(self, number: int) -> Generation | None:
        name = layout.generation(number)
        try:
            found = Generation.from_json(self._storage.read(join(self._output, name)))
        except FileNotFoundError:
            shards = sorted(s for s in self._done if s.startswith(f"g{number:06d}-"))
            self._breach(f"{name} is missing" + (f"; committed: {shards[0]}" if shards else ""))
        except ValueError as error:
            self._breach(f"{name} is damaged: {error}")
        else:
            if found.number == number:
                return found
            self._breach(f"{name} is generation {found.number}")
        return None

    def _check_generation(self, generation: Generation) -> None:
        audit = self._audit
        damaged = {part for part in generation.parts if self._is_damaged(part)}
        shards = list(shards_of(generation, without=set()))
        mine = [shard.id for shard in shards if shard.id in self._done]
        audit.generations += 1
        audit.shards += len(shards)
        audit.shards_committed += len(mine)
        rows = distinct = 0
        found = markers(self._output, mine)
        for shard in shards:
            planned = None
            if shard.part not in damaged:
                planned = self._planned(generation, shard)
                rows += planned.rows.num_rows
                ids = planned.rows["item_id"].to_pylist()
                distinct += self._newest.add(generation.number, shard.id, ids)
            else:
                self._unread.add(shard.id)
            if shard.id in self._done:
                _, marker = next(found)
                self._check_committed(shard, marker, planned)
            elif planned is not None:
                self._to_come |= {*planned.objects}
                audit.items.open += self._newest.live[shard.id]
        if not damaged and not rows == distinct == generation.rows:
            self._breach(
                f"generation {generation.number}: {rows} manifest rows of {distinct} items, "
                f"{generation.rows} planned"
            )

    def _is_damaged(self, part: str) -> bool:
        try:
            if is_whole(self._output, part):
                return False
            self._breach(f"{part} is not what was planned")
        except FileNotFoundError:
            self._breach(f"{part} is missing")
        return True

    def _planned(self, generation: Generation, shard: Shard) -> PlannedShard:
        rows = read_shard(self._output, shard)
        partitions = rows.select(generation.partition_by).to_pylist()
        if (
            rows.num_rows != shard.rows
            or pc.unique(rows["shard"]).to_pylist() != [shard.id]
            or [*map(item_id, rows["uri"].to_pylist())] != rows["item_id"].to_pylist()
            or len({*map(repr, partitions)}) > 1
        ):
            self._breach(f"{shard.id}: its manifest rows are not the planned ones")
        return PlannedShard(
            shard=shard, rows=rows, partition_by=generation.partition_by, level=self._level
        )

    def _check_committed(
        self, shard: Shard, marker: Marker | None, planned: PlannedShard | None
    ) -> None:
        audit = self._audit
        breaches: list[str] = []
        if planned is not None:
            self._stored |= {*planned.objects}
        if marker is None:
            name = layout.marker(shard.id)
            self._breach(f"{shard.id}: {name} cannot be read, or is another shard's")
            return
        audit.rows += marker.rows
        audit.embedded += marker.embedded
        audit.failed += marker.failed
        if self._run is not None and marker.fingerprint != self._run.fingerprint:
            breaches.append("its marker is of a run with another configuration")
        stored = read_tables(self._output, marker, breaches)
        if planned is not None:
            breaches += check_marker(planned, marker)
            if {*stored} == {*planned.objects}:
                tables = Tables(*(stored[name] for name in planned.objects))
                breaches += check_tables(planned, marker, tables, self._run)
                if not breaches:
                    self._count(shard, tables.bad)
        for breach in breaches:
            self._breach(f"{shard.id}: {breach}")

    def _count(self, shard: Shard, bad: pa.Table) -> None:
        """Adds a shard's items that no newer generation lists to the current states."""
        items = self._audit.items
        failed = self._newest.current(shard.generation, bad)["error_code"].to_pylist()
        items.embedded += self._newest.live[shard.id] - len(failed)
        items.errors.update(failed)

    def _check_strays(self) -> None:
        """Objects that no marker names: a breach, unless an open shard will overwrite them."""
        for folder in (layout.EMBEDDINGS, layout.ERRORS, *layout.SEGMENTS.values()):
            for name in self._names(folder):
                if name in self._to_come:
                    self._audit.unfinished.append(name)
                elif name not in self._stored:
                    shard = name.rsplit("/", 1)[1].removesuffix(".parquet")
                    self._suspects.append((shard, f"{name}: in no marker"))

    def _check_intents(self, shards: set[str]) -> None:
        """What is decided of an open shard is unfinished; beside a marker it is left over."""
        for name in self._names(layout.INTENTS):
            shard = name.rsplit("/", 1)[1].removesuffix(layout.INTENT_SUFFIX)
            if shard in self._done:
                self._audit.leftovers.append(name)
            elif shard in shards:
                self._audit.unfinished.append(name)
            else:
                text = f"{name}: of a shard that is in no manifest"
                self._suspects.append((shard, text))
