"""The status: each generation by itself, and one clear line where it cannot be told."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.status import _as_json
from pipeline.errors import PatchflowError, StorageError
from pipeline.known import PlanReport
from pipeline.manifest import Generation
from pipeline.marker import Marker
from pipeline.states import States
from pipeline.status import GenerationStatus, Status, markers, status

Freeze = Callable[..., tuple[PlanReport, Generation | None]]
WriteManifest = Callable[..., str]
Commit = Callable[..., list[Marker]]

FIRST = "g000000-00000000"


def marker_of(output: str, shard: str = FIRST) -> Path:
    return Path(output) / "_patchflow" / "commits" / f"{shard}.json"


@pytest.fixture
def two_generations(
    tmp_path: Path, write_manifest: WriteManifest, freeze: Freeze, commit: Commit
) -> str:
    """Seven items, of which four are done and three of those failed; and two more, all open."""
    output = str(tmp_path / "out")
    one = write_manifest({"uri": [f"/{n}.jpg" for n in range(7)]}, "one")
    two = write_manifest({"uri": [f"/{n}.jpg" for n in range(9)]}, "two")
    _, first = freeze(output, one, shard_rows=3)
    freeze(output, two)
    assert first is not None
    commit(output, first, [0], failed={0: "empty", 1: "corrupt"})
    commit(output, first, [2], failed={0: "empty"})
    return output


def test_the_status_counts_what_is_committed(two_generations: str) -> None:
    ((shard, marker),) = markers(two_generations, {FIRST})
    assert (shard, marker and marker.embedded) == (FIRST, 1)
    found = status(two_generations)
    assert found == Status(
        generations=[
            GenerationStatus(
                generation=0,
                shards=3,
                items=7,
                shards_committed=2,
                embedded=1,
                failed=3,
                errors={"corrupt": 1, "empty": 2},
                tokens=3,
            ),
            GenerationStatus(generation=1, shards=1, items=2),
        ],
        items=States(embedded=1, errors=Counter(corrupt=1, empty=2), open=5),
    )
    assert [state.open_items for state in found.generations] == [3, 2]
    assert (found.items.items, found.items.failed) == (9, 3)


def test_the_status_is_one_json_object_for_other_programs(two_generations: str) -> None:
    found = json.loads(json.dumps(_as_json(status(two_generations))))
    assert [state["open_items"] for state in found["generations"]] == [3, 2]
    assert found["items"] == {
        "items": 9,
        "embedded": 1,
        "failed": 3,
        "open": 5,
        "errors": {"corrupt": 1, "empty": 2},
    }


def test_a_damaged_marker_stops_the_status_with_a_line_that_names_it(healthy: str) -> None:
    marker_of(healthy).write_bytes(b"not json")
    with pytest.raises(PatchflowError, match=FIRST):
        status(healthy)


def test_a_marker_of_no_planned_shard_stops_the_status_with_a_line_that_names_it(
    healthy: str,
) -> None:
    shard = "g000000-00000009"
    marker_of(healthy, shard).write_bytes(marker_of(healthy).read_bytes())
    with pytest.raises(StorageError, match=f"{shard}.json is of a shard that is in no manifest"):
        status(healthy)


def test_what_another_run_has_planned_and_committed_meanwhile_is_not_looked_at(
    healthy: str,
) -> None:
    before = status(healthy)
    marker_of(healthy, "g000001-00000000").write_bytes(marker_of(healthy).read_bytes())
    assert status(healthy) == before
