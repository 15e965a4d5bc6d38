"""A model and the processors that go with it, in one call. No Ray."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch

from encoder import PRESETS, Glm4vVisionConfig, Glm4vVisionModel, load_encoder, pin_location
from encoder import create_glm4v_vision_encoder as create_encoder
from pipeline.processor_files import folder_of, read_files
from processors import (
    Glm4vImageProcessor,
    Glm4vVideoProcessor,
    GlmgaImageProcessor,
    GlmgaVideoProcessor,
)
from processors.factories import make_processors
from processors.video import VideoProcessor


def create_complete_glm4v_vision_pipeline(
    location: str | os.PathLike[str] | None = None,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    **config: Any,
) -> tuple[Glm4vVisionModel, GlmgaImageProcessor, VideoProcessor]:
    """Makes a vision tower and the processors that cut pictures and clips for it.

    The processors have the tower's patch, temporal and merge sizes, whatever a checkpoint's files
    say. Their `pixel_values` and grids are what the model takes; move them to its device.

    >>> from PIL import Image
    >>> model, image_processor, video_processor = create_complete_glm4v_vision_pipeline("tiny")
    >>> inputs = image_processor.preprocess(Image.new("RGB", (224, 224)), return_tensors="pt")
    >>> model(inputs["pixel_values"], inputs["image_grid_thw"]).shape  # [num_tokens, width]
    torch.Size([64, 256])

    Args:
        location: A checkpoint, with its weights and the processors that it brings: a folder, a
            `.safetensors` file in one, or a URL, as `load_encoder` takes it. A preset's
            name, or None for GLM-4.1V's shape, with random weights and GLM-4.1V's processors.
        device: Where the model goes; processors work on the CPU.
        dtype: Of the model's matrix products: float32, bfloat16 or float16.
        seed: Of random weights; a checkpoint has no use for it.
        **config: Fields of `Glm4vVisionConfig`, over GLM-4.1V's; only without a location.

    Returns:
        The model, in eval mode and without gradients; its image processor; its video processor.

    Raises:
        ValueError: Config fields beside a location, an unknown one, or one out of range; a tower of
            other than three channels; processor files that are broken, or another family's.
        CheckpointError: The checkpoint has no usable tower.
        Exception: Storage's own, where it fails.
    """
    checkpoint = None
    if location is None:
        model = create_encoder(device=device, dtype=dtype, seed=seed, **config)
    elif config:
        raise ValueError(
            f"location={location!r} brings its own configuration: leave out {', '.join(config)}"
        )
    else:
        checkpoint = _checkpoint(location)
        model = load_encoder(checkpoint or location, device=device, dtype=dtype, seed=seed)
    if model.config.in_channels != 3:
        raise ValueError(
            f"in_channels={model.config.in_channels}: the processors make patches of 3 channels; "
            "without them, create_glm4v_vision_encoder takes any number"
        )
    return model, *_processors(checkpoint, _sizes(model.config))


def _checkpoint(location: str | os.PathLike[str]) -> str | None:
    """Where weights and processors are read from, of one commit; None for a preset's name."""
    if isinstance(location, str) and location in PRESETS:
        return None
    # Or else a folder that is called like a preset would be taken for it.
    if isinstance(location, os.PathLike):
        return str(Path(location).absolute())
    return pin_location(location)


def _sizes(config: Glm4vVisionConfig) -> dict[str, int]:
    return {
        "patch_size": config.patch_size,
        "temporal_patch_size": config.temporal_patch_size,
        "merge_size": config.spatial_merge_size,
    }


def _processors(
    checkpoint: str | None, sizes: dict[str, int]
) -> tuple[GlmgaImageProcessor, VideoProcessor]:
    """Makes a checkpoint's processors, of GLM-4.1V's where there is none, for a tower's sizes."""
    if checkpoint is None:
        return Glm4vImageProcessor(**sizes), Glm4vVideoProcessor(**sizes)
    folder = folder_of(checkpoint)
    if files := read_files(folder):
        return make_processors(folder, files.get, sizes, stacklevel=4)
    warnings.warn(
        f"{folder} describes no processors: Glmga's are used, with their defaults",
        UserWarning,
        stacklevel=3,
    )
    return GlmgaImageProcessor(**sizes), GlmgaVideoProcessor(**sizes)
