"""Attention over packed segments, none of which sees another.

Shape suffixes:
    N: patches of a pack, all segments one after the other
    B: segments of one length
    L: patches of one segment
    H: attention heads
    E: head_dim
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby, product

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from encoder.linear import linear, takes_onednn
from encoder.packing import cu_seqlens
from encoder.transfer import send

# On a GPU, segments of so many patches go through SDPA, and there through cuDNN: the faster
# kernel, that wants a plan for every new shape, which others have measured at 40 to 70 ms. What
# attention itself takes in all layers of a shorter segment does not earn that back. Waits for a
# measurement of our own.
_LONG = 16384
# On a CPU, segments of so many patches go through oneDNN, of which SDPA there knows nothing: on one
# core, with heads of 64, it was 1.4 to 1.7 times as fast, and no faster at 256 patches.
_LONG_ON_CPU = 512
# From the fastest on; each takes what those before it refuse. cuDNN and flash want half precision.
_CUDA_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


@dataclass(frozen=True, kw_only=True, eq=False)
class Segments:
    """Lengths of a pack's segments, on the host and on the device.

    The host's copy lets every backend plan without waiting for the GPU.

    Attributes:
        lengths: Patches of each segment.
        offsets: Where each segment starts and the last one ends, int32 [len(lengths) + 1], on
            the device of the patches.
    """

    lengths: tuple[int, ...]
    offsets: torch.Tensor

    @classmethod
    def of(cls, lengths: list[int], device: torch.device) -> "Segments":
        """Builds the lengths' device copy."""
        offsets = torch.tensor(cu_seqlens(lengths), dtype=torch.int32, device="cpu")
        return cls(lengths=tuple(lengths), offsets=send(offsets, device))

    def part(self, first: int, count: int) -> "Segments":
        """Some neighbours, as a pack of their own."""
        offsets = self.offsets[first : first + count + 1]
        return Segments(lengths=self.lengths[first : first + count], offsets=offsets - offsets[0])


def varlen_limit(x_NHE: torch.Tensor) -> int:
    """Returns the length from which segments go through SDPA; shorter ones through varlen.

    It depends on device, dtype and head width, never on the pack, so that the backend of a
    segment does not depend on its neighbours. 0 where varlen cannot take queries like these.
    """
    head_dim = x_NHE.shape[-1]
    takes = (
        x_NHE.device.type == "cuda"
        and x_NHE.dtype in (torch.bfloat16, torch.float16)
        and head_dim <= 256
        and head_dim % 8 == 0
        and torch.cuda.get_device_capability(x_NHE.device) >= (8, 0)
    )
    return _LONG if takes else 0


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
    runs = list(_runs(segments, varlen_limit(query_NHE)))
    sizes = [sum(run.lengths) for _, run in runs]
    packs = (torch.split(x, sizes) for x in (query_NHE, key_NHE, value_NHE))
    outputs = [
        (_attend_varlen if short else _attend_sdpa)(query, key, value, run)
        for (short, run), query, key, value in zip(runs, *packs, strict=True)
    ]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _runs(segments: Segments, limit: int) -> Iterator[tuple[bool, Segments]]:
    """Cuts a pack where the backend changes: once a kind of patches, where lengths are sorted."""
    first = 0
    for short, run in groupby(segments.lengths, lambda length: length < limit):
        count = len(list(run))
        yield short, segments.part(first, count) if count < len(segments.lengths) else segments
        first += count


def _attend_varlen(
    query_NHE: torch.Tensor, key_NHE: torch.Tensor, value_NHE: torch.Tensor, segments: Segments
) -> torch.Tensor:
    # Brings torch's compiler, a second of imports.
    from torch.nn.attention.varlen import varlen_attn  # noqa: PLC0415

    longest = max(segments.lengths)
    offsets = segments.offsets
    out_NHE = varlen_attn(query_NHE, key_NHE, value_NHE, offsets, offsets, longest, longest)
    assert isinstance(out_NHE, torch.Tensor)
    return out_NHE


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
    with _sdpa_kernels(query_NHE.device):
        for (length, _), *qkv in zip(runs, *packs, strict=True):
            q_BHLE, k_BHLE, v_BHLE = (x.view(-1, length, *x.shape[1:]).transpose(1, 2) for x in qkv)
            by_onednn = length >= _LONG_ON_CPU and takes_onednn(*qkv)
            run = _attend_onednn if by_onednn else F.scaled_dot_product_attention
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


def _sdpa_kernels(device: torch.device) -> AbstractContextManager[None]:
    """On a GPU, prefers cuDNN; the CPU has one kernel."""
    if device.type == "cpu":
        return nullcontext()
    return sdpa_kernel(_CUDA_KERNELS, set_priority=True)
