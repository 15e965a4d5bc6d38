import pytest
import torch

from encoder.attention import Segments, attend, choose_backend


def plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("qhe,khe->hqk", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("hqk,khe->qhe", scores.softmax(-1), v)


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], [4, 2, 2, 7, 4], [1, 1, 6]])
def test_segments_attend_to_themselves_only(lengths: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 8).unbind(0)
    out = attend(q, k, v, Segments.of(lengths, q.device))
    parts = zip(q.split(lengths), k.split(lengths), v.split(lengths), strict=True)
    expected = torch.cat([plain_attention(*part) for part in parts])
    torch.testing.assert_close(out, expected)


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


def test_offsets_are_int32_for_the_kernels() -> None:
    segments = Segments.of([2, 3], torch.device("cpu"))
    assert segments.offsets.dtype == torch.int32
    assert segments.offsets.tolist() == [0, 2, 5]


@pytest.mark.parametrize("lengths", [[3], [3, 3]])
def test_segments_that_do_not_cover_the_patches_are_our_bug(lengths: list[int]) -> None:
    x = torch.zeros(5, 1, 4)
    with pytest.raises(AssertionError):
        attend(x, x, x, Segments.of(lengths, x.device))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_cpu_takes_sdpa(dtype: torch.dtype) -> None:
    assert choose_backend(torch.zeros(1, 1, 8, dtype=dtype)) == "sdpa"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("lengths", [[64, 64], [16, 100, 4, 1024]])
def test_varlen_equals_sdpa_in_half_precision(lengths: list[int]) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, sum(lengths), 2, 64, device="cuda").unbind(0)
    half = [x.bfloat16() for x in (q, k, v)]
    assert choose_backend(half[0]) == "varlen"
    assert choose_backend(q) == "sdpa"
    segments = Segments.of(lengths, q.device)
    expected = attend(q, k, v, segments)
    torch.testing.assert_close(attend(*half, segments).float(), expected, rtol=0, atol=2e-2)
