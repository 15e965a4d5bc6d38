"""A model with its weights, from a checkpoint or a preset."""

from collections.abc import Iterator

import torch

from encoder.config import PRESETS, Glm4vVisionConfig
from encoder.model import Glm4vVisionModel
from encoder.presets import random_tensors
from encoder.safetensors_file import CheckpointError
from encoder.weights import vision_tensors

_TORCH_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def load_encoder(
    location: str,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Glm4vVisionModel:
    """Loads a vision tower, in eval mode and without gradients.

    Only the vision tensors of a checkpoint are read, and weights are filled in one by one, so
    that about one copy of them is in memory. What the model computes in float32 is kept in
    float32 whatever `dtype` is.

    Args:
        location: A preset's name (`tiny`, `small`, `medium`, `large`: random weights), a folder
            or a `.safetensors` file, local or a URL that fsspec knows. For a folder that is
            called like a preset, write `./tiny`.
        device: Where the weights go.
        dtype: Of the matrix products: float32, bfloat16 or float16.
        seed: Of a preset's random weights; a checkpoint has no use for it.

    Raises:
        CheckpointError: The checkpoint cannot be used.
        ValueError: The dtype or the seed is none of those.
    """
    if location in PRESETS:
        return random_encoder(PRESETS[location], device=device, dtype=dtype, seed=seed)
    _check_dtype(dtype)
    config, tensors = _open(location)
    model = Glm4vVisionModel(config, device="meta", dtype=dtype)
    targets = dict(model.named_parameters())
    weights = {
        name: tensor.to(device=device, dtype=targets[name].dtype, copy=True)
        for name, tensor in tensors
    }
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
        raise ValueError(f"dtype={dtype} is not supported; float32, bfloat16 and float16 are")


def _open(location: str) -> tuple[Glm4vVisionConfig, Iterator[tuple[str, torch.Tensor]]]:
    try:
        found = vision_tensors(location)
    except CheckpointError as error:
        if "/" in location:
            raise
        raise CheckpointError(f"{error} (nor is it a preset: {', '.join(PRESETS)})") from error
    views = (
        (name, torch.frombuffer(data, dtype=_TORCH_DTYPES[found.entries[name].dtype]))
        for name, data in found
    )
    return found.config, ((name, flat.view(found.entries[name].shape)) for name, flat in views)
