"""Checkpoints laid out as the published ones, with a language part that costs no disk."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from encoder import Glm4vVisionConfig

Shapes = Mapping[str, tuple[int, ...]]


def write_sparse(path: Path, shapes: Shapes, dtype: str, item_bytes: int) -> dict[str, int]:
    """Writes a safetensors file whose values are all zero and take no disk.

    Returns:
        Where each tensor begins, and the header's end as "".
    """
    header, offset = {}, 0
    for name, shape in shapes.items():
        end = offset + item_bytes * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        data_start = file.tell()
        file.truncate(data_start + offset)
    places = {name: data_start + entry["data_offsets"][0] for name, entry in header.items()}
    return {**places, "": data_start}


def in_one_file(folder: Path) -> Path:
    """Puts the shards of a checkpoint together, and returns the file that they become."""
    tensors = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    whole = folder / "model.safetensors"
    save_file(tensors, whole)
    return whole


def write_config(folder: Path, config: Glm4vVisionConfig) -> None:
    """Writes the `config.json` of a model with this tower."""
    raw: dict[str, Any] = {
        "architectures": ["Glm4vMoeForConditionalGeneration"],
        "model_type": "glm4v_moe",
        "text_config": {"model_type": "glm4v_moe_text", "hidden_size": 4096},
        "vision_config": {**config.to_dict(), "model_type": "glm4v_moe"},
    }
    (folder / "config.json").write_text(json.dumps(raw))


def write_like_glm45v(
    folder: Path, config: Glm4vVisionConfig, tower: Mapping[str, bytes], language_bytes: int
) -> int:
    """Writes a bfloat16 checkpoint of six shards as GLM-4.5V's.

    The first shard is language alone. A block's tensors lie in several shards, between language
    tensors; what is of no block lies in the last one.

    Args:
        folder: Where to; empty.
        config: The tower's.
        tower: Values of each tensor, by its name without prefix.
        language_bytes: Of all language tensors together.

    Returns:
        Bytes of configuration, index and the headers that lead to vision tensors.
    """
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(6)]
    shapes = config.tensor_shapes()
    for index, shard in enumerate(shards):
        shard[f"model.language_model.layers.{index}.before"] = (language_bytes // 24,)
    for index, (name, shape) in enumerate(shapes.items()):
        place = 1 + index % 4 if name.startswith("blocks.") else 5
        shards[place][f"model.visual.{name}"] = shape
    for index, shard in enumerate(shards):
        shard[f"model.language_model.layers.{index}.behind"] = (language_bytes // 24,)
    write_config(folder, config)
    weight_map, headers = {}, 0
    for number, shard in enumerate(shards, 1):
        path = folder / f"model-{number:05}-of-00006.safetensors"
        places = write_sparse(path, shard, "BF16", 2)
        headers += places[""] if number > 1 else 0
        weight_map |= dict.fromkeys(shard, path.name)
        with path.open("r+b") as file:
            for name in shard:
                if bare := name.partition("model.visual.")[2]:
                    file.seek(places[name])
                    file.write(tower[bare])
    index_path = folder / "model.safetensors.index.json"
    index_path.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return headers + index_path.stat().st_size + (folder / "config.json").stat().st_size
