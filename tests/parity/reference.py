"""transformers' model with our weights, and how far two results lie apart.

The referee is that model in float64. By itself it would stay in float32 for norms, rotary angles
and the interpolation of positions (of up to 4e-6, more than all our errors), which `_Float64`
prevents; `encoder.reference` is what shows that nothing is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from transformers.models.glm4v import Glm4vVisionConfig as ReferenceConfig
from transformers.models.glm4v import Glm4vVisionModel as ReferenceModel

from encoder import Glm4vVisionModel

Grids = Sequence[tuple[int, int, int]]
Outputs = tuple[torch.Tensor, torch.Tensor]

MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073], dtype=torch.float64).view(3, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711], dtype=torch.float64).view(3, 1)


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
    precision = _Float64() if pixels.dtype == torch.float64 else nullcontext()
    with torch.no_grad(), precision:
        output = reference(pixels, torch.tensor(rows))
    return output.last_hidden_state, output.pooler_output


class _Float64(TorchFunctionMode):
    """Makes float64 of all that would become float32."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is torch.Tensor.float:
            return args[0].double()
        widened = {torch.float32: torch.float64}
        args = [widened.get(arg, arg) if isinstance(arg, torch.dtype) else arg for arg in args]
        kwargs = {
            name: widened.get(value, value) if isinstance(value, torch.dtype) else value
            for name, value in (kwargs or {}).items()
        }
        return func(*args, **kwargs)


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
