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
    from encoder.attention import AttentionKernel
    from encoder.costs import forward_flop, weight_bytes
    from encoder.device_errors import is_device_error
    from encoder.factories import create_glm4v_vision_encoder
    from encoder.hub import pin_location
    from encoder.load import load_encoder
    from encoder.model import CompileError, EncoderOutput, Glm4vVisionModel
    from encoder.out_of_memory import is_out_of_memory
    from encoder.pack_time import ceiling_flop_s
    from encoder.packing import Segment, next_pack, segments_of
    from encoder.presets import preset_digest, random_tensors
    from encoder.runner import PackResults, PackRunner
    from encoder.safetensors_file import CheckpointError
    from encoder.self_check import SelfCheckError, check_encoder
    from encoder.weights import (
        VisionTensors,
        checkpoint_digest,
        vision_tensors,
        write_vision_tower,
    )
    from encoder.whole_config import GlmgaConfig

__all__ = [
    "PRESETS",
    "AttentionKernel",
    "CheckpointError",
    "CompileError",
    "EncoderOutput",
    "Glm4vVisionConfig",
    "Glm4vVisionModel",
    "GlmgaConfig",
    "PackResults",
    "PackRunner",
    "Segment",
    "SelfCheckError",
    "VisionTensors",
    "ceiling_flop_s",
    "check_encoder",
    "checkpoint_digest",
    "create_glm4v_vision_encoder",
    "forward_flop",
    "is_device_error",
    "is_out_of_memory",
    "load_encoder",
    "next_pack",
    "pin_location",
    "preset_digest",
    "random_tensors",
    "segments_of",
    "vision_tensors",
    "weight_bytes",
    "write_vision_tower",
]

# Importing torch takes about two seconds, which a command line that only plans, counts or hashes
# should not pay: what needs torch (or fsspec) is imported when it is first asked for.
_HOME = {
    "AttentionKernel": "attention",
    "CheckpointError": "safetensors_file",
    "CompileError": "model",
    "EncoderOutput": "model",
    "Glm4vVisionModel": "model",
    "GlmgaConfig": "whole_config",
    "PackResults": "runner",
    "PackRunner": "runner",
    "Segment": "packing",
    "SelfCheckError": "self_check",
    "VisionTensors": "weights",
    "ceiling_flop_s": "pack_time",
    "check_encoder": "self_check",
    "checkpoint_digest": "weights",
    "create_glm4v_vision_encoder": "factories",
    "forward_flop": "costs",
    "is_device_error": "device_errors",
    "is_out_of_memory": "out_of_memory",
    "load_encoder": "load",
    "next_pack": "packing",
    "pin_location": "hub",
    "preset_digest": "presets",
    "random_tensors": "presets",
    "segments_of": "packing",
    "vision_tensors": "weights",
    "weight_bytes": "costs",
    "write_vision_tower": "weights",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})  # For help() and completion, which do not read `_HOME`.
