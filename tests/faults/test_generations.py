"""Items over many generations: what became of each is known by hand, and told right.

Real planning, real commits, real files; only the vectors are made up.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.commit import commit_shard
from pipeline.location import item_id
from pipeline.manifest import Generation, committed, generations, read_shard, shards_of
from pipeline.retry import plan_retry
from pipeline.states import States, failures, newest_of
from pipeline.status import marked, status
from pipeline.storage import storage_for
from pipeline.verify import verify

SHARD_ROWS = 2
MAX_PIXELS = 50176


class Story:
    """A folder of files, an output, and by hand what became of every file."""

    def __init__(self, folder: Path, output: str, tools: dict[str, Callable[..., Any]]) -> None:
        self.folder, self.output, self.tools = folder, output, tools
        self.states: dict[str, str] = {}
        """By name: `embedded`, `open`, or the error code."""
        self._contents = 0
        folder.mkdir()

    def put(self, *names: str) -> None:
        for name in names:
            self._contents += 1
            (self.folder / name).write_bytes(b"x" * self._contents)

    def plan(self) -> list[str]:
        """Plans the folder; returns the names of the new generation."""
        options = {} if generations(self.output) else {"shard_rows": SHARD_ROWS}
        _, generation = self.tools["freeze"](self.output, str(self.folder), **options)
        return self._opened(generation)

    def retry(self, *codes: str) -> list[str]:
        """Plans failed items again; returns their names."""
        before = len(generations(self.output))
        report, found = plan_retry(self.output, codes)
        names = self._opened(found[-1] if len(found) > before else None)
        assert report.errors.total() == len(names)
        return names

    def _opened(self, generation: Generation | None) -> list[str]:
        if generation is None:
            return []
        rows = [row for s in shards_of(generation, without=set()) for row in self._rows(s)]
        for row in rows:
            # Whatever is planned is planned as it lies there, if it lies there.
            found = storage_for(row["uri"]).stat(row["uri"])
            assert found is None or (found.version, found.size_bytes) == (
                row["version"],
                row["size_bytes"],
            )
        names = [Path(row["uri"]).name for row in rows]
        self.states |= dict.fromkeys(names, "open")
        return names

    def _rows(self, shard: Any) -> list[dict[str, Any]]:
        return read_shard(self.output, shard).to_pylist()

    def commit(self, generation: int, index: int, **failed: str) -> None:
        """Commits one shard; the items in `failed` fail with their codes."""
        found = generations(self.output)
        shard = list(shards_of(found[generation], without=set()))[index]
        rows = read_shard(self.output, shard)
        names = [Path(uri).name for uri in rows["uri"].to_pylist()]
        codes = {row: failed[name] for row, name in enumerate(names) if name in failed}
        self.tools["begin"](self.output)
        block = self.tools["encoded_block"](rows, codes)
        commit_shard(block, self.tools["commit_config"](self.output, found[generation]))
        for name in names:
            # An older generation's shard may be committed after a newer one lists its items.
            if self._newest(name) == generation:
                self.states[name] = failed.get(name, "embedded")

    def _newest(self, name: str) -> int:
        uri = str(self.folder / name)
        return max(
            generation.number
            for generation in generations(self.output)
            for shard in shards_of(generation, without=set())
            if uri in [row["uri"] for row in self._rows(shard)]
        )

    def open_shards(self) -> list[tuple[int, int]]:
        done = committed(self.output)
        return [
            (generation.number, int(shard.id[-8:]))
            for generation in generations(self.output)
            for shard in shards_of(generation, without=done)
        ]

    def check(self) -> None:
        """Whether status, audit and retry say the same as the states by hand."""
        counts = Counter(self.states.values())
        expected = States(
            embedded=counts.pop("embedded", 0), open=counts.pop("open", 0), errors=counts
        )
        assert status(self.output).items == expected
        audit = verify(self.output)
        assert (audit.breaches, audit.items) == ([], expected)
        existing = generations(self.output)
        with newest_of(self.output, existing) as newest:
            done = ((s, marker) for s, marker in marked(self.output, existing) if marker)
            tables = [rows for _, rows in failures(self.output, done, newest)]
        found = pa.concat_tables(tables).to_pylist() if tables else []
        chosen = {row["item_id"]: row["error_code"] for row in found}
        assert chosen == {
            item_id(str(self.folder / name)): state
            for name, state in self.states.items()
            if state not in ("embedded", "open")
        }
        assert len(chosen) == len(found)


@pytest.fixture
def story(
    root: str,
    tmp_path: Path,
    freeze: Callable[..., Any],
    begin: Callable[..., None],
    encoded_block: Callable[..., Any],
    commit_config: Callable[..., Any],
) -> Story:
    tools = {
        "freeze": freeze,
        "begin": begin,
        "encoded_block": encoded_block,
        "commit_config": commit_config,
    }
    return Story(tmp_path / "photos", root, tools)


def test_every_items_state_is_told_right_over_five_generations(story: Story) -> None:
    story.put("a", "b", "c", "d", "e")
    for path in story.folder.iterdir():
        path.rename(path.with_name(f"{path.name}.jpg"))
    a, b, c, d, e, f = (f"{name}.jpg" for name in "abcdef")
    assert story.plan() == [a, b, c, d, e]
    story.check()
    story.commit(0, 0, **{b: "corrupt"})
    story.check()
    story.commit(0, 1, **{c: "not_found"})
    assert story.states == {a: "embedded", b: "corrupt", c: "not_found", d: "embedded", e: "open"}
    story.check()

    story.put(a, f)
    assert story.plan() == [a, f]
    assert story.states[a] == story.states[f] == "open"
    story.check()
    story.commit(1, 0, **{a: "truncated"})
    story.check()

    # One is repaired, one is gone, one is as it was.
    story.put(b)
    (story.folder / c).unlink()
    assert story.retry() == [b, c, a]
    story.check()
    story.commit(2, 0, **{c: "not_found"})
    story.check()
    # What is open will be done anyway; what has another code was not asked for.
    assert story.retry("corrupt") == []
    assert story.retry("corrupt", "not_found") == [c]
    story.check()
    story.commit(3, 0, **{c: "not_found"})
    story.commit(2, 1)
    assert story.states == {
        **dict.fromkeys([a, b, d, f], "embedded"),
        c: "not_found",
        e: "open",
    }
    story.check()

    # What a retry has planned is not new to a planning, and what vanishes stays as it was.
    (story.folder / d).unlink()
    assert story.plan() == []
    story.put(c)
    assert story.retry() == [c]
    assert story.plan() == []
    story.commit(4, 0)
    story.commit(0, 2)
    assert set(story.states.values()) == {"embedded"}
    assert len(generations(story.output)) == 5
    story.check()
    assert story.retry() == []


@pytest.mark.parametrize("root", ["disk"], indirect=True)
@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.whole) for seed in range(4, 60))]
)
def test_every_items_state_is_told_right_over_random_generations(story: Story, seed: int) -> None:
    chance = random.Random(seed)
    names = [f"{number}.jpg" for number in range(9)]
    story.put(*names[:3])
    story.plan()
    for _ in range(14):
        step = chance.choice(["put", "put", "remove", "plan", "retry", *["commit"] * 4])
        if step == "put":
            story.put(chance.choice(names))
        elif step == "remove":
            (story.folder / chance.choice(names)).unlink(missing_ok=True)
        elif step == "plan":
            story.plan()
        elif step == "retry":
            codes = chance.choice([(), ("corrupt",), ("empty", "truncated")])
            failed = {n for n, state in story.states.items() if state not in ("embedded", "open")}
            wanted = {n for n in failed if not codes or story.states[n] in codes}
            assert set(story.retry(*codes)) == wanted
        elif shards := story.open_shards():
            bad = chance.sample(names, 3)
            codes = {name: chance.choice(["corrupt", "empty", "truncated"]) for name in bad}
            story.commit(*chance.choice(shards), **codes)
        story.check()


# --- the same with the real commands ------------------------------------------------------------


@pytest.mark.whole
def test_real_photos_that_failed_are_embedded_once_they_are_repaired(
    collection, commands, alone, assert_rows, output_at, tmp_path
) -> None:
    folder, output = tmp_path / "photos", output_at(tmp_path / "out")
    folder.mkdir()
    photos = [folder / f"{number}.jpg" for number in range(6)]
    for path in photos:
        path.write_bytes(collection.cut(".jpg"))
    short, vanished, changed = photos[1], photos[2], photos[4]
    whole, kept = short.read_bytes(), vanished.read_bytes()
    out = ("--output", output.folder)

    def run(name: str, *args: object) -> Any:
        done = commands.run(name, *args, *out)
        print(f"$ {name} {' '.join(map(str, args))}\n{done.out}")
        assert (done.code, done.left_behind) == (0, []), str(done)
        return done

    short.write_bytes(whole[: len(whole) // 2])
    run("plan", folder, "--shard-rows", 2)
    vanished.unlink()
    changed.write_bytes(collection.cut(".jpg"))
    run("embed", "--max-pixels", MAX_PIXELS)
    errors = {row["uri"]: row["error_code"] for row in output.rows("errors")}
    codes = ("truncated", "not_found", "version_changed")
    assert errors == dict(zip(map(str, (short, vanished, changed)), codes, strict=True))
    found = json.loads(run("status", "--json").out)["items"]
    assert found["errors"] == dict.fromkeys(codes, 1)
    run("verify")

    short.write_bytes(whole)
    vanished.write_bytes(kept)
    retried = run("retry")
    assert retried.out.startswith("3 failed items in 2 shards: ")
    assert "3 items" in retried.out and "2 committed" in retried.out
    assert run("retry").out == "nothing to retry\n"
    before = output.objects()
    again = run("embed", folder, "--max-pixels", MAX_PIXELS)
    assert again.out.splitlines() == [
        "6 items, all known and unchanged",
        f"nothing to do: every item of {output.folder} is committed",
    ]
    assert output.objects() == before
    assert "6 items: 6 embedded, 0 failed, 0 open" in run("status").out
    audit = run("verify", "--recompute", 6, "--seed", 1)
    assert "6 items embedded again and compared, 0 not comparable" in audit.out
    assert audit.out.endswith("every invariant holds\n")
    assert_rows(
        output.rows(),
        [alone(path) | {"generation": int(str(path) in errors)} for path in photos],
    )
    assert len(output.rows("errors")) == 3
