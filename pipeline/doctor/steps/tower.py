"""The tower that a step runs, and where."""

from __future__ import annotations

import torch

from encoder import PRESETS, Glm4vVisionConfig, Glm4vVisionModel, load_encoder
from pipeline.doctor.options import Options

_DEFAULT = {"cuda": "large", "cpu": "tiny"}
# As the presets' own random weights.
_DEVIATION = 0.02
# In half precision each rounding may add this many epsilons, see `encoder.self_check`.
_ROUNDINGS_BOUND = 2.5
_FULL_BOUND = 1e-4


def device_of(options: Options) -> torch.device:
    """Returns where encoders run on this machine: the first GPU that is visible, or the CPU."""
    on_gpu = options.device != "cpu" and torch.cuda.is_available()
    if options.device == "cuda" and not on_gpu:
        raise RuntimeError("--device cuda: torch sees no GPU")
    return torch.device("cuda" if on_gpu else "cpu")


def dtype_of(device: torch.device) -> torch.dtype:
    """Returns what encoders compute in there."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def shape_of(options: Options, device: torch.device) -> Glm4vVisionConfig:
    """Returns the shape of `make_tower`'s tower, without its weights."""
    from encoder import vision_tensors  # noqa: PLC0415

    name = options.encoder or _DEFAULT[device.type]
    return PRESETS[name] if name in PRESETS else vision_tensors(name).config


def make_tower(options: Options, device: torch.device) -> Glm4vVisionModel:
    """Makes the tower on its device.

    A preset has its shape, and weights drawn on the device: its own take the host many seconds.
    """
    name, dtype = options.encoder or _DEFAULT[device.type], dtype_of(device)
    if name not in PRESETS:
        return load_encoder(name, device=device, dtype=dtype)
    model = Glm4vVisionModel(PRESETS[name], device="meta", dtype=dtype)
    generator = torch.Generator(device=device).manual_seed(0)
    weights = {}
    for key, like in model.named_parameters():
        weights[key] = torch.empty(like.shape, dtype=like.dtype, device=device)
        if key.endswith(".bias"):
            weights[key].zero_()
        elif like.dim() == 1:
            weights[key].fill_(1)
        else:
            weights[key].normal_(0, _DEVIATION, generator=generator)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False)


def rounding_bound(dtype: torch.dtype, roundings: int) -> float:
    """Returns how far rounding alone may set a row apart, relative to its norm."""
    return float(max(_FULL_BOUND, _ROUNDINGS_BOUND * torch.finfo(dtype).eps * roundings**0.5))


def describe_dtype(dtype: torch.dtype) -> str:
    """Returns `bfloat16` for `torch.bfloat16`."""
    return str(dtype).removeprefix("torch.")
