"""The plain reference against transformers in float64: two ways that share no code."""

import pytest
import torch
from transformers.models.glm4v import Glm4vVisionConfig as ReferenceConfig
from transformers.models.glm4v import Glm4vVisionModel as ReferenceModel

from encoder import Glm4vVisionConfig, Glm4vVisionModel, load_encoder
from encoder.reference import normalized, reference_features
from encoder.self_check import max_error
from tests.support.towers import random_model

# Of several lengths, two of them equal, one patch of a merge block high, several slices.
CELLS = [(1, 2, 3), (1, 1, 1), (1, 1, 7), (3, 2, 2), (1, 1, 1), (1, 6, 5)]


def make_config(**fields: int | float | bool) -> Glm4vVisionConfig:
    small = {"depth": 2, "hidden_size": 48, "num_heads": 3, "image_size": 70}
    return Glm4vVisionConfig(**(small | {"out_hidden_size": 40, "intermediate_size": 56} | fields))


def upstream(
    model: Glm4vVisionModel, pixels: torch.Tensor, grids: list[tuple[int, int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    fields = model.config.to_dict()
    del fields["model_type"], fields["rope_theta"]
    parameters = {"rope_type": "axial", "rope_theta": model.config.rope_theta}
    config = ReferenceConfig(**fields, rope_parameters=parameters, attn_implementation="eager")
    reference = ReferenceModel(config)
    reference.load_state_dict(model.state_dict())
    rows = [(1, h, w) for t, h, w in grids for _ in range(t)]
    with torch.no_grad():
        output = reference.double()(pixels, torch.tensor(rows))
    return output.last_hidden_state, output.pooler_output


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"attention_bias": True, "rope_theta": 300.0, "rms_norm_eps": 1e-3},
        {"patch_size": 16, "temporal_patch_size": 1, "image_size": 80, "num_heads": 12},
        {"spatial_merge_size": 1, "temporal_patch_size": 4, "num_heads": 1},
        {"spatial_merge_size": 3, "num_heads": 2},
    ],
    ids=str,
)
def test_the_reference_is_transformers_in_float64(fields: dict[str, float]) -> None:
    model = random_model(make_config(**fields))
    merge = model.config.spatial_merge_size
    grids = [(t, merge * h, merge * w) for t, h, w in CELLS]
    patches = sum(t * h * w for t, h, w in grids)
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(patches, model.config.patch_dim, generator=generator).double()
    ours = reference_features(model.state_dict(), model.config, pixels, grids)
    for found, expected in zip(ours, upstream(model, pixels, grids), strict=True):
        assert found.dtype == torch.float64
        # transformers keeps norms, positions and rotary angles in float32.
        assert max_error(found, expected) < 5e-6


def test_levels_are_normalised_by_hand() -> None:
    config = make_config(patch_size=1, image_size=5)
    levels = torch.tensor([[0, 128, 255]], dtype=torch.uint8)
    first = (0 - 0.48145466) / 0.26862954
    second = (128 / 255 - 0.4578275) / 0.26130258
    third = (1 - 0.40821073) / 0.27577711
    expected = torch.tensor([[first] * 2 + [second] * 2 + [third] * 2], dtype=torch.float64)
    torch.testing.assert_close(normalized(levels, config), expected)
    both = levels.repeat_interleave(2, dim=1)
    assert torch.equal(normalized(both, config), normalized(levels, config))


def test_the_model_is_within_rounding_of_the_reference() -> None:
    model = load_encoder("small", seed=5)
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 256, (24 + 3 * 16 + 4, 588), generator=generator).to(torch.uint8)
    grids = [(1, 4, 6), (3, 4, 4), (1, 2, 2)]
    ours = model.forward_features(levels, grids)
    pixels = normalized(levels, model.config)
    exact = reference_features(model.state_dict(), model.config, pixels, grids)
    single = reference_features(
        model.state_dict(), model.config, pixels, grids, dtype=torch.float32
    )
    for found, plain, expected in zip(ours, single, exact, strict=True):
        assert plain.dtype == torch.float32
        assert max_error(plain, expected) < 5e-6
        assert max_error(found, expected) < 5e-6


def test_weights_are_converted_one_at_a_time() -> None:
    """On a GPU, no more than one of them is in the host's memory."""
    model = random_model(make_config())
    asked: list[str] = []

    class Watched(dict[str, torch.Tensor]):
        def __getitem__(self, name: str) -> torch.Tensor:
            asked.append(name)
            return super().__getitem__(name)

    pixels = torch.zeros(4, model.config.patch_dim)
    reference_features(Watched(model.state_dict()), model.config, pixels, [(1, 2, 2)])
    assert sorted(asked) == sorted(model.state_dict())
    blocks = [name for name in asked if name.startswith("blocks")]
    assert blocks == sorted(blocks, key=lambda name: name.split(".")[1])
