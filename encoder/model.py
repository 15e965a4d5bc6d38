"""The GLM-4V vision transformer.

Shape suffixes:
    N: patches of a pack, before merging
    T: tokens of a pack, N / spatial_merge_size ** 2
    P: values of a patch, or of a merge block
    D: hidden_size
    O: out_hidden_size
    R: rotary angles of a patch, head_dim / 2
"""

import os
from collections.abc import Callable, Sequence
from typing import NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import nn

from encoder.attention import AttentionKernel, Segments, attend
from encoder.blocks import Block, Merger, RMSNorm
from encoder.config import Glm4vVisionConfig
from encoder.describe import describe
from encoder.device_errors import is_device_error
from encoder.grids import read_grids
from encoder.linear import linear
from encoder.patch_embed import PatchEmbed
from encoder.positions import PositionTables, interpolate_positions

# Products of fewer rows take another kernel of BLAS, whose rounding alone sets a token apart from
# itself in a larger pack by 1.5e-6. Blocks have a row a patch: four, where 2 x 2 make a token.
_FEWEST_ROWS = 4
_COMPILE_PROCESSES = 4

GridThw = torch.Tensor | Sequence[Sequence[int]]
PixelValues = torch.Tensor | Sequence[torch.Tensor]


class CompileError(RuntimeError):
    """The blocks were not compiled; the line says why."""


class EncoderOutput(NamedTuple):
    """What transformers calls `last_hidden_state` and `pooler_output`.

    Attributes:
        last_hidden_state: Tokens before the merger's MLP, [num_tokens, out_hidden_size].
        pooler_output: Tokens as the language model takes them, [num_tokens, out_hidden_size].
    """

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor


class _PositionEmbeddings(nn.Module):
    """Holds the learned position embedding under the checkpoint's name."""

    def __init__(self, config: Glm4vVisionConfig, *, device: torch.device | str | None) -> None:
        super().__init__()
        shape = (config.num_positions, config.hidden_size)
        weight = torch.empty(shape, device=device, dtype=torch.float32)
        if not weight.is_meta:  # There it would bring torch's compiler, a second of imports.
            nn.init.normal_(weight)
        made = nn.Embedding.from_pretrained(weight, freeze=False)  # type: ignore[no-untyped-call]
        self.position_embedding: nn.Embedding = made


def _run_block(
    block: nn.Module,
    x_ND: torch.Tensor,
    cos_NR: torch.Tensor,
    sin_NR: torch.Tensor,
    segments: Segments,
) -> torch.Tensor:
    out_ND: torch.Tensor = block(x_ND, cos_NR, sin_NR, segments)
    return out_ND


# Functions of the block, so that all blocks share what they are compiled to.


def _before_attention(
    block: Block, x_ND: torch.Tensor, cos_NR: torch.Tensor, sin_NR: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return block.before(x_ND, cos_NR, sin_NR)


def _after_attention(block: Block, x_ND: torch.Tensor, out_NHE: torch.Tensor) -> torch.Tensor:
    return block.after(x_ND, out_NHE)


def _compiled() -> Callable[..., torch.Tensor]:
    """Returns `_run_block` with what is before and after attention compiled.

    Attention itself is in no graph, since segment lengths differ from pack to pack. Of the
    graphs' inputs dimension 0, the number of patches, is dynamic: one form serves all packs.
    """
    before = torch.compile(_before_attention)
    after = torch.compile(_after_attention)
    mark_dynamic = torch._dynamo.mark_dynamic  # The documented name.

    def run_block(
        block: Block,
        x_ND: torch.Tensor,
        cos_NR: torch.Tensor,
        sin_NR: torch.Tensor,
        segments: Segments,
    ) -> torch.Tensor:
        for tensor in (x_ND, cos_NR, sin_NR):
            mark_dynamic(tensor, 0)
        out_NHE = attend(*before(block, x_ND, cos_NR, sin_NR), segments)
        mark_dynamic(out_NHE, 0)
        return after(block, x_ND, out_NHE)

    return run_block


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
        self._run_block: Callable[..., torch.Tensor] = _run_block
        self._attention: AttentionKernel = "varlen"
        self._tables = PositionTables(
            head_dim=config.head_dim,
            rope_theta=config.rope_theta,
            grid_size=config.position_grid_size,
            merge_size=config.spatial_merge_size,
        )

    @property
    def attention(self) -> AttentionKernel:
        """Which kernels attention uses on a GPU."""
        return self._attention

    @property
    def is_compiled(self) -> bool:
        """Whether `compile_blocks` has compiled the blocks."""
        return self._run_block is not _run_block

    def use_attention(self, kernel: AttentionKernel) -> None:
        """Selects attention's kernels on a GPU; on a CPU it changes nothing.

        Results differ by rounding. A model starts with "varlen".

        Args:
            kernel: "varlen", FlashAttention's variable-length kernel for segments of all
                lengths, and "sdpa" where dtype, head width or compute capability do not allow
                it; "sdpa", SDPA over segments of equal length, without cuDNN; "math", SDPA's
                math kernel alone, in parts that bound its memory.

        Raises:
            ValueError: Another kernel.
        """
        if kernel not in get_args(AttentionKernel):
            raise ValueError(
                f"kernel={describe(kernel)} is none of {', '.join(get_args(AttentionKernel))}"
            )
        self._attention = kernel

    def compile_blocks(self) -> None:
        """Fuses the elementwise operations of the blocks with `torch.compile`: for a GPU.

        All blocks share one compiled form, for packs of any number of patches. A blank pack is
        run here so that it exists, and has run once, before the first true one. Results differ
        from the uncompiled by rounding. At most four processes compile, unless
        `TORCHINDUCTOR_COMPILE_THREADS` says otherwise.

        Raises:
            CompileError: Compiling failed, or what was compiled does not run. The model is
                uncompiled, and as usable as before.
            RuntimeError: The device failed (see `is_device_error`), or the model does not run
                uncompiled either.
        """
        # Read when the compiler is imported. Its default is one process per CPU, up to 32.
        threads = min(_COMPILE_PROCESSES, os.cpu_count() or 1)
        os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", str(threads))
        with torch.inference_mode():
            self(*self._blank(1))  # An error here is not the compiler's.
            self._synchronize()
            self._run_block = _compiled()
            try:
                self(*self._blank(16))
                self._synchronize()
            # Compilers, linkers and drivers have exceptions of their own.
            except Exception as error:
                self._run_block = _run_block
                # What a compiler's backend raised comes wrapped.
                cause = getattr(error, "inner_exception", error)
                if is_device_error(cause):
                    raise cause from None
                self._synchronize()  # A device that failed meanwhile says so here.
                reason = (str(cause).strip() or type(cause).__name__).split("\n", maxsplit=1)[0]
                raise CompileError(f"the encoder's blocks are not compiled: {reason}") from error

    def uncompile_blocks(self) -> None:
        """Goes back to blocks that are not compiled, if they are."""
        self._run_block = _run_block

    def _synchronize(self) -> None:
        """Waits for a GPU, so that an error of a kernel is raised here."""
        if self.downsample.weight.is_cuda:
            torch.cuda.synchronize(self.downsample.weight.device)

    def _blank(self, stills: int) -> tuple[torch.Tensor, list[tuple[int, int, int]]]:
        """Returns a pack of blank stills of 64 tokens."""
        side, parameter = 8 * self.config.spatial_merge_size, self.patch_embed.proj.weight
        pixels_NP = parameter.new_zeros(stills * side**2, self.config.patch_dim)
        return pixels_NP, [(1, side, side)] * stills

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
            x_ND = self._run_block(block, x_ND, cos_NR, sin_NR, segments)
        tokens = num_patches // self.config.spatial_merge_size**2
        x_TO = self._downsample(self.post_layernorm(x_ND))
        return EncoderOutput(
            last_hidden_state=x_TO[:tokens], pooler_output=self.merger(x_TO)[:tokens]
        )

    def _position(
        self, grids: list[tuple[int, int, int]], device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, Segments]:
        """Returns position embedding [N, D], rotary tables [N, R] twice, and the segments."""
        sizes = [(height, width) for t, height, width in grids for _ in range(t)]
        tables = self._tables.of(sizes, device)
        return (
            interpolate_positions(self.embeddings.position_embedding.weight.float(), tables),
            tables.cos_NR,
            tables.sin_NR,
            Segments.of([h * w for h, w in sizes], device, self._attention),
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
