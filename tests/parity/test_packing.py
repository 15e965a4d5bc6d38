"""An item's result is its own: neither its neighbours nor its place in a pack change it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from encoder import Glm4vVisionConfig, load_encoder
from tests.parity.generated import Grid, generated, packs, towers
from tests.parity.reference import make_levels, relative_error
from tests.support.towers import random_model


def num_patches(grids: list[Grid]) -> list[int]:
    return [t * h * w for t, h, w in grids]


def num_tokens(grids: list[Grid], config: Glm4vVisionConfig) -> list[int]:
    return [patches // config.spatial_merge_size**2 for patches in num_patches(grids)]


@generated(40)
@given(data=st.data(), config=towers())
def test_packed_items_equal_items_alone(data: st.DataObject, config: Glm4vVisionConfig) -> None:
    grids = data.draw(packs(config.spatial_merge_size, most_items=6))
    model = random_model(config)
    levels = make_levels(grids, config.patch_dim)
    packed = model.forward_features(levels, grids)
    parts = [output.split(num_tokens(grids, config)) for output in packed]
    items = zip(levels.split(num_patches(grids)), grids, *parts, strict=True)
    for patches, grid, hidden, pooled in items:
        alone = model.forward_features(patches, [grid])
        assert relative_error(hidden, alone.last_hidden_state) < 1e-6
        assert relative_error(pooled, alone.pooler_output) < 1e-6


@pytest.mark.parametrize("preset", ["tiny", "small", "medium"])
@pytest.mark.parametrize("still", [False, True])
def test_the_smallest_items_packed_equal_themselves_alone(preset: str, still: bool) -> None:
    model = load_encoder(preset)
    # Of one to five tokens, whose products alone have few rows.
    grids = [(1, 2, 2), (1, 2, 4), (1, 6, 2), (1, 2, 8), (1, 2, 10), (1, 8, 8)]
    levels = make_levels(grids, model.config.patch_dim // (2 if still else 1))
    packed = model(levels, grids).split(num_tokens(grids, model.config))
    for patches, grid, pooled in zip(levels.split(num_patches(grids)), grids, packed, strict=True):
        assert relative_error(pooled, model(patches, [grid])) < 1e-6


@generated(40)
@given(data=st.data(), config=towers())
def test_items_in_another_order_give_the_same(
    data: st.DataObject, config: Glm4vVisionConfig
) -> None:
    grids = data.draw(packs(config.spatial_merge_size, most_items=6))
    order = data.draw(st.permutations(range(len(grids))))
    model = random_model(config)
    levels = make_levels(grids, config.patch_dim)
    items = levels.split(num_patches(grids))
    tokens = model(levels, grids).split(num_tokens(grids, config))
    shuffled = model(torch.cat([items[i] for i in order]), [grids[i] for i in order])
    assert relative_error(shuffled, torch.cat([tokens[i] for i in order])) < 1e-6


@generated(40)
@given(data=st.data(), config=towers(), level=st.integers(0, 255))
def test_a_neighbour_that_changes_changes_nothing(
    data: st.DataObject, config: Glm4vVisionConfig, level: int
) -> None:
    grids = data.draw(packs(config.spatial_merge_size, most_items=6))
    changed = data.draw(st.integers(0, len(grids) - 1))
    model = random_model(config)
    levels = make_levels(grids, config.patch_dim)
    before = model(levels, grids).split(num_tokens(grids, config))
    levels.split(num_patches(grids))[changed].fill_(level)
    after = model(levels, grids).split(num_tokens(grids, config))
    # Bit for bit: the shapes are the same, and so are the kernels.
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [
        index != changed for index in range(len(grids))
    ]
