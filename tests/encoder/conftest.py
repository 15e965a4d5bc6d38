import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from encoder import Glm4vVisionConfig, Glm4vVisionModel
from tests.support.towers import SMALL, random_model

GOLDENS = Path(__file__).parent.parent / "goldens"


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def goldens() -> Path:
    return GOLDENS


@pytest.fixture
def small_config() -> Glm4vVisionConfig:
    return SMALL


@pytest.fixture
def small_model(small_config: Glm4vVisionConfig) -> Glm4vVisionModel:
    return random_model(small_config)


@pytest.fixture
def write_checkpoint(
    tmp_path: Path, small_model: Glm4vVisionModel
) -> Callable[..., tuple[Path, dict[str, torch.Tensor]]]:
    """Writes a folder with the small model's tower beside a language tensor."""

    def write(
        prefix: str = "model.visual.",
        dtype: torch.dtype = torch.float32,
        drop: tuple[str, ...] = (),
        extra: dict[str, torch.Tensor] | None = None,
    ) -> tuple[Path, dict[str, torch.Tensor]]:
        state = {name: tensor.to(dtype) for name, tensor in small_model.state_dict().items()}
        tensors = {prefix + name: tensor for name, tensor in state.items() if name not in drop}
        tensors |= {"lm_head.weight": torch.zeros(1000)} | (extra or {})
        folder = tmp_path / "checkpoint"
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors")
        config: dict[str, Any] = {
            "model_type": "glm4v",
            "text_config": {},
            "vision_config": small_model.config.to_dict(),
        }
        (folder / "config.json").write_text(json.dumps(config))
        return folder, state

    return write
