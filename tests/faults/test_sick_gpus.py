"""GPUs that fail in runs on real Ray: plainer kernels, devices set aside, and no item lost."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.attempts import MOST_DEATHS
from pipeline.marker import Marker
from pipeline.verify import verify
from tests.faults.sick_gpu_run import MARK
from tests.support.commands import Command, Commands, Done
from tests.support.outputs import MAX_PIXELS, Output

ENCODER = "ray::MapWorker(MapBatches(Encode))"
SCRIPT = Path(__file__).with_name("sick_gpu_run.py")


@pytest.fixture(scope="module")
def photos(collection: Any) -> list[Path]:
    return [path for path in collection.good if path.parent.name == "plain"]


@pytest.fixture
def run(commands: Commands, photos: list[Path], tmp_path: Path) -> Callable[..., Command]:
    """Starts to embed the photos on GPUs that fail in some way, to the test's own output."""

    def embed(way: str, gpus: int, *more: Path) -> Command:
        return commands.start(
            *(sys.executable, SCRIPT, way, tmp_path, photos[0].parent, *more),
            *("--output", tmp_path / "output", "--max-pixels", MAX_PIXELS, "--shard-rows", 4),
            *("--preprocess-actors", 1, "--encoder-actors", gpus, "--dtype", "float32"),
            env={"PYTHONPATH": str(SCRIPT.parents[2]), "PATCHFLOW_TEST_GPUS": f"{gpus}:8.0"},
        )

    return embed


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "output")


@pytest.fixture
def assert_complete(
    photos: list[Path],
    alone: Callable[[Path], Any],
    assert_rows: Callable[..., None],
    output: Output,
) -> Callable[[Done], None]:
    """Checks that every photo is embedded once, with the vector of a CPU in plain Python."""

    def check(done: Done) -> None:
        assert done.code == 0, str(done)
        assert "Traceback" not in done.err
        assert_rows(output.rows(), [alone(path) for path in photos])
        assert verify(str(output.folder)).breaches == []

    return check


def markers(output: Output) -> list[Marker]:
    folder = output.folder / "_patchflow" / "commits"
    return [Marker.from_json(path.read_bytes()) for path in folder.iterdir()]


def noted(folder: Path) -> int:
    return len(list(folder.iterdir()))


def test_what_does_not_compile_hangs_or_is_off_goes_on_with_plainer_kernels(
    run, assert_complete, output, tmp_path
) -> None:
    done = run("down", 1).ended()
    assert_complete(done)
    assert noted(tmp_path / "starts") == 2
    lines = [
        "cpu: the encoder's blocks are not compiled: no compiler; plain varlen kernels are used",
        "hangs: past its deadline of 3 s; plain sdpa kernels are used",
        "cpu: the encoder's tokens are off by 0.5; plain math kernels are used",
    ]
    for line in lines:
        assert (done.err.count(line), done.out.count(line)) == (1, 1), str(done)
    assert {(marker.device, marker.kernels) for marker in markers(output)} == {
        ("cpu", "plain math")
    }


def test_one_sick_gpu_is_set_aside_and_its_blocks_go_to_another(
    run, assert_complete, output, tmp_path
) -> None:
    done = run("one", 2).ended()
    assert_complete(done)
    assert noted(tmp_path / "starts") == 2
    assert noted(tmp_path / "passed_on") > 0
    (line,) = [line for line in done.err.splitlines() if "is set aside" in line]
    assert " gpu 0 is set aside: the encoder's tokens are off by 0.5 (cpu of " in line
    assert done.out.count(" gpu 0 is set aside") == 1
    assert "kernels are used" not in done.out
    assert {marker.kernels for marker in markers(output)} == {""}


@pytest.mark.whole
def test_a_block_that_is_left_when_all_other_encoders_are_released_is_embedded_too(
    run, assert_complete, tmp_path
) -> None:
    started = run("late", 2)
    started.wait_until("all other blocks are done", lambda: len(started.family(ENCODER)) == 1)
    (tmp_path / "go").touch()
    assert_complete(started.ended())


@pytest.mark.whole
def test_an_image_that_kills_every_process_is_found_beside_a_gpu_that_is_set_aside(
    run, photos, output, tmp_path
) -> None:
    killer = tmp_path / "killer.png"
    Image.new("RGB", (112, 84), (MARK, MARK, MARK)).save(killer)
    done = run("killer", 2, killer).ended()
    assert done.code == 0, str(done)
    assert len(output.rows()) == len(photos)
    (error,) = output.rows("errors")
    assert (error["uri"], error["attempts"]) == (str(killer), MOST_DEATHS)
    assert error["error_message"] == "ended the encoder's process twice, alone in it"
    # Both of the start, and one after each kill.
    assert noted(tmp_path / "starts") == 2 + 2 * MOST_DEATHS
    assert done.out.count("is set aside") == 1


@pytest.mark.whole
def test_a_run_whose_gpus_are_all_sick_ends_and_is_resumed(run, assert_complete, output) -> None:
    done = run("all", 2).ended()
    assert done.code == 1, str(done)
    assert "patchflow embed: the encoder's tokens are off by 0.5 (cpu of " in done.err
    assert "without that device (2 of 2 devices are set aside)" in done.err
    assert "Traceback" not in done.err
    assert output.rows() == output.rows("errors") == []
    assert_complete(run("none", 2).ended())
