"""The vision tower straight from its definition, on the CPU: what every faster way must give.

None of the production shortcuts is here, nor any of its code but the arithmetic of grids:
pixels are normalised before a convolution, positions sampled patch by patch, rotary angles taken
as complex numbers, softmax written out, merge blocks convolved as a picture. Slow, and meant so.

Shape suffixes: as in `encoder.model`, and
    S: patches of one segment
    H, E: attention heads and head_dim
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from encoder.config import Glm4vVisionConfig
from encoder.model import EncoderOutput
from encoder.packing import segments_of

# What the family's processors normalise with.
_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)


def normalized(levels_NP: torch.Tensor, config: Glm4vVisionConfig) -> torch.Tensor:
    """Normalises levels as transformers' processors do.

    Args:
        levels_NP: uint8 [N, 3 * frames * P * P]; a frame that is given once stands for all.
        config: The tower's.

    Returns:
        Float64 [N, config.patch_dim].
    """
    level_NCTX = levels_NP.double().view(len(levels_NP), 3, -1, config.patch_size**2)
    level_NCTX = level_NCTX.expand(-1, -1, config.temporal_patch_size, -1)
    mean_C11, std_C11 = (torch.tensor(x, dtype=torch.float64)[:, None, None] for x in (_MEAN, _STD))
    return ((level_NCTX / 255 - mean_C11) / std_C11).flatten(1)


def reference_features(
    state: Mapping[str, torch.Tensor],
    config: Glm4vVisionConfig,
    pixels_NP: torch.Tensor,
    grids: Sequence[Sequence[int]],
    *,
    dtype: torch.dtype = torch.float64,
    rounded_to: torch.dtype | None = None,
) -> EncoderOutput:
    """What `Glm4vVisionModel.forward_features` should give.

    Weights are converted one matrix at a time, so that a tower on a GPU needs little more of the
    host's memory than its largest matrix.

    Args:
        state: The model's `state_dict()`, on any device and of any dtype.
        config: The model's.
        pixels_NP: Normalised, floating [N, config.patch_dim], items one after the other.
        grids: `(t, h, w)` an item, in patches.
        dtype: What is computed in: float64 or float32.
        rounded_to: What a model of this dtype would round, in and out of products and after each
            sum, is rounded so; nothing is where it is None.

    Returns:
        Tokens before and after the merger's MLP, [T, O] each, in `dtype`, on the CPU.
    """
    with torch.device("cpu"):  # Whatever the caller's default device.
        tower = _Reference(state=state, config=config, dtype=dtype, rounded_to=rounded_to)
        return tower.features(pixels_NP, grids)


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """The tower's parts, each as a function of its weights' names."""

    state: Mapping[str, torch.Tensor]
    config: Glm4vVisionConfig
    dtype: torch.dtype
    rounded_to: torch.dtype | None

    def features(self, pixels_NP: torch.Tensor, grids: Sequence[Sequence[int]]) -> EncoderOutput:
        shapes = [(segment.height, segment.width) for segment in segments_of(grids)]
        places = [self._places(*shape) for shape in shapes]
        x_ND = self._norm(self._embed(pixels_NP), "post_conv_layernorm")
        positions = [self._position(*at) for at in zip(places, shapes, strict=True)]
        x_ND = self._rounded(x_ND + torch.cat(positions))
        turns_NR = torch.cat([self._turns(place_S2) for place_S2 in places])
        lengths = [height * width for height, width in shapes]
        for block in (f"blocks.{i}" for i in range(self.config.depth)):
            normed_ND = self._norm(x_ND, f"{block}.norm1")
            x_ND = self._rounded(
                x_ND + self._attention(normed_ND, turns_NR, lengths, f"{block}.attn")
            )
            normed_ND = self._norm(x_ND, f"{block}.norm2")
            x_ND = self._rounded(x_ND + self._mlp(normed_ND, f"{block}.mlp"))
        parts = torch.split(self._norm(x_ND, "post_layernorm"), lengths)
        found = zip(parts, places, shapes, strict=True)
        x_TO = self._rounded(torch.cat([self._downsample(*segment) for segment in found]))
        return EncoderOutput(last_hidden_state=x_TO, pooler_output=self._merge(x_TO))

    def _weight(self, name: str) -> torch.Tensor:
        return self.state[name].detach().to("cpu", self.dtype)

    def _rounded(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.rounded_to is None else x.to(self.rounded_to).to(self.dtype)

    def _linear(self, x: torch.Tensor, name: str) -> torch.Tensor:
        bias = self._weight(f"{name}.bias") if f"{name}.bias" in self.state else None
        return self._rounded(F.linear(self._rounded(x), self._weight(f"{name}.weight"), bias))

    def _norm(self, x_ND: torch.Tensor, name: str) -> torch.Tensor:
        mean_square_N1 = x_ND.square().mean(dim=-1, keepdim=True)
        scaled_ND = x_ND / (mean_square_N1 + self.config.rms_norm_eps).sqrt()
        return scaled_ND * self._weight(f"{name}.weight")

    def _mlp(self, x: torch.Tensor, name: str) -> torch.Tensor:
        gate = F.silu(self._linear(x, f"{name}.gate_proj"))
        return self._linear(gate * self._linear(x, f"{name}.up_proj"), f"{name}.down_proj")

    def _embed(self, pixels_NP: torch.Tensor) -> torch.Tensor:
        config, side = self.config, self.config.patch_size
        shape = (config.in_channels, config.temporal_patch_size, side, side)
        pixels_NCTXY = pixels_NP.to("cpu", self.dtype).view(-1, *shape)
        weight, bias = (self._weight(f"patch_embed.proj.{part}") for part in ("weight", "bias"))
        return F.conv3d(pixels_NCTXY, weight, bias, stride=shape[1:]).flatten(1)

    def _places(self, height: int, width: int) -> torch.Tensor:
        """Row and column of each patch [S, 2], in merge-block order."""
        merge = self.config.spatial_merge_size
        corners = [(y, x) for y in range(0, height, merge) for x in range(0, width, merge)]
        inside = [(y, x) for y in range(merge) for x in range(merge)]
        return torch.tensor([(top + y, left + x) for top, left in corners for y, x in inside])

    def _position(self, place_S2: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """The learned position embedding at each patch's centre, [S, D]."""
        side = self.config.position_grid_size
        table_GGD = self._weight("embeddings.position_embedding.weight").view(side, side, -1)
        at_S2 = (place_S2 + 0.5).to(self.dtype) / torch.tensor(shape) * 2 - 1
        sampled_1D1S = F.grid_sample(
            table_GGD.permute(2, 0, 1)[None],
            at_S2.flip(-1)[None, None],  # It takes columns before rows.
            mode="bicubic",
            padding_mode="border",
            align_corners=False,
        )
        return sampled_1D1S[0, :, 0].T

    def _turns(self, place_S2: torch.Tensor) -> torch.Tensor:
        """What queries and keys are multiplied with, complex [S, R]: rows first, then columns."""
        half = self.config.head_dim // 2
        # Frequencies are float32 by definition: their rounding is part of what a tower learnt.
        exponents = torch.arange(0, half, 2, dtype=torch.float32) / half
        frequencies = (1 / self.config.rope_theta**exponents).to(self.dtype)
        angles_S2 = place_S2[:, :, None] * frequencies
        return torch.polar(torch.ones_like(angles_S2), angles_S2).flatten(1)

    def _attention(
        self, x_ND: torch.Tensor, turns_NR: torch.Tensor, lengths: list[int], name: str
    ) -> torch.Tensor:
        shape = (len(x_ND), 3, self.config.num_heads, self.config.head_dim)
        query, key, value = self._linear(x_ND, f"{name}.qkv").view(shape).unbind(1)
        turned = (_turn(query, turns_NR), _turn(key, turns_NR), value)
        parts = (torch.split(x_NHE, lengths) for x_NHE in turned)
        out_NHE = torch.cat([attention(*qkv) for qkv in zip(*parts, strict=True)])
        return self._linear(out_NHE.flatten(1), f"{name}.proj")

    def _downsample(
        self, x_SD: torch.Tensor, place_S2: torch.Tensor, shape: tuple[int, int]
    ) -> torch.Tensor:
        """[S, D] to [tokens, O]: the segment is laid out as a picture and convolved."""
        picture_HWD = x_SD.new_zeros(*shape, x_SD.shape[1])
        picture_HWD[place_S2[:, 0], place_S2[:, 1]] = x_SD
        weight, bias = (self._weight(f"downsample.{part}") for part in ("weight", "bias"))
        stride = self.config.spatial_merge_size
        return F.conv2d(picture_HWD.permute(2, 0, 1), weight, bias, stride=stride).flatten(1).T

    def _merge(self, x_TO: torch.Tensor) -> torch.Tensor:
        norm = "merger.post_projection_norm"
        weight, bias = (self._weight(f"{norm}.{part}") for part in ("weight", "bias"))
        normed_TO = F.layer_norm(self._linear(x_TO, "merger.proj"), weight.shape, weight, bias)
        return self._mlp(F.gelu(normed_TO), "merger")


def _turn(x_NHE: torch.Tensor, turns_NR: torch.Tensor) -> torch.Tensor:
    """Turns the pairs (x[r], x[r + head_dim / 2]) as complex numbers."""
    turned_NHR = torch.complex(*x_NHE.chunk(2, dim=-1)) * turns_NR[:, None]
    return torch.cat([turned_NHR.real, turned_NHR.imag], dim=-1)


def attention(
    query_QHE: torch.Tensor, key_SHE: torch.Tensor, value_SHE: torch.Tensor
) -> torch.Tensor:
    """Softmax attention of Q queries, any of a segment's, over all of its S patches: [Q, H, E]."""
    scores_HQS = torch.einsum("qhe,she->hqs", query_QHE, key_SHE) * query_QHE.shape[-1] ** -0.5
    return torch.einsum("hqs,she->qhe", scores_HQS.softmax(dim=-1), value_SHE)
