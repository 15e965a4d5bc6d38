"""transformers' model with our weights, and how far two results lie apart.

The referee is that model in float64. It is not float64 all through: norms, rotary angles and the
interpolation of positions stay in float32 there. `plain.py` holds it against a computation that is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers.models.glm4v import Glm4vVisionConfig as ReferenceConfig
from transformers.models.glm4v import Glm4vVisionModel as ReferenceModel

from encoder import Glm4vVisionConfig, Glm4vVisionModel

Grids = Sequence[tuple[int, int, int]]
Outputs = tuple[torch.Tensor, torch.Tensor]

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64).view(3, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64).view(3, 1)


def random_model(config: Glm4vVisionConfig, seed: int = 0) -> Glm4vVisionModel:
    """A model none of whose weights is trivial, biases and norms included."""
    torch.manual_seed(seed)
    model = Glm4vVisionModel(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    return model


def cast_model(model: Glm4vVisionModel, dtype: torch.dtype) -> Glm4vVisionModel:
    """The same weights as `load_encoder` would hold them for another dtype."""
    cast = Glm4vVisionModel(model.config, device="meta", dtype=dtype)
    targets = dict(cast.named_parameters())
    state = {name: tensor.to(targets[name].dtype) for name, tensor in model.state_dict().items()}
    cast.load_state_dict(state, assign=True)
    return cast.eval().requires_grad_(False)


def make_reference(model: Glm4vVisionModel) -> ReferenceModel:
    """transformers' model, which shares our weights until it is cast."""
    fields = model.config.to_dict()
    del fields["model_type"], fields["rope_theta"]
    parameters = {"rope_type": "axial", "rope_theta": model.config.rope_theta}
    # Eager attention would round its softmax to float32 even in float64.
    config = ReferenceConfig(**fields, rope_parameters=parameters, attn_implementation="sdpa")
    with torch.device("meta"):
        reference = ReferenceModel(config)
    reference.load_state_dict(model.state_dict(), assign=True)
    # Its frequencies are no part of the state.
    reference.rotary_pos_emb = type(reference.rotary_pos_emb)(config)
    return reference.eval().requires_grad_(False)


def run_reference(reference: ReferenceModel, pixels: torch.Tensor, grids: Grids) -> Outputs:
    """Returns `last_hidden_state` and `pooler_output`."""
    # It takes a row a slice; t > 1 is an IndexError there.
    rows = [(1, h, w) for t, h, w in grids for _ in range(t)]
    with torch.no_grad():
        output = reference(pixels, torch.tensor(rows))
    return output.last_hidden_state, output.pooler_output


def run_both(model: Glm4vVisionModel, pixels: torch.Tensor, grids: Grids) -> tuple[Outputs, ...]:
    """Runs the reference in float32 and in float64.

    Args:
        model: Whose weights count.
        pixels: Normalised, float64.
        grids: Of the items.

    Returns:
        Its results in float32, and the truth.
    """
    reference = make_reference(model)
    rounded = run_reference(reference, pixels.float(), grids)
    return rounded, run_reference(reference.double(), pixels, grids)


def make_levels(grids: Grids, values: int = 1176, seed: int = 1) -> torch.Tensor:
    """Noise, uint8 [patches, values]."""
    generator = torch.Generator().manual_seed(seed)
    patches = sum(t * h * w for t, h, w in grids)
    return torch.randint(0, 256, (patches, values), generator=generator).to(torch.uint8)


def normalize(levels: torch.Tensor) -> torch.Tensor:
    """As transformers' processors do, in float64."""
    pixels = levels.double().view(len(levels), 3, -1) / 255
    return ((pixels - MEAN) / STD).flatten(1)


def repeat_frames(still: torch.Tensor, times: int) -> torch.Tensor:
    """Patches of a still whose frame is given once, as transformers takes them."""
    frame = still.view(len(still), 3, 1, -1)
    return frame.expand(-1, -1, times, -1).reshape(len(still), -1)


def relative_error(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Largest difference, over the largest value of the truth."""
    return float((ours.double() - truth.double()).abs().max() / truth.abs().max())


def worst_error(ours: Sequence[torch.Tensor], truth: Sequence[torch.Tensor]) -> float:
    """The larger of the errors of tokens before and after the merger's MLP."""
    return max(relative_error(*pair) for pair in zip(ours, truth, strict=True))


def pooled_cosine(ours: torch.Tensor, truth: torch.Tensor) -> float:
    """Cosine of the tokens' means, in float64."""
    means = ours.double().mean(0), truth.double().mean(0)
    return float(torch.cosine_similarity(*means, dim=0))
