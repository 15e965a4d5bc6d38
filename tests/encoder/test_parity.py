"""Against transformers: its stored answers for each family, and the model itself."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.glm4v import Glm4vVisionConfig as ReferenceConfig
from transformers.models.glm4v import Glm4vVisionModel as ReferenceModel

from encoder import Glm4vVisionConfig, Glm4vVisionModel, load_encoder

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64).view(3, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64).view(3, 1)

# Non-square, smaller and larger than the position table of 4 by 4, one patch of a merge block
# high, many of one size, several slices.
GRIDS = [(1, 4, 6), (1, 2, 2), (1, 2, 14), (3, 4, 4), (1, 4, 4), (1, 12, 10), (2, 6, 2)]


def normalize(levels: torch.Tensor) -> torch.Tensor:
    """As transformers' processors do, in float64."""
    pixels = levels.double().view(len(levels), 3, -1) / 255
    return ((pixels - MEAN) / STD).flatten(1)


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Largest difference, over the largest value of the reference."""
    return float((ours.double() - reference.double()).abs().max() / reference.abs().max())


def make_levels(grids: list[tuple[int, int, int]], values: int = 1176) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    patches = sum(t * h * w for t, h, w in grids)
    return torch.randint(0, 256, (patches, values), generator=generator).to(torch.uint8)


def make_reference(model: Glm4vVisionModel, dtype: torch.dtype = torch.float32) -> ReferenceModel:
    fields = model.config.to_dict()
    del fields["model_type"], fields["rope_theta"]
    parameters = {"rope_type": "axial", "rope_theta": model.config.rope_theta}
    config = ReferenceConfig(**fields, rope_parameters=parameters, attn_implementation="eager")
    reference = ReferenceModel(config)
    reference.load_state_dict(model.state_dict())
    return reference.eval().to(dtype)


def run_reference(
    reference: ReferenceModel, pixels: torch.Tensor, grids: list[tuple[int, int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    # Upstream takes a row a slice; t > 1 is an IndexError there.
    rows = [(1, h, w) for t, h, w in grids for _ in range(t)]
    with torch.no_grad():
        output = reference(pixels, torch.tensor(rows))
    return output.last_hidden_state, output.pooler_output


@pytest.mark.parametrize("family", ["glm4v", "glm4v_moe", "glm46v", "glmga"])
@pytest.mark.parametrize("given_as", ["levels", "pixels"])
def test_stored_answers_of_each_family(goldens: Path, family: str, given_as: str) -> None:
    answer = load_file(goldens / f"answer-{family}.safetensors")
    model = load_encoder(str(goldens / f"checkpoint-{family}"))
    levels = answer["levels"]
    pixel_values = levels if given_as == "levels" else normalize(levels).float()
    ours = model.forward_features(pixel_values, answer["grid_thw"])
    assert relative_error(ours.last_hidden_state, answer["last_hidden_state"]) < 1e-5
    assert relative_error(ours.pooler_output, answer["pooler_output"]) < 1e-5


@pytest.mark.parametrize("given_as", ["levels", "pixels"])
def test_results_equal_transformers(small_model: Glm4vVisionModel, given_as: str) -> None:
    levels = make_levels(GRIDS)
    pixels = normalize(levels).float()
    hidden, pooled = run_reference(make_reference(small_model), pixels, GRIDS)
    ours = small_model.forward_features(levels if given_as == "levels" else pixels, GRIDS)
    assert relative_error(ours.last_hidden_state, hidden) < 1e-5
    assert relative_error(ours.pooler_output, pooled) < 1e-5


def test_a_stills_frame_sent_once_equals_its_copy(small_model: Glm4vVisionModel) -> None:
    grids = [(1, 4, 6), (1, 2, 2)]
    still = make_levels(grids, values=588)
    both = still.view(-1, 3, 1, 196).expand(-1, -1, 2, -1).reshape(-1, 1176)
    pixels = normalize(both).float()
    _, pooled = run_reference(make_reference(small_model), pixels, grids)
    assert relative_error(small_model(still, grids), pooled) < 1e-5
    once = normalize(still).float()
    assert relative_error(small_model(once, grids), pooled) < 1e-5


def test_names_of_the_state_equal_transformers(small_model: Glm4vVisionModel) -> None:
    reference = make_reference(small_model).state_dict()
    ours = small_model.state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {
        name: tensor.shape for name, tensor in reference.items()
    }


@pytest.mark.parametrize("theta", [100.0, 500000.0])
def test_rope_theta_counts(small_config: Glm4vVisionConfig, theta: float) -> None:
    config = Glm4vVisionConfig.from_dict(small_config.to_dict() | {"rope_theta": theta})
    torch.manual_seed(0)
    model = Glm4vVisionModel(config).requires_grad_(False)
    levels = make_levels([(1, 12, 10)])
    _, pooled = run_reference(make_reference(model), normalize(levels).float(), [(1, 12, 10)])
    assert relative_error(model(levels, [(1, 12, 10)]), pooled) < 1e-5


def make_picture(kind: str) -> torch.Tensor:
    """Levels of 24 patches: one colour, a faint texture, or noise."""
    if kind == "noise":
        return make_levels([(1, 4, 6)])
    flat = torch.tensor([131, 90, 203], dtype=torch.uint8).view(1, 3, 1).expand(24, 3, 392)
    faint = make_levels([(1, 4, 6)]).view(24, 3, 392) % 3
    return (flat if kind == "flat" else flat + faint).flatten(1)


@pytest.mark.parametrize("kind", ["flat", "faint", "noise"])
def test_float64_referees_the_folding(kind: str) -> None:
    model = load_encoder("tiny", seed=3)
    levels, grids = make_picture(kind), [(1, 4, 6)]
    truth = run_reference(make_reference(model, torch.float64), normalize(levels), grids)
    ours = model.forward_features(levels, grids)
    for result, reference in zip(ours, truth, strict=True):
        assert relative_error(result, reference) < 2e-6


@pytest.mark.parametrize("kind", ["flat", "faint", "noise"])
@pytest.mark.parametrize("preset", ["tiny", "small"])
def test_bfloat16_keeps_the_direction_of_pooled_embeddings(preset: str, kind: str) -> None:
    levels, grids = make_picture(kind), [(1, 4, 6)]
    reference = make_reference(load_encoder(preset))
    _, pooled = run_reference(reference, normalize(levels).float(), grids)
    ours = load_encoder(preset, dtype=torch.bfloat16)(levels, grids)
    assert ours.dtype == torch.bfloat16
    cosine = torch.cosine_similarity(ours.float().mean(0), pooled.mean(0), dim=0)
    assert cosine > 0.999
