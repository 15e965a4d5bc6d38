import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import Glm4vConfig, Glm4vMoeConfig, Glm46VConfig
from transformers import GlmgaConfig as ReferenceConfig

from encoder import Glm4vVisionConfig, GlmgaConfig

FAMILY = ["glm4v", "glm4v_moe", "glm46v", "glmga"]
TOKEN_IDS = [field.name for field in fields(GlmgaConfig) if field.name.endswith("_token_id")]
# As GLM-4.1V is published: the text part at the root.
GLM_4_1V = {
    "architectures": ["Glm4vForConditionalGeneration"],
    "model_type": "glm4v",
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "rope_theta": 10000.0,
    "eos_token_id": [151329, 151336],
    "torch_dtype": "bfloat16",
    "transformers_version": "4.57.1",
    "image_token_id": 151343,
    "vision_config": {"model_type": "glm4v"},
}


def test_the_defaults_are_transformers() -> None:
    reference = ReferenceConfig()
    config = GlmgaConfig()
    for name in [*TOKEN_IDS, "tie_word_embeddings", "model_type"]:
        assert getattr(config, name) == getattr(reference, name), name
    assert len(TOKEN_IDS) == 6
    assert config.vision_config == Glm4vVisionConfig()
    assert config.text_config == {}


@pytest.mark.parametrize(
    "reference", [Glm4vConfig, Glm4vMoeConfig, Glm46VConfig, ReferenceConfig], ids=FAMILY
)
def test_missing_token_ids_are_those_of_the_family(reference: Any) -> None:
    raw = {"model_type": reference.model_type, "vision_config": {}, "image_token_id": None}
    config = GlmgaConfig.from_dict(raw)
    expected = reference()
    assert {name: getattr(config, name) for name in TOKEN_IDS} == {
        name: getattr(expected, name) for name in TOKEN_IDS
    }


@pytest.mark.parametrize("name", FAMILY)
def test_a_checkpoints_token_ids_and_text_part_survive(goldens: Path, name: str) -> None:
    folder = goldens / f"checkpoint-{name}"
    raw = json.loads((folder / "config.json").read_text())
    config = GlmgaConfig.from_pretrained(folder)
    assert config.model_type == name
    assert [getattr(config, name) for name in TOKEN_IDS] == [100, 101, 102, 103, 104, 105]
    assert config.vision_config == Glm4vVisionConfig.from_pretrained(folder)
    assert config.text_config == raw["text_config"]
    assert GlmgaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_transformers_reads_what_is_written(goldens: Path) -> None:
    config = GlmgaConfig.from_pretrained(goldens / "checkpoint-glmga")
    reference = ReferenceConfig(**config.to_dict())
    assert reference.image_token_id == 100
    assert reference.vision_config.hidden_size == config.vision_config.hidden_size
    assert reference.text_config.vocab_size == config.text_config["vocab_size"]


def test_text_fields_at_the_root_are_carried() -> None:
    config = GlmgaConfig.from_dict(GLM_4_1V)
    assert config.text_config == {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "rope_theta": 10000.0,
        "eos_token_id": [151329, 151336],
    }
    assert config.video_start_token_id == 151341


def test_text_config_goes_before_the_root() -> None:
    text = {"hidden_size": 512, "vocab_size": 8, "tie_word_embeddings": True}
    config = GlmgaConfig.from_dict(GLM_4_1V | {"text_config": text})
    assert config.text_config == {
        "hidden_size": 512,
        "num_attention_heads": 32,
        "rope_theta": 10000.0,
        "eos_token_id": [151329, 151336],
        "vocab_size": 8,
        "tie_word_embeddings": True,
    }
    assert config.tie_word_embeddings


def test_parts_are_taken_as_mappings_and_kept_from_later_changes() -> None:
    text = {"rope_parameters": {"rope_theta": 1.0}}
    config = GlmgaConfig(vision_config={"depth": 6}, text_config=text)  # type: ignore[arg-type]
    text["rope_parameters"]["rope_theta"] = 2.0
    assert config.vision_config == Glm4vVisionConfig(depth=6)
    assert config.text_config == {"rope_parameters": {"rope_theta": 1.0}}
    assert hash(config) == hash(GlmgaConfig(vision_config=Glm4vVisionConfig(depth=6)))
    none: Any = None
    assert GlmgaConfig(vision_config=none, text_config=none) == GlmgaConfig()


@pytest.mark.parametrize(
    ("model_type", "vision_type"),
    [
        ("glmga", "glm5_next_vision"),
        ("glm_ocr", "glm_ocr_vision"),
        ("qwen2_5_vl", "qwen2_5_vl"),
        ("qwen2_5_vl", None),
    ],
)
def test_other_architectures_are_refused_by_name(model_type: str, vision_type: str | None) -> None:
    raw = {"model_type": model_type, "vision_config": {"model_type": vision_type}}
    name = vision_type or model_type
    with pytest.raises(ValueError, match=f"model_type '{name}' is another architecture"):
        GlmgaConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"model_type": "glm4v_vision"}, "no vision_config: not a whole model's configuration"),
        ({"model_type": "glm4v", "text_config": {}}, "'glm4v' has no vision_config"),
        ({"vision_config": {}, "text_config": [1]}, r"text_config=\[1\] is not a mapping"),
        ({"vision_config": {}, "model_type": "glm4v_vision"}, "model_type='glm4v_vision' is none"),
        ({"vision_config": {}, "image_token_id": "7"}, "image_token_id='7' is not an integer"),
        ({"vision_config": {}, "video_token_id": -1}, "video_token_id=-1 is not an integer of 0"),
        ({"vision_config": {}, "tie_word_embeddings": 1}, "tie_word_embeddings=1 is not a bool"),
    ],
)
def test_from_dict_says_what_is_wrong(raw: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GlmgaConfig.from_dict(raw)


@pytest.mark.parametrize(
    ("given", "shown"),
    [(5, "5"), (ReferenceConfig().vision_config, "<transformers.*Glm4vVisionConfig>")],
)
def test_a_vision_config_that_is_none_is_refused(given: Any, shown: str) -> None:
    message = f"vision_config={shown} is neither a Glm4vVisionConfig of encoder nor a mapping"
    for make in (GlmgaConfig, lambda **fields: GlmgaConfig.from_dict(fields)):
        with pytest.raises(ValueError, match="vision_config=") as caught:
            make(vision_config=given)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=message):
        GlmgaConfig(vision_config=given)


def test_from_dict_takes_an_object() -> None:
    wrong: Any = [1]
    with pytest.raises(ValueError, match=r"^config=\[1\] is not an object; from_dict takes"):
        GlmgaConfig.from_dict(wrong)
