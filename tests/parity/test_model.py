"""The tower against transformers: its stored answers for each family, and the model itself."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from hypothesis import given, note
from hypothesis import strategies as st
from safetensors.torch import load_file

from encoder import Glm4vVisionConfig, load_encoder
from encoder.reference import reference_features
from tests.parity.generated import generated, packs, towers
from tests.parity.reference import (
    Grids,
    make_levels,
    make_reference,
    normalize,
    repeat_frames,
    run_both,
    run_reference,
    worst_error,
)
from tests.support.towers import SMALL, random_model

SHAPES = {
    "one token": [(1, 2, 2)],
    "the size of the position table": [(1, 4, 4)],
    "a hundred tokens of their own": [(1, 2, 2)] * 100,
    "as wide as the aspect ratio allows": [(1, 2, 400)],
    "as high as the aspect ratio allows": [(1, 400, 2)],
    "wider than any picture": [(1, 2, 1600)],
    "one long clip of small slices": [(50, 2, 4)],
    "of every kind": [(1, 4, 6), (1, 2, 2), (1, 2, 14), (3, 4, 4), (1, 4, 4), (2, 6, 2)],
}


@pytest.mark.parametrize("family", ["glm4v", "glm4v_moe", "glm46v", "glmga"])
@pytest.mark.parametrize("given_as", ["levels", "pixels"])
def test_stored_answers_of_each_family(goldens: Path, family: str, given_as: str) -> None:
    answer = load_file(goldens / f"answer-{family}.safetensors")
    model = load_encoder(str(goldens / f"checkpoint-{family}"))
    levels = answer["levels"]
    pixel_values = levels if given_as == "levels" else normalize(levels).float()
    ours = model.forward_features(pixel_values, answer["grid_thw"])
    assert worst_error(ours, (answer["last_hidden_state"], answer["pooler_output"])) < 1e-5


@generated(60)
@given(data=st.data(), config=towers(), seed=st.integers(0, 9))
def test_any_tower_equals_transformers(
    data: st.DataObject, config: Glm4vVisionConfig, seed: int
) -> None:
    # transformers runs all of these; only rows with t > 1 it refuses, and they are unfolded.
    grids = data.draw(packs(config.spatial_merge_size))
    model = random_model(config, seed)
    once = data.draw(st.booleans())
    frames = 1 if once else config.temporal_patch_size
    levels = make_levels(grids, 3 * frames * config.patch_size**2, seed)
    pixels = normalize(levels)
    theirs, truth = run_both(
        model, repeat_frames(pixels, config.temporal_patch_size) if once else pixels, grids
    )
    note(f"transformers' own error: {worst_error(theirs, truth):.1e}")
    assert worst_error(model.forward_features(levels, grids), truth) < 1e-5
    assert worst_error(model.forward_features(pixels.float(), grids), truth) < 1e-5


@generated(20)
@given(data=st.data(), config=towers())
def test_the_referee_is_the_plain_reference(data: st.DataObject, config: Glm4vVisionConfig) -> None:
    grids = data.draw(packs(config.spatial_merge_size, most_items=2))
    model = random_model(config)
    pixels = normalize(make_levels(grids, 3 * config.temporal_patch_size * config.patch_size**2))
    _, truth = run_both(model, pixels, grids)
    plain = reference_features(model.state_dict(), config, pixels, grids)
    assert worst_error(plain, truth) < 1e-12


@pytest.mark.parametrize("grids", SHAPES.values(), ids=SHAPES)
def test_any_shape_equals_transformers(grids: Grids) -> None:
    model = random_model(SMALL)
    levels = make_levels(grids)
    _, truth = run_both(model, normalize(levels), grids)
    assert worst_error(model.forward_features(levels, grids), truth) < 1e-5


def test_the_largest_grid_equals_transformers() -> None:
    # One block, one narrow head: attention takes 214 * 140 squared steps.
    config = Glm4vVisionConfig(
        depth=1, hidden_size=8, num_heads=1, out_hidden_size=16, intermediate_size=24
    )
    model, grids = random_model(config), [(1, 214, 140)]
    still = make_levels(grids, values=588)
    reference = make_reference(model).double()
    truth = run_reference(reference, repeat_frames(normalize(still), 2), grids)
    assert worst_error(model.forward_features(still, grids), truth) < 1e-5


def test_errors_are_no_larger_than_transformers_own() -> None:
    ours, theirs = [], []
    for seed in range(20):
        model = random_model(SMALL, seed)
        levels = make_levels(SHAPES["of every kind"], seed=seed)
        rounded, truth = run_both(model, normalize(levels), SHAPES["of every kind"])
        ours.append(worst_error(model.forward_features(levels, SHAPES["of every kind"]), truth))
        theirs.append(worst_error(rounded, truth))
    assert statistics.median(ours) < statistics.median(theirs)


def test_names_of_the_state_equal_transformers() -> None:
    model = random_model(SMALL)
    reference = make_reference(model).state_dict()
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in reference.items()
    }
