"""What the encoder's check of itself lets pass, and what it does not."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from encoder import (
    AttentionKernel,
    Glm4vVisionConfig,
    Glm4vVisionModel,
    SelfCheckError,
    attention,
    blocks,
    check_encoder,
    load_encoder,
)
from encoder.attention import Segments, attend
from encoder.positions import rotate
from encoder.self_check import known_input, product_epsilon
from tests.support.towers import cast_model, random_model

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SIX_BLOCKS = Glm4vVisionConfig(
    depth=6, hidden_size=256, num_heads=4, out_hidden_size=256, intermediate_size=512
)


@pytest.fixture(scope="module", params=DTYPES, ids=str)
def small(request: pytest.FixtureRequest) -> Glm4vVisionModel:
    return load_encoder("small", dtype=request.param)


def test_the_known_input_is_of_several_lengths_two_of_them_equal() -> None:
    levels, grids = known_input(load_encoder("tiny").config)
    assert grids == [(1, 4, 4), (1, 2, 6), (1, 2, 2), (1, 2, 2)]
    assert (levels.shape, levels.dtype) == ((36, 588), torch.uint8)
    assert levels.unique(dim=0).shape == levels.shape
    assert 0 < levels.min() < 30 and 200 < levels.max() < 255


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_a_healthy_encoder_passes(preset: str, dtype: torch.dtype, seed: int) -> None:
    check_encoder(load_encoder(preset, dtype=dtype, seed=seed))


@pytest.mark.parametrize("family", ["glm4v", "glm4v_moe", "glm46v", "glmga"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_checkpoints_encoder_passes(goldens: Path, family: str, dtype: torch.dtype) -> None:
    check_encoder(load_encoder(str(goldens / f"checkpoint-{family}"), dtype=dtype))


@pytest.mark.whole
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("preset", ["medium", "large"])
def test_a_healthy_large_encoder_passes(preset: str, dtype: torch.dtype) -> None:
    check_encoder(load_encoder(preset, dtype=dtype))


@pytest.mark.parametrize("merge", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_other_shapes_pass(small_model: Glm4vVisionModel, merge: int, frames: int) -> None:
    fields = {"spatial_merge_size": merge, "temporal_patch_size": frames}
    config = type(small_model.config)(**(vars(small_model.config) | fields))
    check_encoder(random_model(config))


def sharp_attention(tower: Glm4vVisionModel) -> None:
    for block in tower.blocks:
        block.attn.qkv.weight[: 2 * tower.config.hidden_size] *= 8**0.5


def one_large_channel(tower: Glm4vVisionModel) -> None:
    tower.blocks[0].mlp.down_proj.weight[7] *= 300


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("trained", [sharp_attention, one_large_channel])
@pytest.mark.parametrize("seed", range(3))
def test_weights_that_make_more_of_rounding_pass(
    trained: Callable[[Glm4vVisionModel], None], dtype: torch.dtype, seed: int
) -> None:
    tower = random_model(SIX_BLOCKS, seed)
    trained(tower)
    check_encoder(cast_model(tower, dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wrong_attention_is_refused_with_such_weights(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    tower = random_model(SIX_BLOCKS)
    one_large_channel(tower)
    monkeypatch.setattr(blocks, "attend", heads_swapped)
    with pytest.raises(SelfCheckError, match="tokens are off by"):
        check_encoder(cast_model(tower, dtype))


@pytest.mark.parametrize(
    ("device_type", "dtype", "allowed", "epsilon"),
    [
        ("cuda", torch.float32, "tf32", 2**-10),
        ("cuda", torch.float32, "ieee", 2**-23),
        ("cuda", torch.float32, "none", 2**-23),
        ("cpu", torch.float32, "tf32", 2**-23),
        ("cuda", torch.bfloat16, "tf32", 2**-7),
        ("cuda", torch.float16, "tf32", 2**-10),
    ],
)
def test_rounding_is_the_dtypes_and_that_of_tf32_where_it_is_allowed(
    device_type: str, dtype: torch.dtype, allowed: str, epsilon: float
) -> None:
    assert product_epsilon(device_type, dtype, allowed) == epsilon


def test_what_is_no_model_is_told_so() -> None:
    name: Any = "tiny"
    with pytest.raises(ValueError, match="model='tiny' is not a Glm4vVisionModel, which load_enc"):
        check_encoder(name)


@pytest.fixture
def tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    yield
    torch.backends.cuda.matmul.fp32_precision = before


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("preset", ["tiny", "small", "medium", "large"])
def test_an_encoder_on_a_gpu_with_tf32_passes(tf32: None, preset: str) -> None:
    check_encoder(load_encoder(preset, device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("preset", ["tiny", "small", "medium", "large"])
def test_an_encoder_on_a_gpu_passes(preset: str, dtype: torch.dtype) -> None:
    check_encoder(load_encoder(preset, device="cuda", dtype=dtype))


def to_all(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
    return attend(q, k, v, Segments.of([len(q)], q.device))


def last_two_joined(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
    *others, first, second = segments.lengths
    return attend(q, k, v, Segments.of([*others, first + second], q.device))


def unscaled(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
    return attend(q * q.shape[-1] ** 0.5, k, v, segments)


def heads_swapped(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
    return attend(q, k, v, segments).flip(1)


def a_head_zero(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
    return torch.cat([torch.zeros_like(q[:, :1]), attend(q, k, v, segments)[:, 1:]], dim=1)


def last_row(value: float) -> Callable[..., torch.Tensor]:
    def changed(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
        out = attend(q, k, v, segments).clone()
        out[-1] = value
        return out

    return changed


@pytest.mark.parametrize(
    "broken",
    [to_all, last_two_joined, unscaled, heads_swapped, a_head_zero, last_row(0), last_row(9)],
    ids=["to_all", "last_two_joined", "unscaled", "heads_swapped", "a_head_zero", "zero", "stale"],
)
def test_wrong_attention_in_the_tower_is_refused(
    small: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch, broken: Callable[..., torch.Tensor]
) -> None:
    monkeypatch.setattr(blocks, "attend", broken)
    with pytest.raises(SelfCheckError, match=r"tokens are off by 0\.\d+ of their size"):
        check_encoder(small)


def test_one_row_that_is_not_a_number_is_refused(
    small: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "attend", last_row(float("nan")))
    with pytest.raises(SelfCheckError, match="tokens are off by nan of their size"):
        check_encoder(small)


@pytest.mark.parametrize("share", [0.1, 1.0])
def test_a_kernel_that_is_wrong_for_long_segments_is_refused(
    small: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    """Longer than any of the known input's: the last keys count for less than they should."""
    real = attention._attend_sdpa

    def shortsighted(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
        v = v.clone()
        v[256 : segments.lengths[0]] *= 1 - share
        return real(q, k, v, segments)

    monkeypatch.setattr(attention, "_attend_sdpa", shortsighted)
    with pytest.raises(SelfCheckError, match="attention results are off by 0"):
        check_encoder(small)


@pytest.mark.parametrize("segment", range(5))
def test_a_kernel_that_leaves_a_row_unwritten_is_refused(
    small: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch, segment: int
) -> None:
    real = attention._attend_sdpa

    def unwritten(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
        out = real(q, k, v, segments)
        out[sum(segments.lengths[: segment + 1]) - 1] = float("nan")
        return out

    monkeypatch.setattr(attention, "_attend_sdpa", unwritten)
    with pytest.raises(SelfCheckError, match="attention results are off by nan"):
        check_encoder(small)


def test_the_callers_default_device_is_not_asked(small: Glm4vVisionModel) -> None:
    with torch.device("meta"):
        check_encoder(small)


@pytest.mark.parametrize("kernel", ["varlen", "sdpa"])
def test_the_chosen_kernel_is_checked(
    monkeypatch: pytest.MonkeyPatch, kernel: AttentionKernel
) -> None:
    given: dict[str, tuple[int, ...]] = {}

    def watched(name: str) -> Callable[..., torch.Tensor]:
        def attend(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
            given.setdefault(name, segments.lengths)
            return real(q, k, v, segments)

        return attend

    real = attention._attend_sdpa
    monkeypatch.setattr(attention, "_attend_varlen", watched("varlen"))
    monkeypatch.setattr(attention, "_attend_sdpa", watched("sdpa"))
    monkeypatch.setattr(attention, "takes_varlen", lambda x: True)
    model = load_encoder("tiny")
    model.use_attention(kernel)
    check_encoder(model)
    assert given == {kernel: (300, 64, 64, 5, 1)}


def test_rotary_angles_of_the_wrong_sign_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "rotate", lambda x, cos, sin: rotate(x, cos, -sin))
    with pytest.raises(SelfCheckError):
        check_encoder(load_encoder("small"))


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("blocks.3.attn.qkv.weight", 1.01),
        ("blocks.3.attn.proj.weight", 1.01),
        ("blocks.3.mlp.down_proj.weight", 1.01),
        ("blocks.3.norm2.weight", 1.01),
        ("merger.down_proj.weight", 1.001),
        ("embeddings.position_embedding.weight", 1.1),
    ],
)
def test_copies_of_weights_that_have_gone_stale_are_refused(name: str, factor: float) -> None:
    """A tower that computes with other weights than its state tells of, in float32."""
    told = load_encoder("small")
    stale = copy.deepcopy(told)
    stale.get_parameter(name).mul_(factor)
    stale.state_dict = told.state_dict  # type: ignore[method-assign]
    with pytest.raises(
        SelfCheckError, match=r"over the 0\.0001 that torch.float32 on cpu explains"
    ):
        check_encoder(stale)
