"""Encoders that run out of memory, lose their device or are killed, in real runs on one Ray."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.attempts import MOST_DEATHS
from pipeline.devices import MOST_ENDS
from pipeline.verify import verify

Row = dict[str, Any]

HERE = Path(__file__).parent
# Blocks of six rows or fewer: the marked image has company in its own, and there are others.
PHOTOS = 20
MARKED = 10
GROUPS = (
    ("killed_once", "full"),
    ("killed_by_one", "sick_twice", "sick", "well", "wrong", "right", "dead_at_start"),
)


@dataclass(frozen=True)
class Faulty:
    """One run with a faulty encoder."""

    code: int
    line: str
    committed: int
    starts: int
    faults: int
    output: Any


@pytest.fixture(scope="module")
def photos(collection, tmp_path_factory) -> list[Path]:
    """Good photos, and in the middle one that is all of one grey: the marked one."""
    folder = tmp_path_factory.mktemp("photos")
    paths = []
    for number, original in enumerate(collection.good[: PHOTOS + 1]):
        path = folder / f"{number:02d}{original.suffix}"
        path.hardlink_to(original)
        paths.append(path)
    paths[MARKED].unlink()
    paths[MARKED] = paths[MARKED].with_suffix(".png")
    Image.new("RGB", (112, 84), (200, 200, 200)).save(paths[MARKED])
    return paths


@pytest.fixture(scope="module")
def faulty(photos, commands, output_at, tmp_path_factory) -> Callable[[str], Faulty]:
    """What became of the run that failed in some way; its whole group runs on one Ray."""
    folder = tmp_path_factory.mktemp("faulty")

    def run(*group: str) -> None:
        command = commands.start(
            *(sys.executable, HERE / "faulty_encoder.py", photos[0].parent, folder, *group),
            env={"PYTHONPATH": str(HERE.parents[1])},
        )
        for way in group:
            told = folder / way / "told.json"
            command.wait_until(f"{way} is done", told.exists)
        done = command.ended()
        assert (done.code, done.left_behind) == (0, []), str(done)

    def count(way: str, kind: str) -> int:
        path = folder / way / kind
        return len(list(path.iterdir())) if path.exists() else 0

    def found(way: str, output: str = "") -> Faulty:
        if not (folder / way).exists():
            run(*next(group for group in GROUPS if way in group))
        told = json.loads((folder / way / "told.json").read_text())
        stored = output_at(folder / (output or way) / "output")
        return Faulty(
            **told, starts=count(way, "starts"), faults=count(way, "faults"), output=stored
        )

    return found


@pytest.fixture(scope="module")
def assert_embedded(photos, alone, assert_rows) -> Callable[..., None]:
    """Checks that a run embedded all photos but some, each as if alone, and wrote their errors."""

    def check(run: Faulty, failed: dict[Path, str] | None = None, attempts: int = 1) -> None:
        lost = failed or {}
        assert (run.code, run.line) == (0, "")
        assert_rows(run.output.rows(), [alone(path) for path in photos if path not in lost])
        assert run.output.rows("errors") == [
            {
                **{name: alone(path)[name] for name in ("item_id", "uri", "version", "media_type")},
                "stage": "encode",
                "error_code": "encode_failed",
                "error_message": message,
                "attempts": attempts,
            }
            for path, message in lost.items()
        ]
        assert verify(str(run.output.folder)).breaches == []

    return check


@pytest.fixture(scope="module")
def marked(photos) -> Path:
    return photos[MARKED]


@pytest.mark.whole
def test_a_process_whose_device_fails_is_replaced(faulty, assert_embedded) -> None:
    run = faulty("sick_twice")
    assert_embedded(run)
    assert run.starts == 3


@pytest.mark.whole
def test_a_device_that_always_fails_ends_the_run_with_the_reason(faulty) -> None:
    run = faulty("sick")
    assert run.code == 1
    assert run.line.startswith(f"the encoder's process ended {MOST_ENDS} times in a row on ")
    assert run.line.endswith(
        " cpu: CUDA error: an illegal memory access was encountered; shards stay open, run the "
        "same command again"
    )
    assert run.starts == MOST_ENDS + 1
    assert run.output.rows("errors") == []


@pytest.mark.whole
def test_a_run_that_its_device_has_ended_resumes_on_one_that_is_well(
    faulty, assert_embedded
) -> None:
    assert_embedded(faulty("well", output="sick"))


@pytest.mark.whole
def test_an_encoder_that_computes_something_else_embeds_nothing(faulty) -> None:
    run = faulty("wrong")
    assert run.code == 1
    assert run.line.startswith("the encoder's tokens are off by 0.0")
    assert run.line.endswith("; shards stay open, run the same command again without that device")
    assert (run.starts, run.faults, run.committed) == (1, 0, 0)


@pytest.mark.whole
def test_a_run_that_a_wrong_encoder_has_ended_resumes_with_one_that_is_right(
    faulty, assert_embedded
) -> None:
    assert_embedded(faulty("right", output="wrong"))


@pytest.mark.whole
def test_an_image_that_kills_every_process_is_found_and_alone_fails(
    faulty, marked, assert_embedded
) -> None:
    run = faulty("killed_by_one")
    message = "ended the encoder's process twice, alone in it"
    assert_embedded(run, {marked: message}, attempts=MOST_DEATHS)
    assert run.faults == 2 * MOST_DEATHS
    assert run.starts == run.faults + 1


def test_a_kill_in_the_middle_of_a_pack_loses_nothing(faulty, assert_embedded) -> None:
    run = faulty("killed_once")
    assert_embedded(run)
    assert run.starts == 2


def test_packs_are_halved_down_to_one_image_which_alone_fails(
    faulty, marked, assert_embedded
) -> None:
    run = faulty("full")
    assert_embedded(run, {marked: "one segment does not fit in memory"})
    assert run.starts == 1


@pytest.mark.whole
def test_processes_that_end_while_they_start_end_the_run(faulty) -> None:
    run = faulty("dead_at_start")
    assert run.code == 1
    assert f"ended {MOST_ENDS} times in a row on " in run.line
    assert " cpu: it crashed or was killed; " in run.line
    assert run.starts == MOST_ENDS + 1
