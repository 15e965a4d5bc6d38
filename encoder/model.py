"""The GLM-4V vision transformer.

Shape suffixes:
    N: patches of a pack, before merging
    T: tokens of a pack, N / spatial_merge_size ** 2
    P: values of a patch, or of a merge block
    D: hidden_size
    O: out_hidden_size
    H, E: attention heads and head_dim
    R: rotary angles of a patch, head_dim / 2
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from encoder.attention import Segments, attend
from encoder.config import Glm4vVisionConfig
from encoder.describe import describe
from encoder.grids import read_grids
from encoder.linear import Linear, linear
from encoder.patch_embed import PatchEmbed
from encoder.positions import GridTables, PositionTables, interpolate_positions, rotate

# Products of fewer rows take another kernel of BLAS, whose rounding alone sets a token apart from
# itself in a larger pack by 1.5e-6. Blocks have a row a patch: four, where 2 x 2 make a token.
_FEWEST_ROWS = 4

GridThw = torch.Tensor | Sequence[Sequence[int]]
PixelValues = torch.Tensor | Sequence[torch.Tensor]


class EncoderOutput(NamedTuple):
    """What transformers calls `last_hidden_state` and `pooler_output`.

    Attributes:
        last_hidden_state: Tokens before the merger's MLP, [num_tokens, out_hidden_size].
        pooler_output: Tokens as the language model takes them, [num_tokens, out_hidden_size].
    """

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor


class RMSNorm(nn.Module):
    """Scales by the inverse root mean square, in float32; returns the input's dtype."""

    def __init__(self, dim: int, *, eps: float, device: torch.device | str | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim, device=device, dtype=torch.float32))
        self._eps = eps

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Normalises the last dimension."""
        weight_D = self.weight.float()
        return F.rms_norm(x_ND.float(), weight_D.shape, weight_D, self._eps).to(x_ND.dtype)


class GatedMLP(nn.Module):
    """`down(silu(gate(x)) * up(x))`, without biases."""

    def __init__(
        self, dim: int, inner_dim: int, *, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.gate_proj = Linear(dim, inner_dim, bias=False, device=device, dtype=dtype)
        self.up_proj = Linear(dim, inner_dim, bias=False, device=device, dtype=dtype)
        self.down_proj = Linear(inner_dim, dim, bias=False, device=device, dtype=dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[..., dim] to [..., dim]."""
        gate = F.silu(self.gate_proj(x))
        # In place: a third buffer of this size, new from the system, took as long as a product.
        out: torch.Tensor = self.down_proj(gate.mul_(self.up_proj(x)))
        return out


class Attention(nn.Module):
    """Multi-head attention within segments, with rotary positions."""

    def __init__(
        self, config: Glm4vVisionConfig, *, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        dim = config.hidden_size
        self.qkv = Linear(dim, 3 * dim, config.attention_bias, device=device, dtype=dtype)
        self.proj = Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self._heads = (3, config.num_heads, config.head_dim)

    def forward(
        self, x_ND: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        """[N, D] to [N, D]; patches see their own segment only."""
        qkv_N3HE = self.qkv(x_ND).unflatten(-1, self._heads)
        query_NHE, key_NHE = rotate(qkv_N3HE[:, :2], cos_NR, sin_NR).unbind(1)
        out_NHE = attend(query_NHE, key_NHE, qkv_N3HE[:, 2], segments)
        out_ND: torch.Tensor = self.proj(out_NHE.flatten(1))
        return out_ND


class Block(nn.Module):
    """One transformer block, norms first."""

    def __init__(
        self, config: Glm4vVisionConfig, *, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.norm1 = RMSNorm(dim, eps=eps, device=device)
        self.norm2 = RMSNorm(dim, eps=eps, device=device)
        self.attn = Attention(config, device=device, dtype=dtype)
        self.mlp = GatedMLP(dim, config.out_hidden_size, device=device, dtype=dtype)

    def forward(
        self, x_ND: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor, segments: Segments
    ) -> torch.Tensor:
        """[N, D] to [N, D], in the blocks' dtype."""
        x_ND = x_ND + self.attn(self.norm1(x_ND), cos_NR, sin_NR, segments)
        out_ND: torch.Tensor = x_ND + self.mlp(self.norm2(x_ND))
        return out_ND


class Merger(GatedMLP):
    """Makes tokens fit for the language model."""

    def __init__(
        self, config: Glm4vVisionConfig, *, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        dim = config.out_hidden_size
        super().__init__(dim, config.intermediate_size, device=device, dtype=dtype)
        self.proj = Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self.post_projection_norm = nn.LayerNorm(dim, device=device, dtype=torch.float32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[T, O] to [T, O]."""
        norm = self.post_projection_norm
        normed_TO = norm(self.proj(x).to(norm.weight.dtype))
        return super().forward(F.gelu(normed_TO).to(x.dtype))


class _PositionEmbeddings(nn.Module):
    """Holds the learned position embedding under the checkpoint's name."""

    def __init__(self, config: Glm4vVisionConfig, *, device: torch.device | str | None) -> None:
        super().__init__()
        self.position_embedding = nn.Embedding(
            config.num_positions, config.hidden_size, device=device, dtype=torch.float32
        )


class Glm4vVisionModel(nn.Module):
    """The vision tower of a GLM-4V model, for stills and videos of any sizes in one pack.

    Names and shapes of parameters equal those of transformers' class of the same name,
    `models/glm4v/modeling_glm4v.py`; in float32 so do the results, within 1e-5 of the largest.
    Differences on purpose: rows of `grid_thw` may have `t > 1`; uint8 levels are taken; in half
    precision, what is cheap and sets the error stays in float32 (patch embedding, positions,
    rotary angles, norms).

    Args:
        config: The tower's shape.
        device: Where parameters are made.
        dtype: Of the matrix products in blocks, downsampling and merger, and of the results.

    Raises:
        ValueError: The config is another class's, or a mapping.
    """

    def __init__(
        self,
        config: Glm4vVisionConfig,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not isinstance(config, Glm4vVisionConfig):
            raise ValueError(
                f"config={describe(config)} is not a Glm4vVisionConfig: pass a whole model's "
                "vision_config, or what Glm4vVisionConfig.from_dict makes of a mapping"
            )
        super().__init__()
        self.config = config
        dim, eps = config.hidden_size, config.rms_norm_eps
        self.embeddings = _PositionEmbeddings(config, device=device)
        self.patch_embed = PatchEmbed(config, device=device)
        self.post_conv_layernorm = RMSNorm(dim, eps=eps, device=device)
        self.blocks = nn.ModuleList(
            Block(config, device=device, dtype=dtype) for _ in range(config.depth)
        )
        self.post_layernorm = RMSNorm(dim, eps=eps, device=device)
        # Holds the parameters in the checkpoint's names and shapes; never called.
        self.downsample = nn.Conv2d(
            dim, config.out_hidden_size, config.spatial_merge_size, device=device, dtype=dtype
        )
        self.merger = Merger(config, device=device, dtype=dtype)
        self._tables = PositionTables(
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            grid_size=config.position_grid_size,
            merge_size=config.spatial_merge_size,
        )

    def forward(self, pixel_values: PixelValues, grid_thw: GridThw) -> torch.Tensor:
        """Encodes a pack of patches.

        Values are not looked at, which on a GPU would wait for them: NaN or infinity in a patch
        makes NaN of the tokens of its still or slice, and of no others. The processors refuse it.

        Args:
            pixel_values: [num_patches, values], items one after the other, one of
                floating, C * T * P * P values: normalised, as transformers' `pixel_values`;
                uint8, C * T * P * P values: levels before rescaling and normalisation;
                either, C * P * P values: stills whose one frame stands for all T.
                Values run over channel, frame, row, column; patches over frames, then in
                merge-block order. Several such tensors, one after the other, where a pack
                mixes kinds.
            grid_thw: `(t, h, w)` an item, integers, in patches; a list, or a tensor [items, 3]
                (on a GPU, a tensor waits for it).

        Returns:
            [num_tokens, out_hidden_size] in the model's dtype, in the order of the patches:
            transformers' `pooler_output`.

        Raises:
            ValueError: Shapes, dtypes or grids do not fit together; the message shows which.
        """
        return self.forward_features(pixel_values, grid_thw).pooler_output

    def forward_features(self, pixel_values: PixelValues, grid_thw: GridThw) -> EncoderOutput:
        """As `forward`, with the tokens from before the merger's MLP as well."""
        kinds = self.patch_embed.read(pixel_values)
        num_patches = sum(len(kind_NP) for kind_NP in kinds)
        grids = read_grids(grid_thw, self.config.spatial_merge_size)
        total = sum(t * h * w for t, h, w in grids)
        if num_patches == total == 0:
            raise ValueError("an empty pack: pixel_values and grid_thw need one item or more")
        if total != num_patches:
            raise ValueError(f"grid_thw covers {total} patches, pixel_values has {num_patches}")
        x_ND = torch.cat([self.patch_embed(kind_NP) for kind_NP in kinds])
        x_ND = self.post_conv_layernorm(x_ND)
        positions_ND, cos_NR, sin_NR, segments = self._position(grids, x_ND.device)
        x_ND = (x_ND + positions_ND).to(self.downsample.weight.dtype)
        for block in self.blocks:
            x_ND = block(x_ND, cos_NR, sin_NR, segments)
        tokens = num_patches // self.config.spatial_merge_size**2
        x_TO = self._downsample(self.post_layernorm(x_ND))
        return EncoderOutput(
            last_hidden_state=x_TO[:tokens], pooler_output=self.merger(x_TO)[:tokens]
        )

    def _position(
        self, grids: list[tuple[int, int, int]], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Segments]:
        """Returns position embedding [N, D], rotary tables [N, R] twice, and the segments."""
        shapes = [(height, width) for t, height, width in grids for _ in range(t)]
        found = {shape: self._tables.get(*shape, device) for shape in dict.fromkeys(shapes)}
        columns = zip(*(found[shape] for shape in shapes), strict=True)
        tables = GridTables(*(torch.cat(column) for column in columns))
        return (
            interpolate_positions(self.embeddings.position_embedding.weight.float(), tables),
            tables.cos_SR,
            tables.sin_SR,
            Segments.of([height * width for height, width in shapes], device),
        )

    def _downsample(self, x_ND: torch.Tensor) -> torch.Tensor:
        """Joins each merge block to a token: the `Conv2d` as a matrix product.

        Where there are fewer tokens than `_FEWEST_ROWS`, blank ones follow.
        """
        block = self.config.spatial_merge_size**2
        # The weight's columns run over channel, then place in the block.
        x_TP = x_ND.view(-1, block, x_ND.shape[1]).transpose(1, 2).flatten(1)
        if len(x_TP) < _FEWEST_ROWS:
            x_TP = F.pad(x_TP, (0, 0, 0, _FEWEST_ROWS - len(x_TP)))
        return linear(x_TP, self.downsample.weight.flatten(1), self.downsample.bias)
