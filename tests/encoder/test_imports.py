import subprocess
import sys
from pathlib import Path

import pytest
import torch

import encoder
from encoder import (
    EncoderOutput,
    Glm4vVisionModel,
    Segment,
    VisionTensors,
    segments_of,
    vision_tensors,
)

ROOT = Path(encoder.__file__).parent.parent


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "from encoder import PRESETS, Glm4vVisionConfig, next_pack, segments_of",
        "from encoder import preset_digest, PRESETS; preset_digest(PRESETS['tiny'], 0)",
        "from encoder import checkpoint_digest, vision_tensors, CheckpointError",
    ],
)
def test_a_command_line_that_encodes_nothing_pays_no_torch(code: str) -> None:
    assert "torch" not in modules_after(code)


def test_the_encoder_stands_alone() -> None:
    loaded = modules_after("from encoder import *")
    assert "torch" in loaded
    assert not loaded & {"ray", "transformers", "processors", "pipeline", "jobs"}


def test_an_encoder_on_a_cpu_brings_no_compiler() -> None:
    code = """
import sys, torch
from encoder import load_encoder
with torch.inference_mode():
    load_encoder("tiny")(torch.zeros(4, 588, dtype=torch.uint8), [(1, 2, 2)])
assert "torch._dynamo" not in sys.modules
"""
    modules_after(code)


def test_packs_are_run_with_torch_and_numpy_alone() -> None:
    loaded = modules_after("from encoder import Glm4vVisionModel, PackRunner, next_pack")
    assert "torch" in loaded
    assert not loaded & {"ray", "pyarrow", "fsspec", "safetensors", "tyro", "pipeline"}


def test_both_rooms_are_imported_in_a_moment_and_bring_neither_torch_nor_ray_nor_pyav() -> None:
    code = (
        "import time; start = time.process_time(); import encoder, processors\n"
        "assert time.process_time() - start < 0.5, time.process_time() - start"
    )
    assert not modules_after(code) & {"torch", "ray", "av"}


def test_no_public_name_brings_ray_or_pyav() -> None:
    code = """
import encoder, processors
[getattr(encoder, name) for name in encoder.__all__]
[getattr(processors, name) for name in processors.__all__]
"""
    assert not modules_after(code) & {"av", "ray"}


def test_results_are_of_public_types(goldens: Path, small_model: Glm4vVisionModel) -> None:
    assert type(vision_tensors(str(goldens / "checkpoint-glmga"))) is VisionTensors
    assert type(small_model.forward_features(torch.zeros(4, 1176), [(1, 2, 2)])) is EncoderOutput
    assert segments_of([(1, 2, 3)]) == [Segment(item=0, slice=0, height=2, width=3)]


def test_everything_promised_is_there() -> None:
    for name in set(encoder.__all__) - {"AttentionKernel", "PRESETS"}:
        assert getattr(encoder, name).__name__ == name


def test_what_is_not_promised_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'encoder' has no attribute 'utils'"):
        encoder.utils  # noqa: B018
