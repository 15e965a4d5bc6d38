"""The GLM-4V family's vision encoder in plain PyTorch, for stills and videos packed together.

    from encoder import load_encoder

    model = load_encoder("zai-org-GLM-4.1V-9B-Thinking/")     # or "tiny", "s3://bucket/model"
    tokens = model(pixel_values, [(1, 24, 36), (4, 16, 16)])  # [num_tokens, out_hidden_size]

Everything exported here is listed in `__all__`; submodules are private to the package.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from encoder.config import PRESETS, Glm4vVisionConfig

if TYPE_CHECKING:
    from encoder.attention import Segments
    from encoder.hub import pin_location
    from encoder.load import load_encoder
    from encoder.model import EncoderOutput, Glm4vVisionModel
    from encoder.packing import Segment, capacity, cu_seqlens, fill_ratio, plan_packs, segments_of
    from encoder.presets import preset_digest, random_tensors
    from encoder.safetensors_file import CheckpointError
    from encoder.weights import (
        VisionTensors,
        checkpoint_digest,
        vision_tensors,
        write_vision_tower,
    )

__all__ = [
    "PRESETS",
    "CheckpointError",
    "EncoderOutput",
    "Glm4vVisionConfig",
    "Glm4vVisionModel",
    "Segment",
    "Segments",
    "VisionTensors",
    "capacity",
    "checkpoint_digest",
    "cu_seqlens",
    "fill_ratio",
    "load_encoder",
    "pin_location",
    "plan_packs",
    "preset_digest",
    "random_tensors",
    "segments_of",
    "vision_tensors",
    "write_vision_tower",
]

# Importing torch takes about two seconds, which a command line that only plans, counts or hashes
# should not pay: what needs torch (or fsspec) is imported when it is first asked for.
_HOME = {
    "CheckpointError": "safetensors_file",
    "EncoderOutput": "model",
    "Glm4vVisionModel": "model",
    "Segment": "packing",
    "Segments": "attention",
    "VisionTensors": "weights",
    "capacity": "packing",
    "checkpoint_digest": "weights",
    "cu_seqlens": "packing",
    "fill_ratio": "packing",
    "load_encoder": "load",
    "pin_location": "hub",
    "plan_packs": "packing",
    "preset_digest": "presets",
    "random_tensors": "presets",
    "segments_of": "packing",
    "vision_tensors": "weights",
    "write_vision_tower": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
