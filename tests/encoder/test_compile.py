import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from encoder import (
    CompileError,
    Glm4vVisionModel,
    check_encoder,
    is_device_error,
    load_encoder,
)
from encoder.attention import Segments, attend
from tests.support.operations import Operations

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
GRAPHS_A_BLOCK = 2  # Before and after attention.
PACKS = [[(1, 4, 6)], [(1, 4, 4), (1, 2, 2)], [(3, 2, 2)], [(1, 8, 6), (2, 4, 4)], [(1, 32, 32)]]


def make_levels(patches: int, values: int = 1176) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (patches, values), generator=generator).to(torch.uint8)


def sizes(grids: list[tuple[int, int, int]]) -> list[int]:
    return [t * h * w for t, h, w in grids]


def compiled_error(model: Glm4vVisionModel) -> float:
    """The largest difference that compiling makes in a few packs, over the largest value."""
    device = model.downsample.weight.device
    given = [(make_levels(sum(sizes(grids)), 588).to(device), grids) for grids in PACKS]
    expected = [model(*pack) for pack in given]
    torch.compiler.reset()
    model.compile_blocks()
    with torch.inference_mode():
        pairs = zip([model(*pack) for pack in given], expected, strict=True)
        return max(float((ours - own).abs().max() / own.abs().max()) for ours, own in pairs)


def test_blocks_are_compiled_once_for_all_of_them_and_all_packs(
    small_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [(make_levels(sum(sizes(grids))), grids) for grids in PACKS]
    expected = [small_model(*pack) for pack in given]
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    torch.compiler.reset()
    small_model.compile_blocks()
    assert counter.frame_count == GRAPHS_A_BLOCK  # Once, for any number of patches.
    with torch.inference_mode():
        for pack, result in zip(given, expected, strict=True):
            torch.testing.assert_close(small_model(*pack), result, rtol=0, atol=1e-6)
    check_encoder(small_model)
    assert counter.frame_count == GRAPHS_A_BLOCK


def test_only_the_number_of_patches_is_dynamic(
    small_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph with other sizes unknown would be compiled to slower kernels."""
    shapes: list[torch.Size] = []

    def recording(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        nodes = graph.graph.find_nodes(op="placeholder")
        shapes.extend(
            value.shape
            for node in nodes
            if isinstance(value := node.meta["example_value"], torch.Tensor)
        )
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=recording))
    torch.compiler.reset()
    small_model.compile_blocks()
    dynamic = {
        at for shape in shapes for at, size in enumerate(shape) if isinstance(size, torch.SymInt)
    }
    assert dynamic == {0}


def test_few_processes_compile() -> None:
    code = """
import os, torch
from functools import partial
from encoder import load_encoder
torch.compile = partial(torch.compile, backend="eager")
load_encoder("tiny").compile_blocks()
from torch._inductor import config
assert config.compile_threads <= 4, config.compile_threads
assert os.environ["TORCHINDUCTOR_COMPILE_THREADS"] == str(config.compile_threads)
"""
    # With more CPUs than there may be here.
    many = "import os; os.sched_getaffinity = lambda _: range(64)\n"
    env = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_COMPILE_THREADS"}
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, "-c", many + code], check=True, cwd=root, env=env)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's, of itself.
def test_a_model_that_was_not_compiled_runs_as_before(
    small_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from torch._inductor import config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    expected = small_model(make_levels(24), [(1, 4, 6)])
    message = "^the encoder's blocks are not compiled: .*no-compiler.*$"
    with (
        config.patch({"cpp.cxx": (None, str(tmp_path / "no-compiler"))}),
        pytest.raises(CompileError, match=message) as caught,
    ):
        small_model.compile_blocks()
    assert "\n" not in str(caught.value)
    with Operations() as operations:
        assert torch.equal(small_model(make_levels(24), [(1, 4, 6)]), expected)
    assert any("linear" in name for name in operations.names)  # Nothing compiled is left.


@pytest.mark.parametrize("at", ["compiling", "running"])
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (torch.AcceleratorError("an illegal memory access was encountered"), None),
        (RuntimeError("CUDA error: misaligned address\nCompile with"), None),
        (RuntimeError("no execution plan\nand more"), CompileError),
        (NotImplementedError(), CompileError),
    ],
)
def test_device_errors_are_not_taken_for_the_compilers(
    small_model: Glm4vVisionModel,
    monkeypatch: pytest.MonkeyPatch,
    at: str,
    error: Exception,
    raised: type[Exception] | None,
) -> None:
    def fails(*_: Any) -> Any:
        raise error

    def backend(graph: Any, inputs: Any) -> Any:
        return fails() if at == "compiling" else fails

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    expected = small_model(make_levels(24), [(1, 4, 6)])
    with pytest.raises(Exception) as caught:
        small_model.compile_blocks()
    assert isinstance(caught.value, CompileError) == (raised is CompileError)
    assert is_device_error(caught.value) == (raised is None)
    assert torch.equal(small_model(make_levels(24), [(1, 4, 6)]), expected)


def test_an_error_of_the_uncompiled_model_is_raised_as_it_is(
    small_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(small_model.blocks[1], "forward", fails)
    with pytest.raises(torch.OutOfMemoryError):
        small_model.compile_blocks()


def test_the_chosen_kernel_reaches_every_block_and_compiles_nothing_anew(
    small_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels: list[str] = []

    def recording(q: Any, k: Any, v: Any, segments: Segments) -> torch.Tensor:
        kernels.append(segments.kernel)
        return attend(q, k, v, segments)

    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    monkeypatch.setattr("encoder.model.attend", recording)
    torch.compiler.reset()
    small_model.compile_blocks()
    assert set(kernels) == {"varlen"}
    kernels.clear()
    small_model.use_attention("math")
    with torch.inference_mode():
        small_model(make_levels(24), [(1, 4, 6)])
    assert kernels == ["math"] * len(small_model.blocks)
    assert counter.frame_count == GRAPHS_A_BLOCK


@pytest.mark.whole
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 3e-6), (torch.bfloat16, 2e-2)])
def test_compiled_blocks_give_what_they_gave(dtype: torch.dtype, bound: float) -> None:
    assert compiled_error(load_encoder("tiny", dtype=dtype)) < bound


@needs_gpu
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_blocks_give_what_they_gave_on_a_gpu() -> None:
    assert compiled_error(load_encoder("small", device="cuda", dtype=torch.bfloat16)) < 2e-2
