"""Whether a loaded encoder computes what it should, on the device that it is on."""

import math
from functools import partial

import torch

from encoder.attention import AttentionKernel, Segments, attend
from encoder.config import Glm4vVisionConfig
from encoder.describe import describe
from encoder.model import Glm4vVisionModel
from encoder.reference import attention, normalized, reference_features

# Errors are those of a row, relative to its norm. Healthy on a CPU, random weights: attention by
# itself 8e-7 in float32 and 3e-3 in bfloat16; a tower's worst token 1e-6 and 9e-3 with one layer,
# 3e-6 and 3e-2 with 24, growing with the root of the depth. Allowed is about four times that.
_FULL_BOUND = 1e-4
_HALF_BOUND = 2.5  # Times the epsilon of products, times the root of how often it rounds.
_TF32_EPSILON = 2.0**-10
# Times what rounding alone does to the reference with these weights. Healthy on a CPU, with sharp
# attention or one large channel, as trained towers may have: 0.6 to 2.6.
_ROUNDED_BOUND = 4
# Several tiles of any kernel, equal neighbours, less than a tile, one patch.
_LENGTHS = [300, 64, 64, 5, 1]
_LONG_ON_GPU = 16384  # A photo of three megapixels: many tiles, and a varlen call of its own.
_QUERIES = 64


class SelfCheckError(RuntimeError):
    """An encoder does not compute what it should; the line says by how much."""


def check_encoder(model: Glm4vVisionModel) -> None:
    """Holds a model against the plain reference, as it is: device, dtype, kernels, packing.

    Attention is checked at long and short lengths, the whole tower on a
    few small stills in one pack. The default tower takes three seconds of one CPU core, the
    smallest a few hundredths. Weights are taken as they are: whether they are the checkpoint's is
    not asked.

    Args:
        model: Loaded, in eval mode; its pictures have three channels.

    Raises:
        SelfCheckError: A result is off by more than the dtype's rounding explains; that of
            float32, where a GPU is allowed TensorFloat-32, is 2**-10.
        ValueError: It is no model.
    """
    if not hasattr(model, "forward_features"):
        raise ValueError(
            f"model={describe(model)} is not a Glm4vVisionModel, which load_encoder makes"
        )
    state = model.state_dict()
    example = state["downsample.weight"]
    on_cpu = torch.device("cpu")  # Whatever the caller's default device.
    with torch.inference_mode(), on_cpu:
        error = _attention_error(example, model.config.head_dim, model.attention)
        _hold("attention results are", error, _bound(example, 1), example)
        levels_NP, grids = known_input(model.config)
    # As anyone else calls it: for another default device, compiled blocks would be compiled anew.
    with torch.inference_mode():
        ours = model.forward_features(levels_NP.to(example.device), grids)
    with torch.inference_mode(), on_cpu:
        # Float32: float64 would take four times as long to show no more.
        plain = partial(
            reference_features,
            state,
            model.config,
            normalized(levels_NP, model.config),
            grids,
            dtype=torch.float32,
        )
        exact = torch.cat(plain())
        error, bound = max_error(torch.cat(ours), exact), _bound(example, model.config.depth + 3)
        if error > bound:
            # Some weights make more of rounding than random ones do.
            rounded = torch.cat(plain(rounded_to=example.dtype))
            bound = max(bound, _ROUNDED_BOUND * max_error(rounded, exact))
    _hold("tokens are", error, bound, example)


def known_input(config: Glm4vVisionConfig) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
    """Four stills of three lengths, a gradient with texture, as the pipeline sends them.

    Returns:
        uint8 levels [N, 3 * P * P], each frame once, and the grids; 36 patches where 2 x 2 of
        them are merged.
    """
    side = config.spatial_merge_size
    grids = [(1, 2 * side, 2 * side), (1, side, 3 * side), (1, side, side), (1, side, side)]
    patch_N11 = torch.arange(sum(h * w for _, h, w in grids)).view(-1, 1, 1)
    channel_C1 = torch.arange(3).view(-1, 1)
    pixel_X = torch.arange(config.patch_size**2)
    gradient = 80 * torch.sin(0.7 * patch_N11 + channel_C1)
    texture = 30 * torch.sin(0.37 * (channel_C1 + 1) * pixel_X + 0.1 * patch_N11)
    return (115 + gradient + texture).to(torch.uint8).flatten(1), grids


def _attention_error(example: torch.Tensor, head_dim: int, kernel: AttentionKernel) -> float:
    """The largest error of `attend` with noise of a dtype and a head width, on a device."""
    generator = torch.Generator().manual_seed(0)

    def noise(patches: int) -> torch.Tensor:
        found_N3HE = torch.randn(patches, 3, 2, head_dim, generator=generator)
        return found_N3HE.to(example.device, example.dtype)

    lengths = [_LONG_ON_GPU, *_LENGTHS] if example.device.type == "cuda" else _LENGTHS
    qkv_N3HE = noise(sum(lengths))
    query_NHE, key_NHE, value_NHE = qkv_N3HE.unbind(1)
    segments = Segments.of(lengths, example.device, kernel)
    out_NHE = attend(query_NHE, key_NHE, value_NHE, segments)
    found, exact = [], []
    for ours_SHE, own_S3HE in zip(
        *(torch.split(x.cpu(), lengths) for x in (out_NHE, qkv_N3HE)), strict=True
    ):
        query_SHE, key_SHE, value_SHE = own_S3HE.double().unbind(1)
        some_Q = torch.linspace(0, len(query_SHE) - 1, min(len(query_SHE), _QUERIES)).long()
        found.append(ours_SHE[some_Q])
        exact.append(attention(query_SHE[some_Q], key_SHE, value_SHE))
    return max_error(torch.cat(found).flatten(1), torch.cat(exact).flatten(1))


def max_error(ours_TO: torch.Tensor, exact_TO: torch.Tensor) -> float:
    """Norm of the difference over the norm of the exact row, the largest of all; NaN if any is."""
    ours_TO, exact_TO = ours_TO.cpu().double(), exact_TO.cpu().double()
    return float(((ours_TO - exact_TO).norm(dim=1) / exact_TO.norm(dim=1)).max())


def _bound(example: torch.Tensor, roundings: int) -> float:
    allowed = torch.backends.cuda.matmul.fp32_precision
    rounded = product_epsilon(example.device.type, example.dtype, allowed)
    return max(_FULL_BOUND, _HALF_BOUND * rounded * math.sqrt(roundings))


def product_epsilon(device_type: str, dtype: torch.dtype, fp32_precision: str) -> float:
    """Returns what a matrix product rounds its factors by.

    Args:
        device_type: `cpu` or `cuda`.
        dtype: Of the factors.
        fp32_precision: `torch.backends.cuda.matmul`'s, which the older
            `torch.set_float32_matmul_precision` and `allow_tf32` set too.
    """
    if (device_type, dtype, fp32_precision) == ("cuda", torch.float32, "tf32"):
        return _TF32_EPSILON
    return torch.finfo(dtype).eps


def _hold(what: str, error: float, bound: float, example: torch.Tensor) -> None:
    if not error <= bound:  # NaN is not.
        raise SelfCheckError(
            f"the encoder's {what} off by {error:.2g} of their size on a known input, over the "
            f"{bound:.2g} that {example.dtype} on {example.device} explains"
        )
