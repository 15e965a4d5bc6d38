"""A model with its weights, from a checkpoint or a preset."""

import os
from collections.abc import Iterator

import torch

from encoder.byte_ranges import PART_BYTES
from encoder.config import PRESETS, Glm4vVisionConfig
from encoder.model import Glm4vVisionModel
from encoder.presets import random_tensors
from encoder.weights import VisionTensors, vision_tensors

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

_Piece = tuple[str, int, torch.Tensor]
"""A tensor's name, the place of the first value, and values in a row, in use until the next."""


def load_encoder(
    location: str | os.PathLike[str],
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Glm4vVisionModel:
    """Loads a vision tower, in eval mode and without gradients.

    Only the vision tensors of a checkpoint are read, several parts at a time, each straight into
    its place: beside the weights, about 100 MiB are in memory. What the model computes in float32
    is kept in float32 whatever `dtype` is.

    Args:
        location: A preset's name (`tiny`, `small`, `medium`, `large`: random weights), a folder
            or a `.safetensors` file, local or a URL that fsspec knows (`s3://bucket/model`,
            `hf://org/name[@revision]`). For a folder that is called like a preset, write `./tiny`,
            or pass a `Path`, which is never a preset's name.
        device: Where the weights go.
        dtype: Of the matrix products: float32, bfloat16 or float16.
        seed: Of a preset's random weights; a checkpoint has no use for it.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        Exception: Storage's own, where it fails.
        ValueError: The location, the dtype or the seed is none of those.
    """
    if isinstance(location, str) and location in PRESETS:
        return random_encoder(PRESETS[location], device=device, dtype=dtype, seed=seed)
    _check_dtype(dtype)
    found = vision_tensors(location)
    model = Glm4vVisionModel(found.config, device="meta", dtype=dtype)
    weights = {
        name: torch.empty(target.shape, device=device, dtype=target.dtype)
        for name, target in model.named_parameters()
    }
    for name, first, values in _read(found):
        weights[name].view(-1)[first : first + len(values)].copy_(values)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def random_encoder(
    config: Glm4vVisionConfig, *, device: torch.device | str, dtype: torch.dtype, seed: int
) -> Glm4vVisionModel:
    """Makes a tower of any shape, with the weights of `random_tensors`; else as `load_encoder`."""
    _check_dtype(dtype)
    model = Glm4vVisionModel(config, device="meta", dtype=dtype)
    targets = dict(model.named_parameters())
    weights = {
        # Each array is the model's own to keep, so that one of its kind is not copied.
        name: torch.from_numpy(array).to(device=device, dtype=targets[name].dtype)
        for name, array in random_tensors(config, seed)
    }
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in _TORCH_DTYPES.values():
        raise ValueError(
            f"dtype={dtype!r} is not supported; torch.float32, torch.bfloat16, torch.float16 are"
        )


def _read(found: VisionTensors) -> Iterator[_Piece]:
    # torch takes no memory that is read-only, as what an object store gives is.
    buffer = memoryview(bytearray(PART_BYTES))
    for name, offset, data in found.pieces():
        dtype = _TORCH_DTYPES[found.entries[name].dtype]
        buffer[: len(data)] = data
        count = len(data) // dtype.itemsize
        yield name, offset // dtype.itemsize, torch.frombuffer(buffer, dtype=dtype, count=count)
