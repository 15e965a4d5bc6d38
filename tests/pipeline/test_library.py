import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import pipeline
from encoder import PRESETS, Glm4vVisionConfig
from pipeline import create_complete_glm4v_vision_pipeline
from processors import (
    Glm4vImageProcessor,
    Glm4vVideoProcessor,
    Glm46VImageProcessor,
    Glm46VVideoProcessor,
    GlmgaImageProcessor,
    GlmgaVideoProcessor,
)
from tests.support.checkpoints import in_one_file
from tests.support.hub import REPO, FakeHub

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"
SMALL = {
    "depth": 1,
    "hidden_size": 32,
    "num_heads": 2,
    "image_size": 64,
    "out_hidden_size": 24,
    "intermediate_size": 40,
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(GOLDENS / "checkpoint-glm4v_moe", folder)
    for kind, options in {
        "image": {"size": {"shortest_edge": 12544, "longest_edge": 40000}},
        "video": {"size": {"shortest_edge": 12544, "longest_edge": 90000}, "max_frames": 20},
    }.items():
        name = f"{'' if kind == 'image' else 'video_'}preprocessor_config.json"
        described = {f"{kind}_processor_type": f"Glm46V{kind.title()}Processor", "patch_size": 16}
        (folder / name).write_text(json.dumps(options | described))
    return folder


def test_a_preset_comes_with_the_processors_of_glm_4_1v() -> None:
    model, images, videos = create_complete_glm4v_vision_pipeline("tiny", seed=3)
    assert model.config == PRESETS["tiny"]
    assert (type(images), type(videos)) == (Glm4vImageProcessor, Glm4vVideoProcessor)
    again, _, _ = create_complete_glm4v_vision_pipeline(**fields_of("tiny"), seed=3)
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name])


@pytest.mark.parametrize(
    "sizes",
    [
        {"patch_size": 14, "temporal_patch_size": 1, "spatial_merge_size": 1},
        {"patch_size": 16, "temporal_patch_size": 2, "spatial_merge_size": 3},
        {"patch_size": 16, "temporal_patch_size": 4, "spatial_merge_size": 2},
    ],
)
def test_processors_follow_the_models_sizes(sizes: dict[str, int]) -> None:
    model, images, videos = create_complete_glm4v_vision_pipeline(**SMALL, **sizes)
    for processor in (images, videos):
        options = processor.options
        assert (options.patch_size, options.temporal_patch_size, options.merge_size) == (
            sizes["patch_size"],
            sizes["temporal_patch_size"],
            sizes["spatial_merge_size"],
        )
    inputs = images.preprocess(Image.new("RGB", (96, 144)))
    tokens = model(inputs.pixel_values, inputs.image_grid_thw)
    assert tokens.shape == (len(inputs.pixel_values) // sizes["spatial_merge_size"] ** 2, 24)


def test_a_checkpoint_brings_its_processors_and_the_tower_their_sizes(checkpoint: Path) -> None:
    model, images, videos = create_complete_glm4v_vision_pipeline(str(checkpoint))
    assert model.config == Glm4vVisionConfig.from_pretrained(checkpoint)
    assert (type(images), type(videos)) == (Glm46VImageProcessor, Glm46VVideoProcessor)
    assert (images.options.max_pixels, images.options.patch_size) == (40000, 14)
    # The reference's class of that family never looks at a file's max_frames.
    assert (videos.options.max_pixels, videos.options.max_frames) == (90000, None)


def test_a_checkpoint_without_processor_files_has_the_newest_familys() -> None:
    with pytest.warns(UserWarning, match="describes no processors: Glmga's are used") as warned:
        _, images, videos = create_complete_glm4v_vision_pipeline(str(GOLDENS / "checkpoint-glm4v"))
    assert warned[0].filename == __file__
    assert (type(images), type(videos)) == (GlmgaImageProcessor, GlmgaVideoProcessor)


def test_the_processors_beside_a_checkpoints_one_file_are_its_own(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_one_file(checkpoint)
    monkeypatch.chdir(checkpoint)
    for location in (str(checkpoint / "model.safetensors"), "model.safetensors"):
        _, images, videos = create_complete_glm4v_vision_pipeline(location)
        assert (type(images), images.options.max_pixels) == (Glm46VImageProcessor, 40000)
        assert (type(videos), videos.options.max_pixels) == (Glm46VVideoProcessor, 90000)
    described = checkpoint / "preprocessor_config.json"
    described.write_text("{")
    with pytest.raises(ValueError, match=f"{described} is no JSON"):
        create_complete_glm4v_vision_pipeline(str(checkpoint / "model.safetensors"))


def test_a_checkpoint_without_a_video_file_is_told_to_the_caller(checkpoint: Path) -> None:
    (checkpoint / "video_preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match="describes no video processor") as warned:
        create_complete_glm4v_vision_pipeline(str(checkpoint))
    assert warned[0].filename == __file__


def test_weights_and_processors_are_of_one_commit(
    checkpoint: Path, tmp_path: Path, hub: FakeHub
) -> None:
    first = hub.commit("a", checkpoint, "main")
    later = shutil.copytree(checkpoint, tmp_path / "later")
    (later / "preprocessor_config.json").write_text("{}")
    hub.then["main"] = hub.commit("b", later)
    _, images, _ = create_complete_glm4v_vision_pipeline(f"hf://{REPO}")
    assert images.options.max_pixels == 40000
    assert all(first in path for path in hub.paths()[1:])


def test_a_path_is_a_folder_even_where_it_is_called_like_a_preset(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(checkpoint.rename(checkpoint.with_name("tiny")).parent)
    _, images, _ = create_complete_glm4v_vision_pipeline(Path("tiny"))
    assert type(images) is Glm46VImageProcessor


@pytest.mark.parametrize("location", [{}, PRESETS["tiny"], 5])
def test_what_is_no_location_is_told_what_one_is(location: Any) -> None:
    with pytest.raises(ValueError, match="location"):
        create_complete_glm4v_vision_pipeline(location)


def test_a_location_and_a_configuration_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="location='tiny' brings its own configuration: leave out"):
        create_complete_glm4v_vision_pipeline("tiny", depth=2)


def test_a_tower_that_no_processor_cuts_for_is_refused() -> None:
    with pytest.raises(ValueError, match="in_channels=1: the processors make patches of 3"):
        create_complete_glm4v_vision_pipeline(**SMALL, in_channels=1)


def test_unknown_fields_are_told_the_names() -> None:
    with pytest.raises(ValueError, match=r"unknown field merge_size=2; the fields are depth, hid"):
        create_complete_glm4v_vision_pipeline(merge_size=2)


def test_what_is_not_promised_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'pipeline' has no attribute 'run'"):
        pipeline.run  # noqa: B018


@pytest.mark.parametrize(
    ("code", "absent"),
    [
        ("import pipeline", {"torch", "numpy", "ray", "av"}),
        (
            "from pipeline import create_complete_glm4v_vision_pipeline as create\n"
            "import torch\n"
            "model, images, videos = create('tiny')\n"
            "inputs = videos(torch.zeros(4, 3, 56, 56), do_sample_frames=False)\n"
            "model(inputs.pixel_values_videos, inputs.video_grid_thw)",
            {"ray", "av", "pyarrow"},
        ),
    ],
)
def test_the_library_needs_neither_ray_nor_pyav(code: str, absent: set[str]) -> None:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert not absent & set(done.stdout.split())


def fields_of(preset: str) -> dict[str, Any]:
    return {
        name: value for name, value in PRESETS[preset].to_dict().items() if name != "model_type"
    }
