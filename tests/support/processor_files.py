"""The files by which a checkpoint describes its processors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

NESTED = "processor_config.json"
FLAT = {"image": "preprocessor_config.json", "video": "video_preprocessor_config.json"}

# As GLM-4.6V and its kin are published: no switches, no filter, the class of their processor.
PUBLISHED = {
    "size": {"shortest_edge": 12544, "longest_edge": 9633792},
    "do_rescale": True,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Glm46VImageProcessor",
    "processor_class": "Glm46VProcessor",
}
Write = Callable[..., Path]


def refusal(call: Callable[..., object], *args: object, **options: object) -> str:
    with pytest.raises(ValueError) as caught:
        call(*args, **options)
    line = str(caught.value)
    assert "\n" not in line
    return line
