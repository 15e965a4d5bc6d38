"""What the vision transformer is made of.

Shape suffixes:
    N: patches of a pack, before merging
    T: tokens of a pack
    D: hidden_size
    O: out_hidden_size
    H, E: attention heads and head_dim
    R: rotary angles of a patch, head_dim / 2
"""

import torch
import torch.nn.functional as F
from torch import nn

from encoder.attention import Segments, attend
from encoder.config import Glm4vVisionConfig
from encoder.linear import Linear
from encoder.positions import rotate


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
    """The projections around multi-head attention within segments, with rotary positions."""

    def __init__(
        self, config: Glm4vVisionConfig, *, device: torch.device | str | None, dtype: torch.dtype
    ) -> None:
        super().__init__()
        dim = config.hidden_size
        self.qkv = Linear(dim, 3 * dim, config.attention_bias, device=device, dtype=dtype)
        self.proj = Linear(dim, dim, bias=False, device=device, dtype=dtype)
        self._heads = (3, config.num_heads, config.head_dim)

    def before(
        self, x_ND: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries, keys and values, [N, H, E] each."""
        qkv_N3HE = self.qkv(x_ND).unflatten(-1, self._heads)
        query_NHE, key_NHE = rotate(qkv_N3HE[:, :2], cos_NR, sin_NR).unbind(1)
        return query_NHE, key_NHE, qkv_N3HE[:, 2]

    def after(self, out_NHE: torch.Tensor) -> torch.Tensor:
        """Projects what attention returns, to [N, D]."""
        out_ND: torch.Tensor = self.proj(out_NHE.flatten(1))
        return out_ND


class Block(nn.Module):
    """One transformer block, norms first.

    What is before and after attention can be compiled: shapes alone decide what it does.
    """

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
        """[N, D] to [N, D], in the blocks' dtype; patches see their own segment only."""
        return self.after(x_ND, attend(*self.before(x_ND, cos_NR, sin_NR), segments))

    def before(
        self, x_ND: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns queries, keys and values, [N, H, E] each."""
        return self.attn.before(self.norm1(x_ND), cos_NR, sin_NR)

    def after(self, x_ND: torch.Tensor, out_NHE: torch.Tensor) -> torch.Tensor:
        """Returns the block's result, [N, D], from its input and what attention returns."""
        x_ND = x_ND + self.attn.after(out_NHE)
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
