from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support.processor_files import FLAT, NESTED, Write

GOLDENS = Path(__file__).parents[1] / "goldens"


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def goldens() -> Path:
    return GOLDENS


@pytest.fixture(scope="session")
def golden_levels() -> dict[str, np.ndarray]:
    with np.load(GOLDENS / "media.npz") as stored:
        return dict(stored)


def read_golden(name: str) -> list[dict[str, Any]]:
    return json.loads((GOLDENS / name).read_text())


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "resize_case" in metafunc.fixturenames:
        metafunc.parametrize("resize_case", read_golden("smart_resize.json"))
    if "image_case" in metafunc.fixturenames:
        cases = [case for case in read_golden("media.json") if "backend" in case]
        metafunc.parametrize("image_case", cases, ids=lambda case: case["name"])
    if "video_case" in metafunc.fixturenames:
        cases = [case for case in read_golden("media.json") if case["name"].startswith("video")]
        metafunc.parametrize("video_case", cases, ids=lambda case: case["name"])
    if "sampling_case" in metafunc.fixturenames:
        metafunc.parametrize("sampling_case", read_golden("sample_frames.json"))


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    import skimage

    data = Path(skimage.__file__).parent / "data"
    # Photos, line art, grey, palette and transparency; all are in scikit-image's wheel.
    names = ("astronaut.png", "chelsea.png", "coins.png", "page.png", "logo.png", "rocket.jpg")
    return [data / name for name in names]


@pytest.fixture
def folder(tmp_path: Path) -> Write:
    """A folder with what is given as the nested file and the flat ones."""

    def write(*, nested: object = None, image: object = None, video: object = None) -> Path:
        for name, content in ((NESTED, nested), (FLAT["image"], image), (FLAT["video"], video)):
            if content is not None:
                (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write
