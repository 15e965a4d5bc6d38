"""Patches to vectors: one matrix product, with the normalisation of uint8 levels folded in.

Shape suffixes:
    N: patches of a pack
    P: values of a patch as handed in, channels * frames * rows * columns
    D: hidden_size
    C, T, X, Y: channels, frames, rows and columns of a patch
"""

import torch
from torch import nn

from encoder.config import Glm4vVisionConfig
from encoder.describe import describe
from encoder.linear import linear

# What transformers' processors of the family normalise with: pixel = (level / 255 - mean) / std.
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
_LEVELS = 255
# Subtracted from the levels; the rest of the mean goes into the bias. Folding all of it there
# makes a large constant, whose rounding shows on flat pictures. Integers: exact in any dtype.
_CENTRES = tuple(round(mean * _LEVELS) for mean in _CLIP_MEAN)


class PatchEmbed(nn.Module):
    """Embeds patches as transformers' `Conv3d` does, in float32 whatever the model's dtype.

    Everything after it inherits its error. What it costs, by arithmetic, for the large preset
    and 65,536 patches of stills, 588 values each, in segments of 1,024:

        product            2 * 65,536 * 588 * 1,536 = 118 GFLOP, 0.11% of the pack's 106 TFLOP
        memory             65,536 * (588 * (1 + 4 + 8 + 4) + 1,536 * 4) bytes = 1.06 GB: levels
                           read, floats written, shifted, and read; results written
        on an H200         1.8 ms at 67 TFLOP/s in float32, and 0.2 ms at 4.8 TB/s; the other
                           106 TFLOP take 134 ms at 790 TFLOP/s in bfloat16

    Half precision could save 1.3% of that at most. Levels less their centres are exact in it, but
    weights are not: bfloat16 ones raise the error of a flat picture's embedding by 28% (small
    preset in bfloat16, 1 - cosine 4.6e-5 instead of 3.6e-5; photos up to 10%). Float16 weights do
    not, but their products overflow with weights that float32 can hold.
    """

    def __init__(
        self, config: Glm4vVisionConfig, *, device: torch.device | str | None = None
    ) -> None:
        super().__init__()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        # Holds the parameters in the checkpoint's names and shapes; never called.
        self.proj = nn.Conv3d(
            config.in_channels, config.hidden_size, kernel, device=device, dtype=torch.float32
        )
        self._in_channels = config.in_channels
        self._patch_dim = config.patch_dim
        self._still_dim = config.patch_dim // config.temporal_patch_size

    def forward(self, pixel_values_NP: torch.Tensor) -> torch.Tensor:
        """Embeds patches.

        The folded weights are made anew from the parameters at every call, in float64: that
        costs the default tower 30 ms on one CPU core, where 1,024 patches take 18 s, and
        cannot go stale. On a GPU it is about 25 kernels over 1.8 million values, started while
        the pack before is computed.

        Args:
            pixel_values_NP: One of what `read` returns.

        Returns:
            Float32 [N, D].
        """
        assert self.proj.bias is not None
        weight_DCTXY = self.proj.weight.to(torch.float64, copy=True)
        bias_D = self.proj.bias.to(torch.float64, copy=True)
        if pixel_values_NP.shape[1] == self._still_dim:
            weight_DCTXY = weight_DCTXY.sum(dim=2, keepdim=True)
        pixels_NP = pixel_values_NP.float()
        if pixel_values_NP.dtype == torch.uint8:
            _fold_normalization(weight_DCTXY, bias_D)
            # `float()` made a copy. Channel by channel, so that no constant is sent to a GPU.
            for channel, centre in enumerate(_CENTRES):
                pixels_NP.chunk(self._in_channels, dim=1)[channel].sub_(centre)
        return linear(pixels_NP, weight_DCTXY.flatten(1).float(), bias_D.float())

    def read(self, pixel_values: object) -> list[torch.Tensor]:
        """Returns a pack's tensors, each of one kind of patches, checked.

        Args:
            pixel_values: As `Glm4vVisionModel.forward` takes it.

        Raises:
            ValueError: It is no tensor, nor a list of tensors, or a shape or dtype does not fit.
        """
        kinds: list[torch.Tensor] = []
        for kind_NP in pixel_values if isinstance(pixel_values, list | tuple) else [pixel_values]:
            if not isinstance(kind_NP, torch.Tensor):
                raise ValueError(
                    f"pixel_values: {describe(kind_NP)} is not a torch tensor (num_patches, "
                    f"{self._patch_dim}); torch.from_numpy makes one of an array"
                )
            self._check(kind_NP)
            kinds.append(kind_NP)
        return kinds

    def _check(self, pixel_values_NP: torch.Tensor) -> None:
        shape, dtype = tuple(pixel_values_NP.shape), pixel_values_NP.dtype
        if len(shape) != 2 or shape[1] not in (self._patch_dim, self._still_dim):
            raise ValueError(
                f"pixel_values has shape {shape}; expected (num_patches, {self._patch_dim}), or "
                f"(num_patches, {self._still_dim}) for stills whose frame is given once"
            )
        if dtype == torch.uint8 and self._in_channels != len(_CENTRES):
            raise ValueError(
                f"uint8 pixel_values need {len(_CENTRES)} channels, not {self._in_channels}: "
                "normalise them first"
            )
        if dtype != torch.uint8 and not dtype.is_floating_point:
            raise ValueError(f"pixel_values is {dtype}; expected uint8 levels or normalised floats")


def _fold_normalization(weight_DCTXY: torch.Tensor, bias_D: torch.Tensor) -> None:
    """Makes weight and bias, in place, take `level - centre` instead of normalised pixels.

        (level / 255 - mean) / std = (level - centre) / (255 std) + (centre / 255 - mean) / std

    Args:
        weight_DCTXY: Float64.
        bias_D: Float64.
    """
    channels = zip(_CENTRES, _CLIP_MEAN, _CLIP_STD, strict=True)
    for channel, (centre, mean, std) in enumerate(channels):
        weight_DTXY = weight_DCTXY[:, channel]
        bias_D.add_(weight_DTXY.sum(dim=(1, 2, 3)), alpha=(centre / _LEVELS - mean) / std)
        weight_DTXY.div_(_LEVELS * std)
