import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from encoder import (
    PRESETS,
    CheckpointError,
    Glm4vVisionConfig,
    load_encoder,
    pin_location,
    random_tensors,
    vision_tensors,
)

WriteCheckpoint = Callable[..., tuple[Path, dict[str, torch.Tensor]]]


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_are_the_checkpoints(
    write_checkpoint: WriteCheckpoint, stored: torch.dtype
) -> None:
    folder, state = write_checkpoint(dtype=stored)
    model = load_encoder(str(folder))
    assert model.state_dict().keys() == state.keys()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, state[name].float()), name


def test_half_precision_leaves_in_float32_what_is_computed_so() -> None:
    model = load_encoder("tiny", dtype=torch.bfloat16)
    full = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    half = {name for name, p in model.named_parameters() if p.dtype == torch.bfloat16}
    assert full | half == PRESETS["tiny"].tensor_shapes().keys()
    assert full == {
        "embeddings.position_embedding.weight",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
        "blocks.0.norm1.weight",
        "blocks.0.norm2.weight",
        "merger.post_projection_norm.weight",
        "merger.post_projection_norm.bias",
        "post_conv_layernorm.weight",
        "post_layernorm.weight",
    }


def test_a_preset_has_its_seeds_weights() -> None:
    weights = load_encoder("tiny", seed=5).state_dict()
    for name, values in random_tensors(PRESETS["tiny"], seed=5):
        assert torch.equal(weights[name], torch.from_numpy(values))
    other = load_encoder("tiny").state_dict()
    assert not torch.equal(weights["downsample.weight"], other["downsample.weight"])


def test_models_come_ready_for_inference() -> None:
    model = load_encoder("tiny")
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


def test_a_folder_called_like_a_preset_needs_its_path(
    write_checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = write_checkpoint()
    folder.rename(folder.parent / "tiny")
    monkeypatch.chdir(folder.parent)
    assert load_encoder("tiny").config == PRESETS["tiny"]
    assert load_encoder(os.path.join(".", "tiny")).state_dict().keys() == state.keys()  # noqa: PTH118


def test_a_path_is_a_folder_whatever_it_is_called(
    write_checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = write_checkpoint()
    folder.rename(folder.parent / "tiny")
    monkeypatch.chdir(folder.parent)
    assert load_encoder(Path("tiny")).state_dict().keys() == state.keys()
    assert vision_tensors(Path("tiny")).entries.keys() == state.keys()
    assert pin_location(Path("tiny")) == "tiny"
    with pytest.raises(CheckpointError, match=r"small: no config\.json there$"):
        load_encoder(Path("small"))


@pytest.mark.parametrize("location", [Glm4vVisionConfig(), {"depth": 1}, None])
@pytest.mark.parametrize("read", [load_encoder, vision_tensors, pin_location])
def test_what_is_no_location_is_told_what_is(read: Callable[[Any], object], location: Any) -> None:
    with pytest.raises(
        ValueError, match=r"location=.* is not a location: pass a folder or"
    ) as error:
        read(location)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_a_name_on_the_hub_is_told_how_to_write_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = "zai-org/GLM-4.1V-9B-Thinking"
    for read in (load_encoder, vision_tensors):
        with pytest.raises(CheckpointError, match=f"no config.json there; .* write hf://{name}$"):
            read(name)
    (tmp_path / name).mkdir(parents=True)
    for place in (name, f"./{name}", "./glm", "../glm", str(tmp_path / "org" / "name")):
        with pytest.raises(CheckpointError, match=r"no config\.json there$"):
            load_encoder(place)


def test_a_misspelt_preset_is_told_the_names() -> None:
    with pytest.raises(
        CheckpointError, match=r"larg: no config.json there \(nor is it a preset: t"
    ):
        load_encoder("larg")


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"dtype=torch\.float64 is not supported"):
        load_encoder("tiny", dtype=torch.float64)
