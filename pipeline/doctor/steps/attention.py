"""Attention by every kernel, at the lengths that matter, against float64."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch

from encoder import AttentionKernel, Glm4vVisionConfig, is_out_of_memory
from encoder.attention import Segments, attend
from encoder.reference import attention
from encoder.self_check import max_error
from pipeline.doctor.finding import Finding, Value
from pipeline.doctor.options import Options
from pipeline.doctor.steps.poison import poisoned
from pipeline.doctor.steps.tower import (
    describe_dtype,
    device_of,
    dtype_of,
    rounding_bound,
    shape_of,
)

KERNELS: tuple[AttentionKernel, ...] = ("varlen", "sdpa", "math")
# One patch, less than a tile, one tile, small stills, web photos, the largest stills and clips.
LENGTHS = (1, 5, 64, 256, 1024, 2520, 10_000, 16_384, 30_000)
_LENGTHS_ON_CPU = LENGTHS[:6]
# Of longer segments there is one, and these many queries are compared.
_ALONE_FROM = 10_000
_QUERIES = 64
_HEADS = 4
_POISON_BYTES = 8 * 2**30


def check(options: Options) -> Iterator[Finding]:
    """One finding a kernel."""
    device = device_of(options)
    config, dtype = shape_of(options, device), dtype_of(device)
    if device.type == "cpu":
        torch.set_num_threads(1)
        errors = attention_errors(config, device, dtype, "sdpa", _LENGTHS_ON_CPU)
        yield judge(errors, dtype, "on the CPU")
        return
    for kernel in KERNELS:
        errors = attention_errors(config, device, dtype, kernel, LENGTHS)
        yield judge(errors, dtype, kernel)


def attention_errors(
    config: Glm4vVisionConfig,
    device: torch.device,
    dtype: torch.dtype,
    kernel: AttentionKernel,
    lengths: Sequence[int],
) -> dict[int, float | None]:
    """Runs attention where free memory is full of NaN.

    Args:
        config: Of the tower, whose heads it has.
        device: Where.
        dtype: Of queries, keys and values.
        kernel: Which.
        lengths: Patches of the segments; shorter ones come twice, and each with one of 3 patches.

    Returns:
        For each length the largest error of a query, relative to its norm; NaN where something
        was left unwritten, None where memory ran out.
    """
    return {length: _error(config, device, dtype, kernel, length) for length in lengths}


def judge(errors: dict[int, float | None], dtype: torch.dtype, name: str) -> Finding:
    """Compares the errors of one kernel with what rounding explains."""
    bound = rounding_bound(dtype, 1)
    known = {length: error for length, error in errors.items() if error is not None}
    wrong = [length for length, error in known.items() if not error <= bound]  # NaN is not.
    worst = max(
        known.values(), default=0.0, key=lambda error: math.inf if math.isnan(error) else error
    )
    figure = f"{name}, {describe_dtype(dtype)}: off by {worst:.1g} at most, bound {bound:.1g}"
    if wrong:
        figure += f"; wrong at {', '.join(f'{length:,}' for length in wrong)} patches"
    if len(known) < len(errors):
        figure += f"; no memory from {min(set(errors) - set(known)):,} patches"
    values: dict[str, Value] = {"kernel": name, "dtype": describe_dtype(dtype), "bound": bound}
    values |= {f"error_at_{length}": e for length, e in known.items() if math.isfinite(e)}
    return Finding(
        step="attention",
        result="broken" if wrong or not known else "ok",
        figure=figure,
        advice="runs avoid this kernel; another torch or driver may cure it" if wrong else "",
        values=values,
    )


def _error(
    config: Glm4vVisionConfig,
    device: torch.device,
    dtype: torch.dtype,
    kernel: AttentionKernel,
    length: int,
) -> float | None:
    generator = torch.Generator().manual_seed(length)
    lengths = [length] * (1 if length >= _ALONE_FROM else 2) + [3]
    heads = min(_HEADS, config.num_heads)
    shape = (sum(lengths), 3, heads, config.head_dim)
    qkv_N3HE = torch.randn(shape, generator=generator).to(dtype)
    try:
        with torch.inference_mode(), poisoned(device, _POISON_BYTES):
            query_NHE, key_NHE, value_NHE = qkv_N3HE.to(device).unbind(1)
            segments = Segments.of(lengths, device, kernel)
            out_NHE = attend(query_NHE, key_NHE, value_NHE, segments).cpu()
            del query_NHE, key_NHE, value_NHE, segments
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    errors = []
    for ours_SHE, own_S3HE in zip(
        *(torch.split(x, lengths) for x in (out_NHE, qkv_N3HE)), strict=True
    ):
        query_SHE, key_SHE, value_SHE = own_S3HE.double().unbind(1)
        some_Q = torch.linspace(0, len(query_SHE) - 1, min(len(query_SHE), _QUERIES)).long()
        exact = attention(query_SHE[some_Q], key_SHE, value_SHE)
        errors.append(max_error(ours_SHE[some_Q].flatten(1), exact.flatten(1)))
        if not bool(ours_SHE.isfinite().all()):
            errors.append(math.nan)
    return math.nan if any(map(math.isnan, errors)) else max(errors)
