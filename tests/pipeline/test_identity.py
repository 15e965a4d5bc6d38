"""What a run is made with, and which changes of it are refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from encoder import PRESETS, Glm4vVisionModel, checkpoint_digest, vision_tensors
from pipeline.config import ComputeDevice, EmbedConfig
from pipeline.errors import PatchflowError, UsageError
from pipeline.identity import Identity, identity
from pipeline.record import check_resumable, record

Files = Callable[[Path], dict[str, bytes]]


def config(output: Path, **options: Any) -> EmbedConfig:
    return EmbedConfig(output=str(output), **options)


def begin(output: Path, device: ComputeDevice = "cpu", **options: Any) -> Identity:
    asked = config(output, **options)
    found = identity(asked, device)
    record(asked, found)
    return found


@pytest.fixture
def checkpoint(tmp_path: Path, goldens: Path) -> Path:
    """A checkpoint folder of a test's own."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(goldens / "checkpoint-glm4v", folder)
    return folder


def test_a_new_output_can_be_begun_and_resumed(tmp_path: Path) -> None:
    output = tmp_path / "out"
    asked = identity(config(output), "cpu")
    assert check_resumable(str(output), asked.semantics) is False
    assert not output.exists()
    record(config(output), asked)
    assert check_resumable(str(output), asked.semantics) is True


def test_of_two_runs_that_begin_an_output_at_once_the_other_must_agree(tmp_path: Path) -> None:
    output = tmp_path / "out"
    begin(output)
    begin(output)
    with pytest.raises(UsageError, match="pool was mean, now max"):
        begin(output, pool="max")
    assert json.loads((output / "_patchflow/run.json").read_bytes())["semantics"]["pool"] == "mean"


def test_an_output_is_resumed_with_the_decoding_that_it_was_begun_with(tmp_path: Path) -> None:
    exact = begin(tmp_path)
    assert exact.semantics["decode"] == "pillow, pyav"
    fast = identity(config(tmp_path, decode="fast"), "cpu")
    with pytest.raises(UsageError, match="decode was pillow, pyav, now libjpeg-turbo reduced, "):
        check_resumable(str(tmp_path), fast.semantics)


def test_a_presets_weights_are_not_stored(tmp_path: Path, files: Files) -> None:
    found = begin(tmp_path, seed=3)
    assert list(files(tmp_path)) == ["_patchflow/run.json"]
    run = json.loads((tmp_path / "_patchflow/run.json").read_bytes())
    assert run["encoder"]["digest"] == found.encoder.digest
    assert (run["encoder"]["random_weights"], run["encoder"]["seed"]) == (True, 3)
    assert run["encoder"]["config"]["depth"] == 1


def test_a_checkpoints_tower_is_stored_beside_what_it_made(
    tmp_path: Path, checkpoint: Path
) -> None:
    output = tmp_path / "out"
    found = begin(output, encoder=str(checkpoint))
    kept = output / "_patchflow" / "encoder" / f"{found.encoder.digest}.safetensors"
    assert checkpoint_digest(vision_tensors(str(kept))) == found.encoder.digest
    assert (found.encoder.random, found.encoder.config.depth) == (False, 2)
    assert identity(config(output, encoder=str(kept)), "cpu").semantics == found.semantics


def test_the_same_tower_elsewhere_is_the_same_encoder(tmp_path: Path, checkpoint: Path) -> None:
    output = tmp_path / "out"
    begin(output, encoder=str(checkpoint), seed=1)
    moved = tmp_path / "moved"
    checkpoint.rename(moved)
    asked = config(output, encoder=str(moved), seed=2)
    assert check_resumable(str(output), identity(asked, "cpu").semantics)


def damage_shard(folder: Path) -> None:
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:100])


def lose_shard(folder: Path) -> None:
    sorted(folder.glob("*.safetensors"))[0].unlink()


def lose_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def lose_tensor(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    found = json.loads(index.read_text())
    name = next(n for n in found["weight_map"] if "visual.merger.proj" in n)
    del found["weight_map"][name]
    index.write_text(json.dumps(found))


def pickle_it(folder: Path) -> None:
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def break_processor(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{")


def foreign_mean(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))


def no_rescaling(folder: Path) -> None:
    text = json.dumps({"image_processor": {"do_rescale": False}})
    (folder / "processor_config.json").write_text(text)


@pytest.mark.parametrize(
    "damage",
    [
        damage_shard,
        lose_shard,
        lose_config,
        break_config,
        lose_tensor,
        pickle_it,
        break_processor,
        foreign_mean,
        no_rescaling,
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, checkpoint: Path, damage: Callable[[Path], None]
) -> None:
    damage(checkpoint)
    with pytest.raises(UsageError) as caught:
        identity(config(tmp_path / "out", encoder=str(checkpoint)), "cpu")
    line = str(caught.value)
    assert str(checkpoint) in line and "\n" not in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["huge", "no/such/folder", "model.bin", "weights.pt"])
def test_an_encoder_that_is_none_is_refused_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        identity(config(tmp_path / "out", encoder=name), "cpu")
    assert "\n" not in str(caught.value)


def test_a_tower_of_other_than_coloured_pictures_is_refused(tmp_path: Path) -> None:
    tower = Glm4vVisionModel(dataclasses.replace(PRESETS["tiny"], in_channels=1))
    save_file(tower.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(tower.config.to_dict()))
    with pytest.raises(UsageError, match="pictures have 1 channels; those that are embedded have"):
        identity(config(tmp_path / "out", encoder=str(tmp_path)), "cpu")


def test_a_misspelt_preset_is_told_the_names(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nor is it a preset: tiny, small, medium, large\)$"):
        identity(config(tmp_path / "out", encoder="smal"), "cpu")


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({}, (6272, 5_880_000)),
        ({"size": {"shortest_edge": 20_000, "longest_edge": 400_000}}, (10_000, 200_000)),
        ({"min_pixels": 20_000, "max_pixels": 400_000}, (10_000, 200_000)),
    ],
)
def test_a_checkpoints_own_pixel_budget_is_taken(
    tmp_path: Path, checkpoint: Path, processor: dict[str, Any], expected: tuple[int, int]
) -> None:
    (checkpoint / "preprocessor_config.json").write_text(json.dumps(processor))
    options = {"encoder": str(checkpoint)}
    found = identity(config(tmp_path / "out", **options), "cpu").semantics
    assert (found["min_pixels"], found["max_pixels"]) == expected
    mine = identity(config(tmp_path / "out", **options, max_pixels=300_000), "cpu").semantics
    assert (mine["min_pixels"], mine["max_pixels"]) == (expected[0], 300_000)


def test_a_budget_below_the_familys_least_lowers_the_least(tmp_path: Path) -> None:
    found = identity(config(tmp_path / "out", max_pixels=1000), "cpu").semantics
    assert (found["min_pixels"], found["max_pixels"]) == (1000, 1000)


def test_a_budget_that_cannot_be_is_refused_with_the_number_that_was_typed(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--min-pixels 6000000"):
        identity(config(tmp_path / "out", min_pixels=6_000_000), "cpu")


@pytest.mark.parametrize("content", [b"", b"not json", b"{}"])
def test_a_damaged_run_is_told_in_a_line(tmp_path: Path, content: bytes) -> None:
    found = begin(tmp_path)
    (tmp_path / "_patchflow/run.json").write_bytes(content)
    with pytest.raises(PatchflowError, match=r"run\.json") as caught:
        check_resumable(str(tmp_path), found.semantics)
    assert "\n" not in str(caught.value)
