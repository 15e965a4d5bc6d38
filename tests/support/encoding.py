"""Blocks for the encoder stage, which is called as the engine calls it, with the tiny preset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import encoder
from encoder import EncoderOutput, Glm4vVisionModel
from encoder.self_check import known_input
from pipeline import schema
from pipeline.encode import Encode, EncodeConfig

Rows = Callable[..., pa.Table]
Grid = tuple[int, int, int]

# Stills of several sizes, the same size twice, and a clip of three slices.
GRIDS: list[Grid] = [(1, 2, 2), (1, 4, 6), (3, 2, 4), (1, 2, 2), (1, 8, 8), (1, 2, 20)]
DEFAULTS: dict[str, Any] = {
    "location": "tiny",
    "seed": 7,
    "device": "cpu",
    "dtype": "float32",
    "token_budget": 2048,
    "level": "item",
    "pool": "mean",
    "features": "merged",
    "normalize": False,
    "output_dtype": "float32",
}


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """PyTorch's own threads, as few as in the stage, whose results are compared with its."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_model() -> Glm4vVisionModel:
    return encoder.load_encoder("tiny", seed=7)


def levels(grid: Grid, seed: int) -> np.ndarray:
    """Patches as Preprocess makes them: with both frames where a grid has several slices."""
    t, h, w = grid
    generator = np.random.default_rng(seed)
    # Neighbouring patches that look alike, as photos' do, and items that do not.
    base = generator.integers(0, 256, (t * h * w, 1))
    noise = generator.integers(-20, 20, (t * h * w, 588 if t == 1 else 1176))
    return np.clip(base + noise, 0, 255).astype(np.uint8)


def timestamps(grid: Grid) -> list[float]:
    return [0.5 * n for n in range(grid[0])]


@pytest.fixture(scope="session")
def preprocessed(manifest_rows: Rows) -> Callable[..., pa.Table]:
    """`schema.preprocessed` rows: one a grid, None for a failed one."""

    def make(grids: list[Grid | None], own: pa.Table | None = None) -> pa.Table:
        rows = manifest_rows([f"/{n}.jpg" for n in range(len(grids))], own=own)
        count = len(grids)
        bad = [grid is None for grid in grids]
        found = {
            "content_hash": [f"hash{n}" for n in range(count)],
            "width": [28] * count,
            "height": [28] * count,
            "num_frames": [grid[0] * 2 if grid and grid[0] > 1 else None for grid in grids],
            "duration_s": [grid[0] / 2 if grid and grid[0] > 1 else None for grid in grids],
            "grid_thw": [None if grid is None else list(grid) for grid in grids],
            "timestamps": [timestamps(g) if g and g[0] > 1 else None for g in grids],
            "stage": ["preprocess" if b else None for b in bad],
            "error_code": ["corrupt" if b else None for b in bad],
            "error_message": ["it is broken" if b else None for b in bad],
            "attempts": [1 if b else None for b in bad],
            "patches": [
                b"" if grid is None else levels(grid, n).tobytes() for n, grid in enumerate(grids)
            ],
        }
        target = schema.preprocessed(rows.schema)
        columns = [found[f.name] if f.name in found else rows[f.name].to_pylist() for f in target]
        return pa.table(columns, schema=target)

    return make


def stage(**options: Any) -> Encode:
    return Encode(EncodeConfig(**{**DEFAULTS, **options}))


def vectors(table: pa.Table) -> np.ndarray:
    """Vectors [rows, D], zeros where a row has none."""
    found = table["embedding"].to_pylist()
    width = max(map(len, found))
    dtype = table.schema.field("embedding").type.value_type.to_pandas_dtype()
    return np.array([row or [0] * width for row in found], dtype)


def alone(model: Glm4vVisionModel, options: dict[str, Any]) -> np.ndarray:
    """Every item's vector by itself, in plain PyTorch."""
    found = []
    for n, grid in enumerate(GRIDS):
        with torch.inference_mode():
            output = model.forward_features(torch.from_numpy(levels(grid, n)), [grid])
        merged = options.get("features", "merged") == "merged"
        tokens = (output.pooler_output if merged else output.last_hidden_state).double()
        vector = tokens.amax(0) if options.get("pool") == "max" else tokens.mean(0)
        if options.get("normalize"):
            vector = vector / vector.norm()
        found.append(vector.numpy())
    return np.stack(found)


@dataclass
class Changed:
    """An encoder whose tokens are changed, or that runs out of memory, as a test wants it.

    The blank images with which the stage makes sure of its device are only told to it; what the
    encoder checks itself with, it embeds as it should.
    """

    model: Glm4vVisionModel
    change: Callable[[torch.Tensor, list[Grid]], torch.Tensor] = lambda tokens, grids: tokens
    blank: Callable[[list[Grid]], None] = lambda grids: None
    most_segments: int = 1000
    kernel: str = "none"
    packs: list[list[Grid]] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    @property
    def config(self) -> encoder.Glm4vVisionConfig:
        return self.model.config

    @property
    def attention(self) -> encoder.AttentionKernel:
        return self.model.attention

    def use_attention(self, kernel: str) -> None:
        self.kernel = kernel

    def uncompile_blocks(self) -> None:
        """They never are, here."""

    def state_dict(self) -> dict[str, torch.Tensor]:
        return self.model.state_dict()

    def forward_features(
        self, patches: torch.Tensor | list[torch.Tensor], grids: list[Grid]
    ) -> EncoderOutput:
        if grids == known_input(self.config)[1]:
            return self.model.forward_features(patches, grids)
        if not any(part.any() for part in patches):
            self.blank(grids)
            return self.model.forward_features(patches, grids)
        if len(grids) > self.most_segments:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.packs.append(list(grids))
        self.kinds.append(1 if isinstance(patches, torch.Tensor) else len(patches))
        output = self.model.forward_features(patches, grids)
        return EncoderOutput(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self.change(output.pooler_output, grids),
        )


@pytest.fixture
def changed(
    tiny_model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Changed]:
    """Makes the next stage load a changed encoder."""

    def use(**behaviour: Any) -> Changed:
        fake = Changed(tiny_model, **behaviour)
        monkeypatch.setattr(encoder, "load_encoder", lambda *args, **options: fake, raising=False)
        return fake

    return use


def spoil(grid: Grid, value: float) -> Callable[[torch.Tensor, list[Grid]], torch.Tensor]:
    """Puts `value` into one number of one token of every segment of that size."""

    def change(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        tokens, start = tokens.clone(), 0
        for found in grids:
            if found == grid:
                tokens[start, 3] = value
            start += found[1] * found[2] // 4
        return tokens

    return change
