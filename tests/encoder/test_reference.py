"""The plain reference; `tests/parity` holds it against transformers in float64."""

import torch

from encoder import Glm4vVisionConfig, load_encoder
from encoder.reference import normalized, reference_features
from encoder.self_check import max_error
from tests.support.towers import random_model


def make_config(**fields: int | float | bool) -> Glm4vVisionConfig:
    small = {"depth": 2, "hidden_size": 48, "num_heads": 3, "image_size": 70}
    return Glm4vVisionConfig(**(small | {"out_hidden_size": 40, "intermediate_size": 56} | fields))


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


def test_in_float32_it_is_within_rounding_of_itself() -> None:
    model = load_encoder("small", seed=5)
    generator = torch.Generator().manual_seed(3)
    levels = torch.randint(0, 256, (24 + 3 * 16 + 4, 588), generator=generator).to(torch.uint8)
    grids = [(1, 4, 6), (3, 4, 4), (1, 2, 2)]
    pixels = normalized(levels, model.config)
    exact = reference_features(model.state_dict(), model.config, pixels, grids)
    single = reference_features(
        model.state_dict(), model.config, pixels, grids, dtype=torch.float32
    )
    for plain, expected in zip(single, exact, strict=True):
        assert plain.dtype == torch.float32
        assert max_error(plain, expected) < 5e-6


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
