"""How a run's items become patches: what a checkpoint's files and the command line come to."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec import AbstractFileSystem
from fsspec.implementations.memory import MemoryFileSystem
from hypothesis import example, given
from hypothesis import strategies as st

from encoder import PRESETS, vision_tensors
from pipeline.config import EmbedConfig
from pipeline.errors import StorageError, UsageError
from pipeline.identity import fingerprint
from pipeline.options import ProcessorOptions, processor_options, recorded_options
from pipeline.processor_files import Brought, brought_options
from processors import ImageOptions, VideoOptions
from processors.factories import VIDEO_CLASSES
from processors.frame_patcher import clip_grid
from processors.image import GlmgaImageProcessor
from tests.support.checkpoints import in_one_file

SHAPE = PRESETS["tiny"]
FLAT = {
    "image_processor": "preprocessor_config.json",
    "video_processor": "video_preprocessor_config.json",
}
Write = Callable[..., str]


@pytest.fixture
def checkpoint(tmp_path: Path, goldens: Path) -> Write:
    """A checkpoint's folder, with what is given as its processors' files."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(goldens / "checkpoint-glm46v", folder)

    def write(*, nested: dict[str, Any] | None = None, **flat: dict[str, Any]) -> str:
        if nested is not None:
            (folder / "processor_config.json").write_text(json.dumps(nested))
        for kind, options in flat.items():
            (folder / FLAT[kind]).write_text(json.dumps(options))
        return str(folder)

    return write


def found(location: str | None = None, **asked: Any) -> ProcessorOptions:
    shape = SHAPE if location is None else vision_tensors(location).config
    brought = Brought() if location is None else brought_options(location)
    return processor_options(EmbedConfig(output="out", **asked), brought, shape)


def refusal(location: str | None = None, **asked: Any) -> str:
    with pytest.raises(UsageError) as caught:
        found(location, **asked)
    line = str(caught.value)
    assert "\n" not in line
    return line


# --- budgets and rates --------------------------------------------------------------------------


def test_a_preset_takes_the_newest_familys_own_limits() -> None:
    options = found()
    assert options.family == "glmga"
    assert (options.images.min_pixels, options.images.max_pixels) == (112**2, 28 * 28 * 15000)
    assert (options.videos.min_pixels, options.videos.max_pixels) == (112**2, 87_478_720)
    assert (options.videos.fps, options.videos.max_frames) == (2.0, 640)
    assert options.animated == "image"


def test_what_is_asked_for_goes_before_what_a_checkpoint_brings(checkpoint: Write) -> None:
    video = {
        "video_processor_type": "GlmgaVideoProcessor",
        "size": {"shortest_edge": 20_000, "longest_edge": 400_000},
        "fps": 3.0,
        "max_frames": 50,
        "patch_expand_factor": 2,
    }
    location = checkpoint(video_processor=video)
    brought = found(location).videos
    assert (brought.min_pixels, brought.max_pixels) == (20_000, 400_000)
    assert (brought.fps, brought.max_frames, brought.patch_expand_factor) == (3.0, 50, 2)
    asked = found(location, fps=0.5, max_frames=8, video_max_pixels=30_000).videos
    assert (asked.min_pixels, asked.max_pixels) == (20_000, 30_000)
    assert (asked.fps, asked.max_frames, asked.patch_expand_factor) == (0.5, 8, 2)


def test_budgets_at_the_top_level_count_where_there_is_no_size(checkpoint: Write) -> None:
    location = checkpoint(video_processor={"min_pixels": 20_000, "max_pixels": 400_000})
    videos = found(location).videos
    assert (videos.min_pixels, videos.max_pixels) == (20_000, 400_000)


def test_a_clips_budget_below_the_least_lowers_the_least() -> None:
    videos = found(video_max_pixels=1000).videos
    assert (videos.min_pixels, videos.max_pixels) == (1000, 1000)


def test_a_stills_budget_counts_its_pixels_once() -> None:
    images = found(min_pixels=1000, max_pixels=2000).images
    assert (images.min_pixels, images.max_pixels) == (2000, 4000)
    assert refusal(min_pixels=6_000_000) == "--min-pixels 6000000 is more than --max-pixels 5880000"


def test_stills_and_clips_have_budgets_of_their_own() -> None:
    assert found(max_pixels=2000).videos == found().videos
    assert found(video_max_pixels=2000).images == found().images


def test_a_rate_is_the_same_whole_or_not(checkpoint: Write) -> None:
    location = checkpoint(
        video_processor={
            "video_processor_type": "Glm4vVideoProcessor",
            "fps": 2,
            "max_duration": 300,
        }
    )
    whole, given_again = found(location).semantics, found(location, fps=2.0).semantics
    assert fingerprint(whole) == fingerprint(given_again)
    assert json.dumps([whole["fps"], whole["max_duration"]]) == "[2.0, 300.0]"


@pytest.mark.parametrize(("most", "frames"), [(4095, 4096), (4096, 4096)])
def test_as_many_frames_as_the_decoder_process_can_tell_of(most: int, frames: int) -> None:
    assert found(max_frames=most).sampling.most_frames == frames


def test_more_frames_are_refused() -> None:
    line = "up to 4098 frames of a clip are asked for, 4096 are the most; "
    assert refusal(max_frames=4097) == line + "lower --max-frames or --fps"


def test_a_rate_that_comes_to_more_frames_is_refused(checkpoint: Write) -> None:
    location = checkpoint(video_processor={"video_processor_type": "Glm4vVideoProcessor"})
    assert found(location, fps=13.0).sampling.most_frames == 3900
    assert "up to 4200 frames of a clip are asked for" in refusal(location, fps=14.0)


# --- whose rules --------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", "Fast", "Pil"])
@pytest.mark.parametrize("name", ["Glmga", "Glm46V", "Glm4v"])
def test_the_processors_type_says_whose_rules_count(
    checkpoint: Write, name: str, suffix: str
) -> None:
    """The checkpoint's model is Glm46V's all the while."""
    kind = f"{name}VideoProcessor{suffix}"
    options = found(checkpoint(video_processor={"video_processor_type": kind}))
    assert options.family == name.lower()
    assert options.sampling.family == name.lower()
    assert options.videos.max_pixels == (87_478_720 if name == "Glmga" else 47_040_000)


def test_a_nested_file_goes_before_flat_ones(checkpoint: Write) -> None:
    nested = {
        "image_processor": {
            "image_processor_type": "Glm46VImageProcessorFast",
            "max_pixels": 40_000,
        },
        "video_processor": {"video_processor_type": "Glm46VVideoProcessor", "max_pixels": 50_000},
    }
    options = found(
        checkpoint(
            nested=nested,
            image_processor={"max_pixels": 60_000},
            video_processor={"video_processor_type": "Glm4vVideoProcessor"},
        )
    )
    assert options.family == "glm46v"
    assert (options.images.max_pixels, options.videos.max_pixels) == (40_000, 50_000)


def test_what_a_nested_file_lacks_a_flat_one_may_hold(checkpoint: Write) -> None:
    video = {"video_processor_type": "Glm4vVideoProcessor"}
    nested = {"image_processor": {"image_processor_type": "Glm4vImageProcessor"}}
    assert found(checkpoint(nested=nested, video_processor=video)).family == "glm4v"


def test_without_a_video_file_the_image_processor_says_whose_rules_count(
    checkpoint: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the family's own budget for clips: the reference takes that of images."""
    image = {"image_processor_type": "Glm46VImageProcessor", "max_pixels": 40_000}
    location = checkpoint(image_processor=image)
    options = found(location)
    assert (options.family, options.videos.max_pixels) == ("glm46v", 47_040_000)
    line = f"patchflow: {location} describes no video processor: clips take glm46v's defaults\n"
    assert capsys.readouterr().err == line


def test_without_an_image_file_the_familys_defaults_count(
    checkpoint: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    video = {"video_processor_type": "Glm46VVideoProcessor", "max_pixels": 40_000}
    location = checkpoint(video_processor=video)
    options = found(location)
    assert (options.images, options.videos.max_pixels) == (found().images, 40_000)
    line = f"patchflow: {location} describes no image processor: images take glm46v's defaults\n"
    assert capsys.readouterr().err == line


def test_a_checkpoint_without_processors_has_the_newest_familys(
    checkpoint: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    location = checkpoint()
    assert found(location) == found()
    line = f"patchflow: {location} describes no processors: images and clips take glmga's defaults"
    assert capsys.readouterr().err == line + "\n"


def test_a_tower_alone_brings_no_processor(
    goldens: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = goldens / "checkpoint-glm46v"
    tower = sorted(folder.glob("*.safetensors"))[0]
    options = processor_options(EmbedConfig(output="out"), brought_options(str(tower)), SHAPE)
    assert options == found()
    assert capsys.readouterr().err.startswith(f"patchflow: {folder} describes no processors: ")


def test_processors_beside_a_checkpoints_one_file_are_its_own(checkpoint: Write) -> None:
    video = {"video_processor_type": "Glm46VVideoProcessor", "max_pixels": 50_000}
    location = checkpoint(image_processor={"max_pixels": 40_000}, video_processor=video)
    by_folder = found(location)
    assert found(str(in_one_file(Path(location)))) == by_folder
    (Path(location) / FLAT["image_processor"]).write_text("{")
    line = refusal(f"{location}/model.safetensors")
    assert line.startswith(f"--encoder {location}/preprocessor_config.json is no JSON: ")


FOREIGN = [
    ("video", "Qwen2VLVideoProcessor"),
    ("image", "SiglipImageProcessorFast"),
    ("image", "GlmgaImageProcessorNew"),
]


@pytest.mark.parametrize(("kind", "name"), FOREIGN)
def test_another_familys_processor_is_refused_by_name(
    checkpoint: Write, kind: str, name: str
) -> None:
    file = f"{kind}_processor"
    location = checkpoint(**{file: {f"{file}_type": name}})
    assert refusal(location) == (
        f"--encoder {location}/{FLAT[file]}: {name} is no {kind} processor of Glmga, Glm46V, Glm4v"
    )


def test_another_familys_image_processor_is_refused_beside_a_video_processor_of_ours(
    checkpoint: Write,
) -> None:
    location = checkpoint(
        image_processor={"image_processor_type": "SiglipImageProcessor"},
        video_processor={"video_processor_type": "GlmgaVideoProcessor"},
    )
    assert "SiglipImageProcessor is no image processor of" in refusal(location)


def test_a_rate_is_refused_where_the_clips_length_decides_it(checkpoint: Write) -> None:
    """What the checkpoint itself says of it has no effect, and is nobody's mistake."""
    video = {"video_processor_type": "Glm46VVideoProcessor", "fps": 2, "max_duration": 300}
    location = checkpoint(video_processor=video)
    assert found(location, max_frames=16).videos.max_frames == 16
    assert refusal(location, fps=1.0) == (
        "clips are sampled as by glm46v: fps=1.0 has no effect on glm46v, whose rate goes by the "
        "clip's duration; leave it out, or limit max_frames"
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"image_mean": [0.5, 0.5, 0.5]},
            "image_mean [0.5, 0.5, 0.5] is not supported, "
            "only the family's [0.48145466, 0.4578275, 0.40821073]",
        ),
        (
            {"image_std": 0.5},
            "image_std 0.5 is not supported, "
            "only the family's [0.26862954, 0.26130258, 0.27577711]",
        ),
        ({"do_resize": False}, "do_resize false is not supported, only the family's true"),
        (
            {"do_sample_frames": False},
            "do_sample_frames false is not supported, only the family's true",
        ),
        ({"resample": 2}, "resample 2 is not supported, only the family's 3"),
        (
            {"rescale_factor": 0.5},
            "rescale_factor 0.5 is not supported, only the family's 0.00392156862745098",
        ),
        ({"size": {"shortest_edge": 9}}, "size needs 'shortest_edge' and 'longest_edge', the"),
        ({"max_image_tokens": 8000}, "unknown option max_image_tokens=8000; the options are"),
        ({"patch_expand_factor": 0}, "patch_expand_factor must be an integer of at least 1, got 0"),
    ],
    ids=str,
)
def test_a_processor_that_does_something_else_is_refused(
    checkpoint: Write, options: dict[str, Any], reason: str
) -> None:
    location = checkpoint(video_processor=options)
    place = f"{location}/video_preprocessor_config.json"
    assert refusal(location).startswith(f"--encoder {place}: {reason}")


@pytest.mark.parametrize(
    "options",
    [
        {"image_mean": [0.48145466, 0.4578275, 0.40821073], "rescale_factor": 1 / 255},
        {"resample": 3, "do_resize": True, "do_center_crop": None, "size_divisor": None},
        {"num_frames": 16, "max_image_size": {"longest_edge": 9}, "transformers_version": "5"},
        {"patch_size": 16, "device": "cuda", "return_tensors": "np"},  # the run's own count
    ],
)
def test_a_processor_that_does_the_same_in_more_words_is_taken(
    checkpoint: Write, options: dict[str, Any]
) -> None:
    location = checkpoint(image_processor=options, video_processor=options)
    assert found(location) == found()


def test_what_a_family_never_looks_at_has_no_effect(checkpoint: Write) -> None:
    location = checkpoint(
        image_processor={"image_processor_type": "Glm46VImageProcessor", "patch_expand_factor": 2},
        video_processor={"video_processor_type": "Glm46VVideoProcessor", "max_frames": 9},
    )
    options = found(location)
    assert (options.images.patch_expand_factor, options.sampling.max_frames) == (1, 640)


@pytest.mark.parametrize("content", ["", "[]", '{"video_processor": 3}', '"text"'])
def test_a_damaged_file_is_refused_by_name(checkpoint: Write, content: str) -> None:
    location = checkpoint()
    (Path(location) / "processor_config.json").write_text(content)
    assert refusal(location).startswith(f"--encoder {location}/processor_config.json")


def test_files_that_cannot_be_looked_at_are_not_taken_for_absent(
    checkpoint: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionError("503 slow down")

    location = "memory://checkpoint"
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    fsspec.filesystem("memory").put(checkpoint(), "/checkpoint", recursive=True)
    # As of the Hub's file system, and most.
    monkeypatch.setattr(MemoryFileSystem, "exists", AbstractFileSystem.exists)
    for method in ("info", "_open"):
        monkeypatch.setattr(MemoryFileSystem, method, refuse)
    with pytest.raises(StorageError, match=f"--encoder {location}: 503 slow down"):
        brought_options(location)


@pytest.mark.parametrize("options", [{"fps": -1}, {"max_frames": "many"}])
def test_an_option_that_cannot_be_is_refused(checkpoint: Write, options: dict[str, Any]) -> None:
    assert "clips are sampled as by glmga: " in refusal(checkpoint(video_processor=options))


# --- bounds -------------------------------------------------------------------------------------


def options_of(images: ImageOptions, videos: VideoOptions, family: Any) -> ProcessorOptions:
    return ProcessorOptions(images=images, family=family, videos=videos, animated="image")


def test_the_most_pixels_of_a_still() -> None:
    videos = VideoOptions()
    ample = ImageOptions(max_pixels=2 * 1_000_000)
    assert options_of(ample, videos, "glmga").most_still_pixels == 1_000_000
    # One merge block high, 200 times as long and rounded up: what a strip has at any budget.
    small = ImageOptions(min_pixels=1, max_pixels=2)
    assert options_of(small, videos, "glmga").most_still_pixels == 28 * 28 * 201
    expanded = ImageOptions(min_pixels=1, max_pixels=2, patch_expand_factor=2)
    assert options_of(expanded, videos, "glmga").most_still_pixels == 56 * 56 * 201


def test_the_most_pixels_of_a_clip() -> None:
    images = ImageOptions()
    ample = VideoOptions(max_pixels=10**9)
    assert options_of(images, ample, "glmga").most_clip_pixels == 10**9
    small = VideoOptions(min_pixels=1, max_pixels=1, max_frames=5)
    assert options_of(images, small, "glmga").most_clip_pixels == 6 * 28 * 28 * 201
    # Ten frames of four a patch are budgeted as eight, and filled up to twelve.
    four = VideoOptions(max_pixels=10**9, temporal_patch_size=4)
    assert options_of(images, four, "glmga").most_clip_pixels == 1_500_000_000


SIDES = st.integers(1, 5000)


@example(height=989, width=6, most=323_025, least=323_025)  # Both sides are rounded up.
@given(height=SIDES, width=SIDES, most=st.integers(1, 2**23), least=st.integers(1, 2**23))
def test_no_still_has_more_pixels(height: int, width: int, most: int, least: int) -> None:
    images = ImageOptions(min_pixels=min(least, most), max_pixels=most)
    options = options_of(images, VideoOptions(), "glmga")
    if max(height, width) <= 200 * min(height, width):
        _, h, w = clip_grid(2, height, width, images)
        assert h * w * 196 <= options.most_still_pixels


@example(height=8, width=1194, frames=1, most=307_588, least=307_588, patch=2)
@example(height=108, width=1, frames=3, most=2_292_819, least=2_292_819, patch=4)
@given(
    height=SIDES,
    width=SIDES,
    frames=st.integers(1, 64),
    most=st.integers(1, 2**25),
    least=st.integers(1, 2**25),
    patch=st.sampled_from([1, 2, 4]),
)
def test_no_clip_has_more_pixels(
    height: int, width: int, frames: int, most: int, least: int, patch: int
) -> None:
    """Of `2 * frames`: an even number is chosen, and no more than there may be."""
    videos = VideoOptions(
        min_pixels=min(least, most),
        max_pixels=most,
        max_frames=2 * frames,
        temporal_patch_size=patch,
    )
    options = options_of(ImageOptions(temporal_patch_size=patch), videos, "glmga")
    if max(height, width) <= 200 * min(height, width):
        grid = clip_grid(2 * frames, height, width, videos)
        assert prod(grid) * 196 * patch <= options.most_clip_pixels


# --- what is recorded ---------------------------------------------------------------------------

BUDGETS = st.one_of(st.none(), st.integers(1, 10**8))
EDGES = st.integers(1, 10**8)
RATES = {
    "glmga": {"fps": st.floats(0.01, 30), "max_frames": st.integers(1, 4096)},
    "glm46v": {"max_frames": st.integers(1, 4096)},
    "glm4v": {"fps": st.floats(0.01, 13), "max_frames": st.integers(1, 4096)},
}


@given(data=st.data(), max_pixels=BUDGETS, video_max_pixels=BUDGETS)
@pytest.mark.parametrize("family", RATES)
def test_what_is_recorded_gives_the_same_options(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    family: str,
    max_pixels: int | None,
    video_max_pixels: int | None,
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"recorded-{family}"
    folder.mkdir(exist_ok=True)
    name = {"glmga": "Glmga", "glm46v": "Glm46V", "glm4v": "Glm4v"}[family]
    (folder / FLAT["video_processor"]).write_text(
        json.dumps({"video_processor_type": f"{name}VideoProcessor"})
    )
    edges = sorted(data.draw(st.tuples(EDGES, EDGES)))
    size = dict(zip(("shortest_edge", "longest_edge"), edges, strict=True))
    (folder / FLAT["image_processor"]).write_text(json.dumps({"size": size}))
    rates = data.draw(st.fixed_dictionaries({}, optional=RATES[family]))
    animated = data.draw(st.sampled_from(["image", "video"]))
    decode = data.draw(st.sampled_from(["exact", "fast"]))
    budgets = {"max_pixels": max_pixels, "video_max_pixels": video_max_pixels}
    config = EmbedConfig(output="out", **rates, **budgets, animated=animated, decode=decode)
    options = processor_options(config, brought_options(str(folder)), SHAPE)
    semantics = json.loads(json.dumps(options.semantics))
    again = recorded_options(semantics, SHAPE)
    assert again == options
    assert again.semantics == options.semantics
    assert GlmgaImageProcessor(**vars(again.images)).options == options.images
    assert VIDEO_CLASSES[again.family](**vars(again.videos)).options == options.videos
    assert again.sampling == options.sampling
