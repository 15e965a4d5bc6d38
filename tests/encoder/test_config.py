import json
from pathlib import Path
from typing import Any

import pytest
import torch

from encoder import PRESETS, Glm4vVisionConfig, Glm4vVisionModel, GlmgaConfig


@pytest.mark.parametrize(
    ("preset", "count"),
    [("tiny", 2_011_520), ("small", 25_453_440), ("medium", 91_024_128), ("large", 892_498_432)],
)
def test_preset_counts_equal_the_modules(preset: str, count: int) -> None:
    config = PRESETS[preset]
    model = Glm4vVisionModel(config, device="meta")
    assert config.num_parameters == sum(p.numel() for p in model.parameters()) == count


def test_glm_4_5v_has_181_tensors_and_858_7_million_parameters() -> None:
    config = Glm4vVisionConfig(intermediate_size=10944)
    assert len(config.tensor_shapes()) == 181
    assert round(config.num_parameters / 1e6, 1) == 858.7


def test_tensor_shapes_equal_the_modules(small_config: Glm4vVisionConfig) -> None:
    model = Glm4vVisionModel(small_config, device="meta")
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == small_config.tensor_shapes()


def test_from_dict_reads_a_whole_model(goldens: Path) -> None:
    raw = json.loads((goldens / "checkpoint-glm4v_moe" / "config.json").read_text())
    assert Glm4vVisionConfig.from_dict(raw) == Glm4vVisionConfig(
        depth=3,
        hidden_size=96,
        num_heads=6,
        image_size=84,
        out_hidden_size=64,
        intermediate_size=112,
        attention_bias=True,
    )


def test_to_dict_round_trips_through_json(small_config: Glm4vVisionConfig) -> None:
    assert Glm4vVisionConfig.from_dict(json.loads(json.dumps(small_config.to_dict()))) == (
        small_config
    )


def test_missing_fields_take_the_defaults_of_glm_4_1v() -> None:
    config = Glm4vVisionConfig.from_dict({"model_type": "glm4v", "vision_config": {}})
    assert config == Glm4vVisionConfig() == PRESETS["large"]
    assert (config.head_dim, config.num_positions, config.patch_dim) == (128, 576, 1176)


def test_aliases_of_transformers_are_read() -> None:
    config = Glm4vVisionConfig.from_dict({"num_attention_heads": 4, "num_hidden_layers": 3})
    assert (config.num_heads, config.depth) == (4, 3)


@pytest.mark.parametrize(
    ("fields", "theta"),
    [
        ({"rope_theta": 500.0}, 500.0),
        ({"rope_parameters": {"rope_type": "axial", "rope_theta": 700.0}}, 700.0),
        ({"rope_parameters": {"rope_theta": 700.0}, "rope_theta": 500.0}, 700.0),
        ({"rope_parameters": {"rope_type": "default"}, "rope_theta": 500.0}, 500.0),
        ({"rope_parameters": None, "rope_theta": None}, 10000.0),
    ],
)
def test_rope_theta_comes_from_where_transformers_takes_it(
    fields: dict[str, Any], theta: float
) -> None:
    assert Glm4vVisionConfig.from_dict(fields).rope_theta == theta


@pytest.mark.parametrize("family", ["glm4v", "glm4v_moe", "glm46v", "glmga"])
@pytest.mark.parametrize("suffix", ["", "_vision"])
def test_family_names_are_accepted_with_and_without_suffix(family: str, suffix: str) -> None:
    raw = {"model_type": family, "vision_config": {"model_type": family + suffix}}
    assert Glm4vVisionConfig.from_dict(raw) == Glm4vVisionConfig()


@pytest.mark.parametrize(
    "raw",
    [
        {"model_type": "glmga", "vision_config": {"model_type": "glm5_next_vision"}},
        {"model_type": "glm_ocr", "vision_config": {"model_type": "glm_ocr_vision"}},
        {"model_type": "qwen2_5_vl", "vision_config": {}},
        {"model_type": "llama"},
    ],
)
def test_other_architectures_are_refused_by_name(raw: dict[str, Any]) -> None:
    name = raw.get("vision_config", {}).get("model_type", raw["model_type"])
    with pytest.raises(ValueError, match=f"model_type '{name}' is another architecture"):
        Glm4vVisionConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "glm4v", "text_config": {}}, "'glm4v' has no vision_config"),
        ({"vision_config": [1]}, r"vision_config=\[1\] is not an object"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_type 'yarn' is not supported"),
        ({"rope_parameters": [1]}, r"rope_parameters=\[1\] is not an object"),
        ({"head_dim": 64}, "head_dim=64 is not hidden_size / num_heads=128"),
        ([], r"^config=\[\] is not an object; from_dict takes the parsed config.json"),
        (None, "^config=None is not an object"),
        ("folder", "^config='folder' is not an object; .* from_pretrained its folder$"),
    ],
)
def test_from_dict_says_what_is_wrong(raw: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Glm4vVisionConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": 0}, "depth=0 is not a positive integer"),
        ({"patch_size": 14.0}, r"patch_size=14\.0 is not a positive integer"),
        ({"depth": 10**9}, "depth=1000000000 is over 1000, the most supported"),
        ({"hidden_size": 4 * 10**11, "num_heads": 7}, "hidden_size=400000000000 is over 1048576"),
        ({"depth": True}, "depth=True is not a positive integer"),
        ({"rms_norm_eps": float("nan")}, "rms_norm_eps=nan is not a positive number"),
        ({"rope_theta": "1e4"}, "rope_theta='1e4' is not a positive number"),
        ({"attention_bias": 1}, "attention_bias=1 is not a bool"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported; 'silu' is"),
        ({"hidden_size": 96, "num_heads": 16}, r"num_heads=16 .* a multiple of 4; these counts do"),
        ({"image_size": 7}, "image_size=7 is smaller than patch_size=14"),
        ({"hidden_size": 30}, "hidden_size=30 is not a multiple of 4"),
        (
            {"hidden_size": 384, "num_heads": 7},
            r"num_heads=7 .* the nearest counts that do: \[1, 2, 3, 4, 6, 8, 12, 16\]$",
        ),
        (
            {"hidden_size": 96, "num_heads": 5},
            r"num_heads=5 .* hidden_size=96 .* these counts do: \[1, 2, 3, 4, 6, 8, 12, 24\]$",
        ),
    ],
)
def test_values_out_of_range_are_shown(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Glm4vVisionConfig(**fields)


@pytest.mark.parametrize("temporal_patch_size", [1, 2, 4])
@pytest.mark.parametrize("patch_size", [14, 16])
@pytest.mark.parametrize("spatial_merge_size", [1, 2, 3])
def test_a_tower_runs_with_patches_of_any_size(
    small_config: Glm4vVisionConfig,
    temporal_patch_size: int,
    patch_size: int,
    spatial_merge_size: int,
) -> None:
    fields = {
        "temporal_patch_size": temporal_patch_size,
        "patch_size": patch_size,
        "spatial_merge_size": spatial_merge_size,
    }
    config = Glm4vVisionConfig.from_dict(small_config.to_dict() | fields)
    model = Glm4vVisionModel(config)
    side = spatial_merge_size
    patches = torch.zeros(2 * 2 * side * 3 * side, 3 * temporal_patch_size * patch_size**2)
    assert model(patches, [(2, 2 * side, 3 * side)]).shape == (12, 24)


@pytest.mark.parametrize("head_dim", [4, 20, 72, 80, 128, 256])
def test_a_tower_runs_with_heads_of_any_width_that_rotates(
    small_config: Glm4vVisionConfig, head_dim: int
) -> None:
    fields = {"hidden_size": 2 * head_dim, "head_dim": head_dim}
    config = Glm4vVisionConfig.from_dict(small_config.to_dict() | fields)
    assert config.head_dim == head_dim
    assert Glm4vVisionModel(config)(torch.zeros(4, config.patch_dim), [(1, 2, 2)]).shape == (1, 24)


@pytest.mark.parametrize("name", ["glm4v", "glm4v_moe", "glm46v", "glmga"])
def test_from_pretrained_reads_a_checkpoints_folder(goldens: Path, name: str) -> None:
    folder = goldens / f"checkpoint-{name}"
    raw = json.loads((folder / "config.json").read_text())
    config = Glm4vVisionConfig.from_pretrained(folder)
    assert config == Glm4vVisionConfig.from_pretrained(str(folder))
    assert config == Glm4vVisionConfig.from_dict(raw["vision_config"])
    assert config.rope_theta == raw["vision_config"]["rope_parameters"]["rope_theta"]


def test_from_pretrained_reads_a_tower_by_itself(
    tmp_path: Path, small_config: Glm4vVisionConfig
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(small_config.to_dict()))
    assert Glm4vVisionConfig.from_pretrained(tmp_path) == small_config


def test_glm_4_1v_as_it_is_published(tmp_path: Path) -> None:
    # Of version 4: text fields at the root, no text_config, no _vision, aliases' fields absent.
    write_config(
        tmp_path,
        {
            "architectures": ["Glm4vForConditionalGeneration"],
            "model_type": "glm4v",
            "hidden_size": 4096,
            "num_hidden_layers": 40,
            "rope_theta": 500000.0,
            "vision_config": {"model_type": "glm4v", "depth": 24, "rms_norm_eps": 1e-5},
        },
    )
    assert Glm4vVisionConfig.from_pretrained(tmp_path) == Glm4vVisionConfig()


def test_glm_4_5v_as_it_is_published(tmp_path: Path) -> None:
    vision = {"model_type": "glm4v_moe", "intermediate_size": 10944, "num_hidden_layers": 24}
    write_config(tmp_path, {"model_type": "glm4v_moe", "text_config": {}, "vision_config": vision})
    config = Glm4vVisionConfig.from_pretrained(tmp_path)
    assert config == Glm4vVisionConfig(intermediate_size=10944)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: broken JSON: "),
        ("[1]", "config.json: a JSON object is expected, not list"),
        ('{"model_type": "qwen2_5_vl"}', "config.json: model_type 'qwen2_5_vl' is another arch"),
        ('{"depth": 0}', "config.json: depth=0 is not a positive integer"),
        ('{"depth": "\xff"}', "config.json: 'utf-8' codec"),
        ("[" * 100_000, "config.json: "),
    ],
)
@pytest.mark.parametrize("kind", [Glm4vVisionConfig, GlmgaConfig])
def test_from_pretrained_names_the_file_and_what_is_wrong_with_it(
    tmp_path: Path, kind: Any, text: str, message: str
) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=message) as caught:
        kind.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["empty", "missing", "file"])
def test_from_pretrained_says_where_there_is_no_config(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=rf"{place}/config.json: No.*from_pretrained takes a loc"):
        Glm4vVisionConfig.from_pretrained(tmp_path / place)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config))


def test_a_whole_number_is_the_same_wavelength() -> None:
    whole, real = (Glm4vVisionConfig(rope_theta=theta) for theta in (10000, 10000.0))
    assert json.dumps(whole.to_dict()) == json.dumps(real.to_dict())
