import os
import subprocess
import sys
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import sdpa_kernel

from encoder import AttentionKernel, attention
from encoder.attention import Segments, attend, takes_varlen, varlen_cuts
from encoder.linear import takes_onednn
from encoder.reference import attention as plain_attention
from tests.support.operations import Operations

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Of one result, relative to its segment's largest: how each dtype rounds, a few times over.
BOUNDS = {
    torch.float64: 1e-14,
    torch.float32: 1e-5,
    torch.bfloat16: 1e-2,
    torch.float16: 2e-3,
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def make_qkv(
    lengths: list[int], heads: int, head_dim: int, dtype: torch.dtype, device: str = "cpu"
) -> list[torch.Tensor]:
    """Queries, keys and values, cut from one tensor as the model cuts them."""
    generator = torch.Generator().manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator)
    return list(qkv.to(device, dtype).unbind(1))


def assert_attends(
    qkv: list[torch.Tensor], lengths: list[int], kernel: AttentionKernel = "varlen"
) -> None:
    """Holds every segment against the plain reference, in float64 and by itself."""
    found = attend(*qkv, Segments.of(lengths, qkv[0].device, kernel))
    assert (found.shape, found.dtype) == (qkv[0].shape, qkv[0].dtype)
    parts = zip(found.split(lengths), *(x.split(lengths) for x in qkv), strict=True)
    for ours, *own in parts:
        exact = plain_attention(*(x.double().cpu() for x in own))
        error = (ours.double().cpu() - exact).abs().max() / exact.abs().max()
        assert error < BOUNDS[found.dtype], (len(ours), float(error))


def test_attention_by_hand() -> None:
    """Weights of e^0 and e^ln3, 1 to 3, for the one query that sees anything in its key."""
    query = torch.tensor([[[0.0]], [[2.0]]])
    key = torch.tensor([[[0.0]], [[0.5 * torch.log(torch.tensor(3.0))]]])
    value = torch.tensor([[[4.0]], [[8.0]]])
    expected = torch.tensor([[[6.0]], [[7.0]]])
    torch.testing.assert_close(plain_attention(query, key, value), expected)
    torch.testing.assert_close(attend(query, key, value, Segments.of([2], query.device)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "heads", "head_dim"),
    [
        ([5], 2, 4),
        ([1], 3, 8),
        ([1] * 40, 2, 32),
        ([4, 2, 2, 7, 4, 1, 1, 6], 2, 12),
        ([257, 64, 64, 64, 16, 16, 5, 1], 4, 64),
        ([700, 700, 3], 2, 128),
        ([2500, 1], 1, 80),
    ],
)
def test_segments_attend_to_themselves_only(
    lengths: list[int], heads: int, head_dim: int, dtype: torch.dtype
) -> None:
    assert_attends(make_qkv(lengths, heads, head_dim, dtype), lengths)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    head_dim=st.sampled_from([4, 8, 20, 64, 128]),
    dtype=st.sampled_from(DTYPES),
)
@settings(max_examples=40, deadline=None)
def test_any_lengths_in_any_order(lengths: list[int], head_dim: int, dtype: torch.dtype) -> None:
    assert_attends(make_qkv(lengths, 2, head_dim, dtype), lengths)


@pytest.mark.skipif(not takes_onednn(torch.zeros(1)), reason="this build of torch has no oneDNN")
def test_long_segments_on_a_cpu_go_through_onednn_where_no_gradients_are_kept() -> None:
    lengths = [513, 512, 512, 511]
    qkv = make_qkv(lengths, 2, 16, torch.float32)
    segments = Segments.of(lengths, qkv[0].device)
    with Operations() as operations:
        found = attend(*qkv, segments)
    # Two products for 256 queries, the 513th alone, of each head.
    assert operations.names.count("mkldnn._linear_pointwise.default") == 2 * 2 * (3 + 2 + 2)
    for x in qkv:
        x.requires_grad_()
    with Operations() as operations:
        kept = attend(*qkv, segments)
    assert "mkldnn._linear_pointwise.default" not in operations.names
    torch.testing.assert_close(found, kept.detach(), rtol=0, atol=1e-5)


def test_a_single_patch_returns_its_value() -> None:
    q, k, v = torch.randn(3, 1, 2, 8).unbind(0)
    torch.testing.assert_close(attend(q, k, v, Segments.of([1], q.device)), v)


def test_a_segments_bits_do_not_depend_on_its_neighbours() -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 24, 2, 8).unbind(0)
    packed = attend(q, k, v, Segments.of([8, 8, 8], q.device))
    for part in (slice(0, 8), slice(8, 16), slice(16, 24)):
        alone = attend(q[part], k[part], v[part], Segments.of([8], q.device))
        assert torch.equal(packed[part], alone)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2, 3, 4])
def test_what_is_not_finite_stays_in_its_segment(place: int, value: float) -> None:
    lengths = [600, 600, 16, 16, 9]
    qkv = make_qkv(lengths, 2, 16, torch.float32)
    segments = Segments.of(lengths, qkv[0].device)
    clean = attend(*qkv, segments).split(lengths)
    for x in qkv:
        x.split(lengths)[place][-1, 0, 3] = value
    for n, (ours, before) in enumerate(
        zip(attend(*qkv, segments).split(lengths), clean, strict=True)
    ):
        assert torch.equal(ours, before) == (n != place)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_beside_the_patches_is_read(dtype: torch.dtype) -> None:
    """Rows around a caller's slice hold NaN, which would spread from the first one that is read."""
    lengths = [9, 4, 4, 4, 1]
    qkv = make_qkv(lengths, 2, 16, dtype)
    poisoned = []
    for x in qkv:
        larger = x.new_full((len(x) + 64, 2 + 2, 16 + 8), float("nan"))
        larger[32:-32, 1:3, :16] = x
        poisoned.append(larger[32:-32, 1:3, :16])
    segments = Segments.of(lengths, qkv[0].device)
    assert torch.equal(attend(*poisoned, segments), attend(*qkv, segments))


def test_offsets_are_int32_for_the_kernels() -> None:
    segments = Segments.of([2, 3, 4, 1], torch.device("cpu"))
    assert segments.offsets.dtype == torch.int32
    assert segments.offsets.tolist() == [0, 2, 5, 9, 10]


@pytest.mark.parametrize("lengths", [[3], [3, 3]])
def test_segments_that_do_not_cover_the_patches_are_our_bug(lengths: list[int]) -> None:
    x = torch.zeros(5, 1, 4)
    with pytest.raises(AssertionError):
        attend(x, x, x, Segments.of(lengths, x.device))


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "capability", "takes"),
    [
        ("cuda", torch.bfloat16, 128, (9, 0), True),
        ("cuda", torch.float16, 64, (8, 0), True),
        ("cuda", torch.bfloat16, 256, (8, 6), True),
        ("cuda", torch.bfloat16, 264, (9, 0), False),
        ("cuda", torch.bfloat16, 20, (9, 0), False),
        ("cuda", torch.bfloat16, 128, (7, 5), False),
        ("cuda", torch.float32, 128, (9, 0), False),
        ("cpu", torch.bfloat16, 128, None, False),
    ],
)
def test_varlen_is_given_what_it_takes(
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    dtype: torch.dtype,
    head_dim: int,
    capability: tuple[int, int],
    takes: bool,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    # No such tensor can be made here.
    x: Any = SimpleNamespace(device=torch.device(device), dtype=dtype, shape=(5, 2, head_dim))
    assert takes_varlen(x) == takes


def use_varlen_here(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Sends segments to a varlen that does what the CUDA one does, slowly.

    Returns:
        The lengths that each of its calls will have been given.
    """
    calls: list[list[int]] = []

    def varlen_attn(q: Any, k: Any, v: Any, *arguments: Any) -> torch.Tensor:
        offsets, same, longest, same_longest = arguments
        assert offsets is same and longest == same_longest and offsets.dtype == torch.int32
        lengths = offsets.diff().tolist()
        assert (offsets[0], offsets[-1], longest) == (0, len(q), max(lengths))
        calls.append(lengths)
        out = torch.full_like(q, float("nan"))  # Rows of no segment stay unwritten.
        for start, end in pairwise(offsets.tolist()):
            out[start:end] = plain_attention(q[start:end], k[start:end], v[start:end])
        return out

    monkeypatch.setattr(attention, "takes_varlen", lambda x: True)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    return calls


@pytest.mark.parametrize(
    ("lengths", "cuts"),
    [
        ([7], [0, 1]),
        ([8, 8, 2], [0, 3]),  # A quarter is enough.
        ([8, 8, 1], [0, 2, 3]),
        ([9, 8, 2], [0, 2, 3]),
        ([1024, 256, 255, 64, 63, 16, 4, 3, 1], [0, 2, 4, 6, 9]),
        # A clip's slices follow the stills, and may be longer.
        ([20, 5, 20, 5], [0, 4]),
        ([20, 6, 24, 6], [0, 4]),
        ([20, 5, 21, 6], [0, 2, 4]),
        ([1, 4, 5], [0, 2, 3]),
        ([2, 9, 2], [0, 1, 2, 3]),
    ],
)
def test_a_pack_is_cut_where_lengths_differ_by_more_than_four_times(
    monkeypatch: pytest.MonkeyPatch, lengths: list[int], cuts: list[int]
) -> None:
    assert varlen_cuts(lengths) == cuts
    calls = use_varlen_here(monkeypatch)
    assert_attends(make_qkv(lengths, 2, 16, torch.float32), lengths)
    assert calls == [lengths[first:last] for first, last in pairwise(cuts)]


@given(lengths=st.lists(st.integers(1, 100), min_size=1, max_size=20))
def test_a_quarter_of_each_varlen_call_has_work(lengths: list[int]) -> None:
    cuts = varlen_cuts(lengths)
    assert cuts == sorted(set(cuts)) and (cuts[0], cuts[-1]) == (0, len(lengths))
    for first, last in pairwise(cuts):
        run = lengths[first:last]
        assert 4 * sum(run) >= max(run) * len(run)


def test_a_packs_varlen_calls_are_made_once_for_all_layers() -> None:
    segments = Segments.of([5, 4, 1, 1], torch.device("cpu"))
    assert [(run.patches, run.longest) for run in segments.runs] == [(9, 5), (2, 1)]
    offsets = [run.offsets for run in segments.runs]
    assert [each.tolist() for each in offsets] == [[0, 5, 9], [0, 1, 2]]
    assert all(each.dtype == torch.int32 for each in offsets)
    assert segments.runs is segments.runs


@pytest.mark.parametrize(("kernel", "calls"), [("varlen", 1), ("sdpa", 0), ("math", 0)])
def test_varlen_is_used_where_it_was_chosen(
    monkeypatch: pytest.MonkeyPatch, kernel: AttentionKernel, calls: int
) -> None:
    made = use_varlen_here(monkeypatch)
    qkv = make_qkv([3, 2], 2, 8, torch.float32)
    attend(*qkv, Segments.of([3, 2], qkv[0].device, kernel))
    assert len(made) == calls


@pytest.mark.parametrize("scores", [1, 40, 10**6])
def test_the_math_kernel_takes_some_queries_at_a_time(
    monkeypatch: pytest.MonkeyPatch, scores: int
) -> None:
    monkeypatch.setattr(attention, "_MATH_SCORES", scores)
    q, k, v = torch.randn(3, 2, 3, 5, 8, generator=torch.Generator().manual_seed(0))
    found = attention._attend_math(q, k, v)
    for batch, head in product(range(2), range(3)):
        qkv = (x[batch, head, :, None] for x in (q, k, v))
        expected = plain_attention(*qkv)[:, 0]
        torch.testing.assert_close(found[batch, head], expected, rtol=0, atol=1e-6)


@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=10),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=30, deadline=None)
def test_a_segments_result_does_not_depend_on_its_place(lengths: list[int], order: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        use_varlen_here(patch)
        qkv = make_qkv(lengths, 2, 8, torch.float32)
        whole = attend(*qkv, Segments.of(lengths, qkv[0].device)).split(lengths)
        places = list(range(len(lengths)))
        order.shuffle(places)
        moved = [torch.cat([x.split(lengths)[n] for n in places]) for x in qkv]
        sizes = [lengths[n] for n in places]
        again = attend(*moved, Segments.of(sizes, qkv[0].device)).split(sizes)
        for n, ours in zip(places, again, strict=True):
            assert torch.equal(ours, whole[n])


@pytest.mark.parametrize("kernel", ["sdpa", "math"])
def test_sdpa_on_a_gpu_leaves_cudnn_out(kernel: AttentionKernel) -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()
    with attention._sdpa_backends(torch.device("cuda"), kernel):
        assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.math_sdp_enabled()
        assert torch.backends.cuda.flash_sdp_enabled() == (kernel == "sdpa")
        assert torch.backends.cuda.mem_efficient_sdp_enabled() == (kernel == "sdpa")
    assert torch.backends.cuda.cudnn_sdp_enabled() == before


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_kernels_for_a_gpu_are_known(dtype: torch.dtype) -> None:
    # None of the fast ones runs here; the last one does, on any device.
    q, k, v = torch.randn(3, 1, 2, 5, 8).to(dtype).unbind(0)
    with sdpa_kernel(attention._SDPA_BACKENDS, set_priority=True):
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, k, v))


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("head_dim", [8, 64, 80, 128, 256])
@pytest.mark.parametrize("lengths", [[64, 64], [1024, 100, 16, 16, 4, 1]])
def test_varlen_gives_what_attention_is(
    lengths: list[int], head_dim: int, dtype: torch.dtype
) -> None:
    qkv = make_qkv(lengths, 2, head_dim, dtype, "cuda")
    assert takes_varlen(qkv[0])
    assert_attends(qkv, lengths)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("head_dim", [4, 20, 64, 128, 264])
@pytest.mark.parametrize("kernel", ["sdpa", "math"])
def test_sdpa_on_a_gpu_gives_what_attention_is(
    kernel: AttentionKernel, head_dim: int, dtype: torch.dtype
) -> None:
    lengths = [1024, 100, 16, 16, 4, 1]
    assert_attends(make_qkv(lengths, 2, head_dim, dtype, "cuda"), lengths, kernel)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_long_and_short_segments_share_a_pack_on_a_gpu(dtype: torch.dtype) -> None:
    lengths = [1024, 512, 512, 255, 64, 64, 1]
    qkv = make_qkv(lengths, 2, 128, dtype, "cuda")
    assert_attends(qkv, lengths)
    clean = attend(*qkv, Segments.of(lengths, qkv[0].device)).split(lengths)
    for place in (1, 4):
        spoiled = [x.clone() for x in qkv]
        for x in spoiled:
            x.split(lengths)[place][-1] = float("nan")
        found = attend(*spoiled, Segments.of(lengths, qkv[0].device)).split(lengths)
        for n, (ours, before) in enumerate(zip(found, clean, strict=True)):
            assert torch.equal(ours, before) == (n != place)


# Of a photo of five megapixels; how much of it there is depends on how the allocator takes a size.
GROWTH = """
import torch
from pathlib import Path
from encoder.attention import Segments, attend

def most(name):
    return 1024 * int(Path("/proc/self/status").read_text().split(name + ":")[1].split()[0])

torch.set_num_threads(1)
qkv = torch.ones(24336, 3, 1, 64).unbind(1)
Path("/proc/self/clear_refs").write_text("5")
before = most("VmRSS")
with torch.inference_mode():
    attend(*qkv, Segments.of([24336], qkv[0].device))
print(most("VmHWM") - before)
"""


def test_the_scores_of_a_long_segment_are_never_all_there() -> None:
    """With the allocator as it is on a cluster, without the settings of a local run."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", GROWTH],
        capture_output=True,
        check=True,
        cwd=Path(__file__).parents[2],
        env=env,
    )
    assert int(done.stdout) < 4 * 24336**2 / 4
