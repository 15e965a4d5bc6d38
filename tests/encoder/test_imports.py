import subprocess
import sys
from pathlib import Path

import pytest

import encoder

ROOT = Path(encoder.__file__).parent.parent


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split(".")[0] for name in done.stdout.split()}


@pytest.mark.parametrize(
    "code",
    [
        "from encoder import PRESETS, Glm4vVisionConfig, plan_packs, fill_ratio",
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


def test_everything_promised_is_there() -> None:
    for name in encoder.__all__:
        assert name == "PRESETS" or getattr(encoder, name).__name__ == name


def test_what_is_not_promised_is_not_there() -> None:
    with pytest.raises(AttributeError, match="'encoder' has no attribute 'utils'"):
        encoder.utils  # noqa: B018
