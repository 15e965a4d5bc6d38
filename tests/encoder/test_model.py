import copy
from typing import Any

import numpy as np
import pytest
import torch
from transformers.models.glm4v.configuration_glm4v import Glm4vVisionConfig as ReferenceConfig

from encoder import (
    AttentionKernel,
    Glm4vVisionConfig,
    Glm4vVisionModel,
    GlmgaConfig,
    load_encoder,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GRIDS = [(1, 4, 6), (2, 4, 4), (1, 2, 2), (3, 4, 6)]


def make_levels(patches: int, values: int = 1176) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (patches, values), generator=generator).to(torch.uint8)


def sizes(grids: list[tuple[int, int, int]]) -> list[int]:
    return [t * h * w for t, h, w in grids]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("item", range(len(GRIDS)))
def test_what_is_not_finite_in_an_item_stays_in_it(
    small_model: Glm4vVisionModel, item: int, dtype: torch.dtype, value: float
) -> None:
    pixels = torch.randn(sum(sizes(GRIDS)), 1176, generator=torch.Generator().manual_seed(3))
    model = copy.deepcopy(small_model).to(dtype)
    clean = model.forward_features(pixels, GRIDS)
    # In one value of the last patch, beside the next item's first.
    pixels.split(sizes(GRIDS))[item][-1, -1] = value
    spoiled = model.forward_features(pixels, GRIDS)
    tokens = [size // 4 for size in sizes(GRIDS)]
    for before, after in zip(clean, spoiled, strict=True):
        for n, parts in enumerate(zip(before.split(tokens), after.split(tokens), strict=True)):
            assert torch.equal(*parts) == (n != item)
            assert parts[1].isfinite().all() == (n != item)


def test_memory_beside_the_pixels_is_not_read(small_model: Glm4vVisionModel) -> None:
    """A buffer with spare rows and columns, which a caller slices."""
    grids = [(1, 4, 6), (1, 4, 4)]
    buffer = torch.full((40 + 32, 1176 + 16), float("nan"))
    pixels = torch.randn(40, 1176, generator=torch.Generator().manual_seed(3))
    buffer[16:-16, 8:-8] = pixels
    assert torch.equal(small_model(buffer[16:-16, 8:-8], grids), small_model(pixels, grids))


def test_slices_as_rows_of_their_own_equal_one_row(small_model: Glm4vVisionModel) -> None:
    levels = make_levels(48)
    whole = small_model(levels, [(2, 4, 6)])
    assert torch.equal(small_model(levels, [(1, 4, 6), (1, 4, 6)]), whole)


def test_a_tensor_of_grids_equals_a_list(small_model: Glm4vVisionModel) -> None:
    levels = make_levels(40)
    grids = [(1, 4, 6), (1, 4, 4)]
    assert torch.equal(small_model(levels, torch.tensor(grids)), small_model(levels, grids))


def test_other_weights_take_effect_at_once(small_model: Glm4vVisionModel) -> None:
    levels, grids = make_levels(24), [(1, 4, 6)]
    small_model(levels, grids)
    weights = {name: tensor * 1.5 for name, tensor in small_model.state_dict().items()}
    small_model.load_state_dict(weights)
    fresh = Glm4vVisionModel(small_model.config).requires_grad_(False)
    fresh.load_state_dict(weights)
    assert torch.equal(small_model(levels, grids), fresh(levels, grids))
    # Not even a write behind autograd's back is missed.
    small_model.patch_embed.proj.weight.data.zero_()
    fresh.patch_embed.proj.weight.data.zero_()
    assert torch.equal(small_model(levels, grids), fresh(levels, grids))


def test_a_model_cast_as_a_whole_still_runs(small_model: Glm4vVisionModel) -> None:
    levels, grids = make_levels(24), [(1, 4, 6)]
    cast = copy.deepcopy(small_model).to(torch.bfloat16)(levels, grids)
    assert cast.dtype == torch.bfloat16
    exact = small_model(levels, grids)
    assert torch.cosine_similarity(cast.float().flatten(), exact.flatten(), dim=0) > 0.999


def test_gradients_reach_every_parameter(small_model: Glm4vVisionModel) -> None:
    small_model.requires_grad_(True)
    small_model(make_levels(40), [(1, 4, 6), (1, 4, 4)]).square().sum().backward()
    for name, parameter in small_model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_kernels_can_be_chosen_and_change_nothing_on_a_cpu(small_model: Glm4vVisionModel) -> None:
    expected = small_model(make_levels(24), [(1, 4, 6)])
    assert small_model.attention == "varlen"
    kernel: AttentionKernel
    for kernel in ("sdpa", "math", "varlen"):
        small_model.use_attention(kernel)
        assert small_model.attention == kernel
        assert torch.equal(small_model(make_levels(24), [(1, 4, 6)]), expected)
    with pytest.raises(ValueError, match="kernel='cudnn' is none of varlen, sdpa, math"):
        small_model.use_attention("cudnn")  # type: ignore[arg-type]


@needs_gpu
def test_the_host_waits_for_nothing_while_it_starts_a_pack() -> None:
    model = load_encoder("tiny", device="cuda", dtype=torch.bfloat16)
    levels = make_levels(sum(sizes(GRIDS))).cuda()
    expected = model(levels, GRIDS)
    torch.cuda.set_sync_debug_mode("error")
    try:
        again = model(levels, GRIDS)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(again, expected)


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([(1, 4, 4)], "grid_thw covers 16 patches, pixel_values has 24"),
        ([], "grid_thw covers 0 patches, pixel_values has 24"),
        (
            [(1, 3, 8)],
            r"grid_thw\[0\]=\(1, 3, 8\): h and w must be multiples of spatial_merge_size=2",
        ),
        ([(1, 4, 6), (0, 2, 2)], r"grid_thw\[1\]=\(0, 2, 2\) is not three positive integers"),
        ([(4, 6)], r"grid_thw\[0\]=\(4, 6\) is not three positive integers"),
        ([(1, 4, 6.5)], "is not three positive integers"),
        ([(1, 4, float("inf"))], "is not three positive integers"),
        ([(1, 4, float("nan"))], r"grid_thw\[0\]=\(1, 4, nan\) is not three positive integers"),
        ([(1, 4, None)], "is not three positive integers"),
        ((1, 4, 6), r"grid_thw=\(1, 4, 6\) is not a list of grids; .* in a list: \[\(1, 4, 6\)\]$"),
        (torch.tensor([1, 4, 6]), r"grid_thw=\[1, 4, 6\] is not a list of grids"),
        (5, "grid_thw=5 is not a list of grids"),
        (None, "grid_thw=None is not a list of grids"),
        ([(1, 4, 6.0)], r"grid_thw\[0\]=\(1, 4, 6\.0\) is not three positive integers"),
        (torch.tensor([[1.0, 4.0, 6.0]]), r"\[0\]=\[1\.0, 4\.0, 6\.0\] is not three positive"),
        (torch.ones(1, 1, 3, dtype=torch.int64), r"\[0\]=\[\[1, 1, 1\]\] is not three positive"),
        ([torch.tensor([1, 4])], r"grid_thw\[0\]=\[1, 4\] is not three positive integers"),
    ],
)
def test_grids_that_do_not_fit_are_shown(
    small_model: Glm4vVisionModel, grids: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        small_model(make_levels(24), grids)


@pytest.mark.parametrize(
    ("pixel_values", "message"),
    [
        (torch.zeros(24, 1000, dtype=torch.uint8), r"shape \(24, 1000\); expected .* 1176\).* 588"),
        (torch.zeros(24, 3, 392), r"shape \(24, 3, 392\)"),
        (torch.zeros(24), r"shape \(24,\); expected \(num_patches, 1176\)"),
        (torch.zeros(24, 1176, dtype=torch.int64), "pixel_values is torch.int64; expected uint8"),
        (np.zeros((24, 1176)), r"<numpy.ndarray> is not a torch .*, 1176\); torch.from_numpy"),
        ([[0.5] * 1176] * 24, r"^pixel_values: \[0.5, 0.5, .* \.\.\.\] is not a torch tensor"),
        ([torch.zeros(24, 1176), None], "^pixel_values: None is not a torch tensor"),
        (None, "^pixel_values: None is not a torch tensor"),
        ({"pixel_values": torch.zeros(24, 1176)}, "^pixel_values: {'pixel_values': .* is not a"),
    ],
)
def test_pixel_values_that_do_not_fit_are_shown(
    small_model: Glm4vVisionModel, pixel_values: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        small_model(pixel_values, [(1, 4, 6)])
    assert "\n" not in str(caught.value)


def test_arguments_in_the_wrong_order_are_noticed(small_model: Glm4vVisionModel) -> None:
    pixels: Any = torch.zeros(24, 1176)
    with pytest.raises(ValueError, match=r"pixel_values: \(1, 4, 6\) is not a torch tensor"):
        small_model([(1, 4, 6)], pixels)  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"pixel_values has shape \(1, 3\); expected"):
        small_model(torch.tensor([(1, 4, 6)]), pixels)


@pytest.mark.parametrize("pixel_values", [torch.zeros(0, 1176), []])
def test_an_empty_pack_is_refused(small_model: Glm4vVisionModel, pixel_values: Any) -> None:
    with pytest.raises(ValueError, match="an empty pack: pixel_values and grid_thw need one item"):
        small_model(pixel_values, [])


@pytest.mark.parametrize(
    ("config", "shown"),
    [
        (GlmgaConfig(), "<encoder.whole_config.GlmgaConfig>"),
        (ReferenceConfig(), "<transformers.*Glm4vVisionConfig>"),
        ({"depth": 1}, "{'depth': 1}"),
    ],
)
def test_a_model_is_made_of_its_own_config_alone(config: Any, shown: str) -> None:
    message = f"config={shown} is not a Glm4vVisionConfig: .* vision_config, .*from_dict"
    with pytest.raises(ValueError, match=message) as caught:
        Glm4vVisionModel(config)
    assert "\n" not in str(caught.value)


def test_levels_need_the_channels_that_clip_normalises() -> None:
    model = Glm4vVisionModel(
        Glm4vVisionConfig(
            depth=1,
            hidden_size=8,
            num_heads=1,
            in_channels=1,
            out_hidden_size=8,
            intermediate_size=8,
        )
    )
    with pytest.raises(ValueError, match="uint8 pixel_values need 3 channels, not 1"):
        model(torch.zeros(4, 392, dtype=torch.uint8), [(1, 2, 2)])
    assert model(torch.zeros(4, 392), [(1, 2, 2)]).shape == (1, 8)


def test_patches_with_one_frame_and_with_all_share_a_pack(small_model: Glm4vVisionModel) -> None:
    stills, clips = make_levels(24 + 16, 588), make_levels(2 * 24, 1176)
    grids = [(1, 4, 6), (1, 4, 4), (2, 4, 6)]
    packed = small_model.forward_features([stills, clips], grids)
    alone = [small_model.forward_features(stills, grids[:2])]
    alone += [small_model.forward_features(clips, grids[2:])]
    for name in ("last_hidden_state", "pooler_output"):
        expected = torch.cat([getattr(output, name) for output in alone])
        torch.testing.assert_close(getattr(packed, name), expected, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="grid_thw covers 40 patches, pixel_values has 88"):
        small_model([stills, clips], grids[:2])
