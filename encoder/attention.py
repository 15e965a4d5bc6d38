"""Attention over packed segments, none of which sees another.

Shape suffixes:
    N: patches of a pack, all segments one after the other
    B: segments of one length
    L: patches of one segment
    H: attention heads
    E: head_dim
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise, product
from typing import Literal

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from encoder.linear import linear, takes_onednn
from encoder.packing import cu_seqlens
from encoder.transfer import send

AttentionKernel = Literal["varlen", "sdpa", "math"]
"""Which kernels attention uses on a GPU; see `Glm4vVisionModel.use_attention`."""

# On a CPU, segments of so many patches go through oneDNN, of which SDPA there knows nothing: on one
# core, with heads of 64, it was 1.4 to 1.7 times as fast, and no faster at 256 patches.
_LONG_ON_CPU = 512
# In order of preference; each takes what those before it refuse. Flash wants half precision. cuDNN
# is left out: it can fail after it was selected ("no execution plan"), and then nothing takes over.
_SDPA_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
# SDPA's math kernel holds all scores of a call, up to 4 bytes each and a few times over.
_MATH_SCORES = 2**27
# A varlen call starts blocks for its longest segment in every segment: of segments up to this
# many times as long as the shortest, at least a quarter of the blocks have work.
_VARLEN_SPREAD = 4


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """Neighbouring segments that share a varlen call.

    Attributes:
        patches: How many patches they have together.
        longest: Patches of the longest.
        offsets: Where each starts and the last one ends, from 0, int32, on the device.
    """

    patches: int
    longest: int
    offsets: torch.Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """Lengths of a pack's segments, on the host and on the device.

    The host's copy lets every backend plan without waiting for the GPU.

    Attributes:
        lengths: Patches of each segment.
        offsets: Where each segment starts and the last one ends, int32 [len(lengths) + 1], on
            the device of the patches.
        kernel: Which kernels attention uses on a GPU.
    """

    lengths: tuple[int, ...]
    offsets: torch.Tensor
    kernel: AttentionKernel = "varlen"

    @classmethod
    def of(
        cls, lengths: Sequence[int], device: torch.device, kernel: AttentionKernel = "varlen"
    ) -> "Segments":
        """Builds the lengths' device copy."""
        offsets = torch.tensor(cu_seqlens(lengths), dtype=torch.int32, device="cpu")
        return cls(lengths=tuple(lengths), offsets=send(offsets, device), kernel=kernel)

    @cached_property
    def runs(self) -> list[Run]:
        """The pack's varlen calls, made once for all layers."""
        return [
            Run(
                patches=sum(self.lengths[first:last]),
                longest=max(self.lengths[first:last]),
                offsets=self.offsets[first : last + 1] - self.offsets[first],
            )
            for first, last in pairwise(varlen_cuts(self.lengths))
        ]


def varlen_cuts(lengths: Sequence[int]) -> list[int]:
    """Returns where a pack's varlen calls start, and where the last one ends.

    A varlen kernel starts `longest / tile` blocks of threads for every segment and head. A call
    ends before a segment that would make its longest over four times its shortest, so at least
    a quarter of the blocks have work. Packs are sorted by length, so cuts are few.

    >>> varlen_cuts([1024, 256, 255, 64, 15])
    [0, 2, 4, 5]

    Args:
        lengths: Of one segment or more.
    """
    cuts = [0]
    shortest = longest = lengths[0]
    for at, length in enumerate(lengths):
        shortest, longest = min(shortest, length), max(longest, length)
        if longest > _VARLEN_SPREAD * shortest:
            cuts.append(at)
            shortest = longest = length
    return [*cuts, len(lengths)]


def takes_varlen(x_NHE: torch.Tensor) -> bool:
    """Returns whether the varlen kernel takes queries like these.

    It depends on device, dtype and head width, never on the pack, so that the backend of a
    segment does not depend on its neighbours.
    """
    head_dim = x_NHE.shape[-1]
    return (
        x_NHE.device.type == "cuda"
        and x_NHE.dtype in (torch.bfloat16, torch.float16)
        and head_dim <= 256
        and head_dim % 8 == 0
        and torch.cuda.get_device_capability(x_NHE.device) >= (8, 0)
    )


def attend(
    query_NHE: torch.Tensor, key_NHE: torch.Tensor, value_NHE: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Attends within each segment, scaled by head_dim ** -0.5, without mask or dropout.

    Args:
        query_NHE: [N, heads, head_dim], any floating dtype.
        key_NHE: As the queries.
        value_NHE: As the queries.
        segments: Their lengths, which cover the N patches exactly: some kernels leave rows
            past the last segment unwritten, and whatever is there spreads.

    Returns:
        [N, heads, head_dim] in the queries' dtype.
    """
    assert sum(segments.lengths) == query_NHE.shape[0]
    by_varlen = segments.kernel == "varlen" and takes_varlen(query_NHE)
    run = _attend_varlen if by_varlen else _attend_sdpa
    return run(query_NHE, key_NHE, value_NHE, segments)


def _attend_varlen(
    query_NHE: torch.Tensor, key_NHE: torch.Tensor, value_NHE: torch.Tensor, segments: Segments
) -> torch.Tensor:
    # Brings torch's compiler, a second of imports.
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

    runs = segments.runs
    sizes = [run.patches for run in runs]
    packs = (torch.split(x, sizes) for x in (query_NHE, key_NHE, value_NHE))
    outputs = []
    for run, query, key, value in zip(runs, *packs, strict=True):
        offsets, longest = run.offsets, run.longest
        out_NHE = varlen_attn(query, key, value, offsets, offsets, longest, longest)
        assert isinstance(out_NHE, torch.Tensor)
        outputs.append(out_NHE)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _attend_sdpa(
    query_NHE: torch.Tensor, key_NHE: torch.Tensor, value_NHE: torch.Tensor, segments: Segments
) -> torch.Tensor:
    """Batches neighbours of equal length: packs are best sorted by it.

    Measured on one CPU core: 256 segments of 16 patches take 2.2 ms so against 6.7 ms one by
    one. Gathering equal lengths from all over a pack first copies queries, keys, values and
    result, and took 20 to 40% longer than leaving mixed lengths where they are.
    """
    runs = [(length, len(list(run))) for length, run in groupby(segments.lengths)]
    sizes = [length * count for length, count in runs]
    outputs = []
    packs = (torch.split(x, sizes) for x in (query_NHE, key_NHE, value_NHE))
    with _sdpa_backends(query_NHE.device, segments.kernel):
        for (length, _), *qkv in zip(runs, *packs, strict=True):
            q_BHLE, k_BHLE, v_BHLE = (x.view(-1, length, *x.shape[1:]).transpose(1, 2) for x in qkv)
            run: Callable[..., torch.Tensor] = F.scaled_dot_product_attention
            if length >= _LONG_ON_CPU and takes_onednn(*qkv):
                run = _attend_onednn
            elif segments.kernel == "math" and query_NHE.device.type == "cuda":
                run = _attend_math
            out_BHLE = run(q_BHLE, k_BHLE, v_BHLE)
            outputs.append(out_BHLE.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _attend_onednn(
    query_BHLE: torch.Tensor, key_BHLE: torch.Tensor, value_BHLE: torch.Tensor
) -> torch.Tensor:
    """Attention as two matrix products, for some queries of one head at a time."""
    batches, heads, length, head_dim = query_BHLE.shape
    out_BLHE = query_BHLE.new_empty(batches, length, heads, head_dim)
    step = 256 if length <= 1024 else 128  # Their scores, about 1 MB, stay in a core's cache.
    for batch, head in product(range(batches), range(heads)):
        query_LE = query_BHLE[batch, head] * head_dim**-0.5
        key_LE = key_BHLE[batch, head].contiguous()
        value_EL = value_BHLE[batch, head].T.contiguous()
        # Nothing made here is kept: it would lie in the holes that earlier scores have left, the
        # next would not fit there, and a long segment's would add up to the whole matrix.
        both = (torch.split(x_LE, step) for x_LE in (query_LE, out_BLHE[batch, :, head]))
        for query_QE, out_QE in zip(*both, strict=True):
            out_QE.copy_(linear(linear(query_QE, key_LE).softmax(-1), value_EL))
    return out_BLHE.transpose(1, 2)


def _attend_math(
    query_BHLE: torch.Tensor, key_BHLE: torch.Tensor, value_BHLE: torch.Tensor
) -> torch.Tensor:
    """SDPA for some queries at a time, so that the scores fit in memory."""
    batches, heads, length, _ = query_BHLE.shape
    step = max(1, _MATH_SCORES // (batches * heads * length))
    parts = (
        F.scaled_dot_product_attention(query_BHQE, key_BHLE, value_BHLE)
        for query_BHQE in torch.split(query_BHLE, step, dim=2)
    )
    return torch.cat(list(parts), dim=2)


def _sdpa_backends(device: torch.device, kernel: AttentionKernel) -> AbstractContextManager[None]:
    """Selects SDPA's kernels on a GPU; the CPU has one."""
    if device.type == "cpu":
        return nullcontext()
    if kernel == "math":
        return sdpa_kernel(SDPBackend.MATH)
    return sdpa_kernel(_SDPA_BACKENDS, set_priority=True)
