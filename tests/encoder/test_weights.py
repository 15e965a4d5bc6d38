import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from encoder import (
    CheckpointError,
    Glm4vVisionConfig,
    byte_ranges,
    checkpoint_digest,
    vision_tensors,
    write_vision_tower,
)
from encoder.safetensors_file import Filesystem, read_range

WriteCheckpoint = Callable[..., tuple[Path, dict[str, torch.Tensor]]]


def shard(folder: Path, index_changes: dict[str, str] | None = None) -> None:
    """Spreads the tensors of model.safetensors over three files, every third one in each."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-{i % 3}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(weight_map.values())):
        part = {name: tensors[name] for name in tensors if weight_map[name] == file}
        save_file(part, folder / file)
    index = {"weight_map": weight_map | (index_changes or {})}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize("prefix", ["model.visual.", "visual.", ""])
def test_every_prefix_is_found(
    write_checkpoint: WriteCheckpoint, small_config: Glm4vVisionConfig, prefix: str
) -> None:
    folder, state = write_checkpoint(prefix=prefix)
    tensors = vision_tensors(str(folder))
    assert tensors.config == small_config
    assert {name: bytes(data) for name, data in tensors} == {
        name: tensor.numpy().tobytes() for name, tensor in state.items()
    }


def test_the_digest_is_the_towers_and_not_its_files(write_checkpoint: WriteCheckpoint) -> None:
    folder, _ = write_checkpoint()
    single = checkpoint_digest(vision_tensors(str(folder)))
    assert len(single) == 32
    shard(folder)
    assert checkpoint_digest(vision_tensors(str(folder))) == single


def test_the_digest_sees_weights_dtype_and_config(write_checkpoint: WriteCheckpoint) -> None:
    folder, state = write_checkpoint()
    digests = [checkpoint_digest(vision_tensors(str(folder)))]
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["rope_theta"] = 5.0
    (folder / "config.json").write_text(json.dumps(config))
    digests.append(checkpoint_digest(vision_tensors(str(folder))))
    state["downsample.bias"][0] += 1
    save_file(state, folder / "model.safetensors")
    digests.append(checkpoint_digest(vision_tensors(str(folder))))
    half = {name: tensor.half() for name, tensor in state.items()}
    save_file(half, folder / "model.safetensors")
    digests.append(checkpoint_digest(vision_tensors(str(folder))))
    assert len(set(digests)) == 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_written_tower_reads_back_the_same(
    write_checkpoint: WriteCheckpoint, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder, state = write_checkpoint(dtype=dtype)
    shard(folder)
    tensors = vision_tensors(str(folder))
    kept = tmp_path / "kept.safetensors"
    with kept.open("wb") as file:
        write_vision_tower(tensors, file)
    again = vision_tensors(str(kept))
    assert again.config == tensors.config
    assert checkpoint_digest(again) == checkpoint_digest(tensors)
    official = load_file(kept)
    assert official.keys() == state.keys()
    assert all(torch.equal(official[name], state[name]) for name in state)


def test_the_same_tower_is_written_in_the_same_bytes(write_checkpoint: WriteCheckpoint) -> None:
    tensors = vision_tensors(str(write_checkpoint()[0]))
    first, second = io.BytesIO(), io.BytesIO()
    write_vision_tower(tensors, first)
    write_vision_tower(tensors, second)
    assert first.getvalue() == second.getvalue()


def test_a_single_file_takes_the_config_beside_it(
    write_checkpoint: WriteCheckpoint, small_config: Glm4vVisionConfig
) -> None:
    folder, _ = write_checkpoint()
    assert vision_tensors(str(folder / "model.safetensors")).config == small_config


def test_urls_of_any_filesystem_are_read(write_checkpoint: WriteCheckpoint) -> None:
    folder, _ = write_checkpoint()
    memory = fsspec.filesystem("memory")
    memory.put(str(folder), "/bucket/model", recursive=True)
    digest = checkpoint_digest(vision_tensors("memory://bucket/model"))
    assert digest == checkpoint_digest(vision_tensors(str(folder)))
    memory.rm("/bucket", recursive=True)


def test_shards_without_vision_tensors_are_not_opened(write_checkpoint: WriteCheckpoint) -> None:
    folder, _ = write_checkpoint()
    shard(folder, {"lm_head.weight": "model-language.safetensors"})
    assert not (folder / "model-language.safetensors").exists()
    assert len(dict(vision_tensors(str(folder)))) == len(vision_tensors(str(folder)).entries)


def test_only_vision_bytes_are_read(
    write_checkpoint: WriteCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, state = write_checkpoint()
    language_bytes = 4000
    tensors = vision_tensors(str(folder))
    read = []

    def count(fs: Filesystem, path: str, start: int, end: int) -> memoryview:
        read.append(end - start)
        return read_range(fs, path, start, end)

    monkeypatch.setattr(byte_ranges, "read_range", count)
    checkpoint_digest(tensors)
    vision_bytes = sum(tensor.nbytes for tensor in state.values())
    assert sum(read) == vision_bytes
    assert (folder / "model.safetensors").stat().st_size > vision_bytes + language_bytes


@pytest.mark.parametrize(
    "name",
    ["pytorch_model.bin", "model.pt", "pytorch_model-1-of-2.bin", "pytorch_model.bin.index.json"],
)
def test_pickles_are_refused(write_checkpoint: WriteCheckpoint, name: str, tmp_path: Path) -> None:
    folder, _ = write_checkpoint()
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps({"weights": 1}))
    for location in (folder, folder / name):
        with pytest.raises(CheckpointError, match="refused: pickled weights can run code") as error:
            vision_tensors(str(location))
        assert str(error.value).startswith(str(location))


@pytest.mark.parametrize(
    "target", ["../secret.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x", 3]
)
def test_an_index_may_not_point_outside(write_checkpoint: WriteCheckpoint, target: str) -> None:
    folder, _ = write_checkpoint()
    shutil.copy(folder / "model.safetensors", folder.parent / "secret.safetensors")
    shard(folder, {"model.visual.downsample.bias": target})
    with pytest.raises(CheckpointError, match="the index points outside the folder"):
        vision_tensors(str(folder))


def test_an_index_of_pickles_is_refused(write_checkpoint: WriteCheckpoint) -> None:
    folder, _ = write_checkpoint()
    shard(folder, {"lm_head.weight": "pytorch_model.bin"})
    with pytest.raises(CheckpointError, match=r"names 'pytorch_model\.bin', not safetensors"):
        vision_tensors(str(folder))


def test_everything_wrong_with_the_tensors_is_in_one_error(
    write_checkpoint: WriteCheckpoint,
) -> None:
    drop = tuple(f"blocks.1.mlp.{name}_proj.weight" for name in ("gate", "up", "down"))
    folder, state = write_checkpoint(
        drop=(*drop, "downsample.weight", "merger.proj.weight"),
        extra={
            "model.visual.blocks.2.norm1.weight": torch.zeros(32),
            "model.visual.blocks.0.attn.q_norm.weight": torch.zeros(8),
            "model.visual.downsample.bias": torch.zeros(25),
            "model.visual.post_layernorm.weight": torch.zeros(4, 8, dtype=torch.int64),
        },
    )
    shard(folder, {"model.visual.merger.proj.weight": "model-0.safetensors"})
    with pytest.raises(CheckpointError) as error:
        vision_tensors(str(folder))
    assert str(error.value) == (
        f"{folder}: vision tensors do not fit the config, which has {len(state)}: "
        "4 missing: model.visual.blocks.1.mlp.gate_proj.weight, "
        "model.visual.blocks.1.mlp.up_proj.weight, "
        "model.visual.blocks.1.mlp.down_proj.weight, model.visual.downsample.weight; "
        "1 missing from the shard that the index names: model.visual.merger.proj.weight; "
        "2 that the config does not account for: "
        "model.visual.blocks.0.attn.q_norm.weight, model.visual.blocks.2.norm1.weight; "
        "2 of another shape: model.visual.downsample.bias is (25,), the config makes it (24,), "
        "model.visual.post_layernorm.weight is (4, 8), the config makes it (32,); "
        "1 of another dtype than F32, F16, BF16: model.visual.post_layernorm.weight is I64"
    )


@pytest.mark.parametrize(
    ("count", "tail"), [(10, "9"), (11, "9, and 1 more"), (15, "9, and 5 more")]
)
def test_ten_tensors_of_a_kind_are_named(
    write_checkpoint: WriteCheckpoint, count: int, tail: str
) -> None:
    surplus = [f"model.visual.merger.x{i:02}" for i in range(count)]
    folder, _ = write_checkpoint(extra={name: torch.zeros(1) for name in surplus})
    with pytest.raises(CheckpointError) as error:
        vision_tensors(str(folder))
    _, _, listed = str(error.value).partition(f"{count} that the config does not account for: ")
    assert listed == ", ".join(surplus[:9]) + f", model.visual.merger.x0{tail}"


def test_a_checkpoint_without_a_tower_is_named(write_checkpoint: WriteCheckpoint) -> None:
    folder, _ = write_checkpoint(prefix="model.other.")
    with pytest.raises(CheckpointError, match=r"no GLM-4V vision tensors; looked for"):
        vision_tensors(str(folder))


def test_a_stored_rotary_buffer_is_passed_over(write_checkpoint: WriteCheckpoint) -> None:
    folder, state = write_checkpoint(extra={"model.visual.rotary_pos_emb.inv_freq": torch.zeros(4)})
    assert vision_tensors(str(folder)).entries.keys() == state.keys()


def test_a_tensor_in_a_shard_that_the_index_does_not_name_is_not_taken(
    write_checkpoint: WriteCheckpoint,
) -> None:
    folder, _ = write_checkpoint()
    shard(folder)
    name, index = "model.visual.downsample.bias", folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    del weight_map[name]
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=f"1 missing: {name}$"):
        vision_tensors(str(folder))


def test_what_is_not_there_is_named(write_checkpoint: WriteCheckpoint, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no config\.json there"):
        vision_tensors(str(tmp_path / "nowhere"))
    with pytest.raises(CheckpointError, match=r"x\.safetensors: no such file"):
        vision_tensors(str(tmp_path / "x.safetensors"))
    with pytest.raises(CheckpointError, match="bogus://x: Protocol not known: bogus"):
        vision_tensors("bogus://x")
    folder, _ = write_checkpoint()
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        vision_tensors(str(folder))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "config.json: broken JSON: Expecting"),
        ("[]", "config.json: broken JSON: a JSON object is expected, not list"),
        ('{"model_type": "glm_ocr"}', "'glm_ocr' is another architecture"),
        ('{"vision_config": {"depth": 0}}', "depth=0 is not a positive integer"),
    ],
)
def test_a_broken_config_is_named(
    write_checkpoint: WriteCheckpoint, text: str, message: str
) -> None:
    folder, _ = write_checkpoint()
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message) as error:
        vision_tensors(str(folder))
    assert str(error.value).startswith(str(folder))
