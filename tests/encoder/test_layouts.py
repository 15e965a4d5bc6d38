"""Of a checkpoint with a large language part, the vision tensors alone are read."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import s3fs
import torch
from aiohttp import web

import encoder
from encoder import (
    Glm4vVisionConfig,
    Glm4vVisionModel,
    byte_ranges,
    checkpoint_digest,
    load_encoder,
    safetensors_file,
    vision_tensors,
    write_vision_tower,
)
from encoder.safetensors_file import Filesystem, read_range
from tests.faults.proxy import FaultyS3
from tests.support.checkpoints import write_config, write_like_glm45v, write_sparse
from tests.support.s3_here import forget_s3_clients

ROOT = Path(encoder.__file__).parent.parent
MB = 10**6


@pytest.fixture(scope="module")
def config() -> Glm4vVisionConfig:
    """A tower of 25 MB, one of whose tensors takes two parts."""
    return Glm4vVisionConfig(
        depth=3, hidden_size=256, num_heads=4, out_hidden_size=512, intermediate_size=9000
    )


@pytest.fixture(scope="module")
def tower(config: Glm4vVisionConfig) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {name: torch.randn(s).bfloat16() for name, s in config.tensor_shapes().items()}


def raw(tower: dict[str, torch.Tensor]) -> dict[str, bytes]:
    return {name: t.view(torch.int16).numpy().tobytes() for name, t in tower.items()}


def bytes_of(tower: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tower.values())


def check(model: Glm4vVisionModel, tower: dict[str, torch.Tensor]) -> None:
    assert model.state_dict().keys() == tower.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, tower[name].to(tensor.dtype)), name


def read_by_the_system() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


def test_on_a_disk_only_vision_bytes_are_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    config: Glm4vVisionConfig,
    tower: dict[str, torch.Tensor],
) -> None:
    overhead = write_like_glm45v(tmp_path, config, raw(tower), 240 * MB)
    read: list[int] = []

    def count(fs: Filesystem, path: str, start: int, end: int) -> memoryview:
        read.append(end - start)
        return read_range(fs, path, start, end)

    for module in (safetensors_file, byte_ranges):
        monkeypatch.setattr(module, "read_range", count)
    before = read_by_the_system()
    model = load_encoder(str(tmp_path))
    assert read_by_the_system() - before < bytes_of(tower) + overhead + 2 * MB
    assert sum(read) == bytes_of(tower) + overhead
    check(model, tower)


def test_the_layout_makes_no_difference_to_the_digest(
    tmp_path: Path, config: Glm4vVisionConfig, tower: dict[str, torch.Tensor]
) -> None:
    write_like_glm45v(tmp_path, config, raw(tower), 24 * MB)
    tensors = vision_tensors(str(tmp_path))
    kept = tmp_path / "kept.safetensors"
    with kept.open("wb") as file:
        write_vision_tower(tensors, file)
    assert checkpoint_digest(vision_tensors(str(kept))) == checkpoint_digest(tensors)
    check(load_encoder(str(kept)), tower)


class CountingS3(FaultyS3):
    """The proxy, without faults: counts what bodies carry from the server."""

    body_bytes = 0

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        response = await super()._forward(request, body)
        if isinstance(response.body, bytes) and request.method == "GET":
            self.body_bytes += len(response.body)
        return response


@pytest.fixture
def counting_s3(s3_endpoint: str, s3_environment: pytest.MonkeyPatch) -> Iterator[CountingS3]:
    """Before the real server, for every client that is made from here on."""
    with CountingS3(s3_endpoint) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        forget_s3_clients()
        yield proxy
    forget_s3_clients()


def test_on_s3_only_vision_bytes_are_fetched(
    tmp_path: Path,
    s3_media: str,
    counting_s3: CountingS3,
    config: Glm4vVisionConfig,
    tower: dict[str, torch.Tensor],
) -> None:
    overhead = write_like_glm45v(tmp_path, config, raw(tower), 64 * MB)
    s3fs.S3FileSystem().put(f"{tmp_path}/", f"{s3_media}/", recursive=True)
    counting_s3.heal()
    counting_s3.body_bytes = 0
    model = load_encoder(s3_media, dtype=torch.bfloat16)
    check(model, tower)
    # Beside them, lists of keys.
    assert bytes_of(tower) + overhead <= counting_s3.body_bytes
    assert counting_s3.body_bytes < bytes_of(tower) + overhead + 8000
    fetched = {request.key for request in counting_s3.requests if request.method == "GET"}
    assert not any("model-00001" in key for key in fetched)


def test_a_load_takes_little_memory_beside_the_weights(tmp_path: Path) -> None:
    config = Glm4vVisionConfig(depth=3)  # 0.6 GB in bfloat16
    for name, dtype, item_bytes in (("half", "BF16", 2), ("full", "F32", 4)):
        folder = tmp_path / name
        folder.mkdir()
        write_config(folder, config)
        write_sparse(folder / "model.safetensors", config.tensor_shapes(), dtype, item_bytes)
    script = f"""
import re, torch
from pathlib import Path
from encoder import load_encoder

def status(field):
    return 1024 * int(re.search(field + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

load_encoder("tiny", dtype=torch.bfloat16)
for folder in ("half", "full"):
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # The highest mark is forgotten.
    model = load_encoder(f"{tmp_path}/" + folder, dtype=torch.bfloat16)
    print(status("VmHWM") - before, sum(weights.nbytes for weights in model.parameters()))
    del model
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT
    )
    lines = re.findall(r"(\d+) (\d+)\n", done.stdout)
    assert len(lines) == 2
    for peak, weights in lines:
        assert int(weights) > 500 * MB
        assert int(weights) < int(peak) < int(weights) + 100 * MB
