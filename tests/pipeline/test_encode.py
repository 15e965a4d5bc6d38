"""The encoder stage, called as the engine calls it, with the tiny preset and without the engine."""

from __future__ import annotations

import collections
import os
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import encoder
from encoder import EncoderOutput, Glm4vVisionModel
from pipeline import schema
from pipeline.attempts import Attempts
from pipeline.encode import Encode, EncodeConfig
from pipeline.errors import DeviceError
from pipeline.packs import is_device_error
from pipeline.progress import Counts

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
    "pool": "mean",
    "features": "merged",
    "normalize": False,
    "output_dtype": "float32",
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model() -> Glm4vVisionModel:
    return encoder.load_encoder("tiny", seed=7)


def levels(grid: Grid, seed: int) -> np.ndarray:
    t, h, w = grid
    generator = np.random.default_rng(seed)
    # Neighbouring patches that look alike, as photos' do, and items that do not.
    base = generator.integers(0, 256, (t * h * w, 1))
    return np.clip(base + generator.integers(-20, 20, (t * h * w, 588)), 0, 255).astype(np.uint8)


@pytest.fixture
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
            "num_frames": [None] * count,
            "duration_s": [None] * count,
            "grid_thw": [None if grid is None else list(grid) for grid in grids],
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

    The blank images with which the stage makes sure of its device are only told to it.
    """

    model: Glm4vVisionModel
    change: Callable[[torch.Tensor, list[Grid]], torch.Tensor] = lambda tokens, grids: tokens
    blank: Callable[[list[Grid]], None] = lambda grids: None
    most_segments: int = 1000
    packs: list[list[Grid]] = field(default_factory=list)

    @property
    def config(self) -> encoder.Glm4vVisionConfig:
        return self.model.config

    def forward_features(self, patches: torch.Tensor, grids: list[Grid]) -> EncoderOutput:
        if not patches.any():
            self.blank(grids)
            return self.model.forward_features(patches, grids)
        if len(grids) > self.most_segments:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.packs.append(list(grids))
        output = self.model.forward_features(patches, grids)
        return EncoderOutput(
            last_hidden_state=output.last_hidden_state,
            pooler_output=self.change(output.pooler_output, grids),
        )


@pytest.fixture
def changed(model: Glm4vVisionModel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Changed]:
    """Makes the next stage load a changed encoder."""

    def use(**behaviour: Any) -> Changed:
        fake = Changed(model, **behaviour)
        monkeypatch.setattr(encoder, "load_encoder", lambda *args, **options: fake, raising=False)
        return fake

    return use


@pytest.mark.parametrize("token_budget", [1, 7, 2048])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "max"},
        {"normalize": True},
        {"features": "last_hidden_state"},
        {"features": "last_hidden_state", "pool": "max", "normalize": True},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "default",
)
def test_an_items_vector_is_that_of_the_item_alone(
    model: Glm4vVisionModel,
    preprocessed: Callable[..., pa.Table],
    options: dict[str, Any],
    token_budget: int,
) -> None:
    found = vectors(stage(token_budget=token_budget, **options)(preprocessed(GRIDS)))
    expected = alone(model, options)
    assert found.dtype == np.float32
    assert found.shape == expected.shape == (len(GRIDS), 256)
    scale = np.abs(expected).max()
    assert scale > 0.01
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def test_the_items_differ(preprocessed: Callable[..., pa.Table]) -> None:
    # Else the test above could not fail.
    found = vectors(stage()(preprocessed(GRIDS)))
    distances = np.linalg.norm(found[:, None] - found[None], axis=2)
    assert distances[~np.eye(len(GRIDS), dtype=bool)].min() > 1e-3 * np.abs(found).max()


def test_the_half_precision_output_is_the_full_one_rounded(
    preprocessed: Callable[..., pa.Table],
) -> None:
    rows = preprocessed(GRIDS)
    half, full = stage(output_dtype="float16")(rows), stage()(rows)
    assert half["embedding"].type == pa.list_(pa.float16())
    np.testing.assert_array_equal(vectors(half), vectors(full).astype(np.float16))


def test_every_row_comes_out_once_in_order(
    model: Glm4vVisionModel, preprocessed: Callable[..., pa.Table]
) -> None:
    grids = [None, *GRIDS[:2], None, GRIDS[2], None]
    own = pa.table({"label": [f"l{n}" for n in range(6)]})
    rows = preprocessed(grids, own=own)
    out = stage()(rows)
    target = schema.encoded(rows.schema, pa.float32())
    assert out.schema.equals(target)
    kept = [name for name in rows.column_names if name != "patches"]
    assert out.select(kept).to_pylist() == rows.select(kept).to_pylist()
    assert out["num_tokens"].to_pylist() == [None, 1, 6, None, 6, None]
    assert out["device"].to_pylist() == ["cpu"] * 6
    has_vector = (vectors(out) != 0).any(axis=1)
    assert has_vector.tolist() == [False, True, True, False, True, False]


def test_a_block_without_an_item_passes(preprocessed: Callable[..., pa.Table]) -> None:
    rows = preprocessed([None, None])
    out = stage()(rows)
    assert out["item_id"].equals(rows["item_id"])
    assert out["error_code"].equals(rows["error_code"])
    assert not vectors(out).any()


def test_an_empty_block_passes(preprocessed: Callable[..., pa.Table]) -> None:
    out = stage()(preprocessed(GRIDS[:1]).slice(0, 0))
    assert out.num_rows == 0


def test_a_block_that_is_a_slice_or_in_chunks_is_read_right(
    preprocessed: Callable[..., pa.Table],
) -> None:
    rows, encode = preprocessed(GRIDS), stage()
    whole = vectors(encode(rows))
    scale = 1e-5 * np.abs(whole).max()
    np.testing.assert_allclose(vectors(encode(rows.slice(2, 3))), whole[2:5], atol=scale)
    chunks = pa.concat_tables([rows.slice(0, 1), rows.slice(1, 4), rows.slice(5)])
    np.testing.assert_allclose(vectors(encode(chunks)), whole, atol=scale)


def test_several_calls_at_once_do_not_mix(preprocessed: Callable[..., pa.Table]) -> None:
    encode, rows = stage(token_budget=8), preprocessed(GRIDS)
    blocks = [rows.slice(start, 2) for start in (0, 2, 4)] * 2
    with ThreadPoolExecutor(3) as callers:
        found = list(callers.map(encode, blocks))
    for block, out in zip(blocks, found, strict=True):
        assert out.equals(encode(block))


def test_packs_keep_the_token_budget(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed]
) -> None:
    fake = changed()
    stage(token_budget=8)(preprocessed(GRIDS))
    tokens = [[h * w // 4 for _, h, w in pack] for pack in fake.packs]
    assert sorted(token for pack in tokens for token in pack) == [1, 1, 2, 2, 2, 6, 10, 16]
    assert all(sum(pack) <= 8 or len(pack) == 1 for pack in tokens)


@pytest.mark.parametrize("most_segments", [1, 2, 3, 7])
def test_a_pack_that_does_not_fit_is_halved_and_loses_nothing(
    model: Glm4vVisionModel,
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    most_segments: int,
) -> None:
    fake = changed(most_segments=most_segments)
    out = stage()(preprocessed(GRIDS))
    expected = alone(model, {})
    assert sum(map(len, fake.packs)) == 8
    assert max(map(len, fake.packs)) <= most_segments
    assert out["error_code"].null_count == len(GRIDS)
    np.testing.assert_allclose(vectors(out), expected, atol=1e-5 * np.abs(expected).max())


def test_a_segment_that_never_fits_fails_its_item_alone(
    model: Glm4vVisionModel,
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
) -> None:
    def too_large(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if (1, 8, 8) in grids or (1, 2, 4) in grids:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens

    changed(change=too_large)
    out = stage()(preprocessed(GRIDS))
    lost = [2, 4]  # The clip, whose slices are 2 by 4, and the largest still.
    errors = out.select(["stage", "error_code", "error_message", "attempts"]).to_pylist()
    for n, error in enumerate(errors):
        assert list(error.values()) == (
            ["encode", "encode_failed", "one segment does not fit in memory", 1]
            if n in lost
            else [None] * 4
        )
    kept = [n for n in range(len(GRIDS)) if n not in lost]
    expected = alone(model, {})[kept]
    np.testing.assert_allclose(vectors(out)[kept], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "message",
    [
        "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation'",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "Triton Error [CUDA]: out of memory",
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you "
        "tried to allocate 8 bytes.",
    ],
)
def test_memory_that_runs_out_outside_of_pytorchs_allocator_halves_too(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], message: str
) -> None:
    def too_large(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if len(grids) > 2:
            raise RuntimeError(message)
        return tokens

    rows = preprocessed(GRIDS)
    whole = stage()(rows)
    changed(change=too_large)
    out = stage()(rows)
    assert out["error_code"].null_count == len(GRIDS)
    scale = np.abs(vectors(whole)).max()
    np.testing.assert_allclose(vectors(out), vectors(whole), atol=1e-5 * scale)


class Uncopied(torch.Tensor):
    """Vectors on a device, of which no more than two can be copied to the host at once."""

    def cpu(self, *args: Any, **options: Any) -> torch.Tensor:
        if len(self) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.as_subclass(torch.Tensor)


def test_memory_that_runs_out_while_copying_back_halves_too(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
) -> None:
    rows = preprocessed(GRIDS)
    whole = stage()(rows)
    fake = changed(change=lambda tokens, grids: tokens.as_subclass(Uncopied))
    out = stage()(rows)
    assert out["error_code"].null_count == len(GRIDS)
    scale = np.abs(vectors(whole)).max()
    np.testing.assert_allclose(vectors(out), vectors(whole), atol=1e-5 * scale)
    # Once for nothing, and once more in case that helps; then in halves.
    assert [len(pack) for pack in fake.packs] == [8, 8, 4, 2, 2, 4, 2, 2]


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


@pytest.mark.parametrize("options", [{}, {"pool": "max"}, {"normalize": True}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_fails_its_item_alone(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    options: dict[str, Any],
    value: float,
) -> None:
    changed(change=spoil((1, 4, 6), value))
    out = stage(**options)(preprocessed(GRIDS))
    assert out["error_code"].to_pylist() == [None, "not_finite", None, None, None, None]
    assert out["error_message"][1].as_py() == "the float32 vector is not finite"
    assert np.isfinite(np.delete(vectors(out), 1, axis=0)).all()


def test_a_vector_too_large_for_half_precision_is_not_finite(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed]
) -> None:
    changed(change=spoil((1, 2, 20), 1e7))
    rows = preprocessed(GRIDS)
    half, full = stage(output_dtype="float16")(rows), stage()(rows)
    assert full["error_code"].null_count == len(GRIDS)
    assert half["error_code"].to_pylist() == [None] * 5 + ["not_finite"]
    assert half["error_message"][5].as_py() == "the float16 vector is not finite"


def test_an_encoder_that_fails_otherwise_is_no_items_fault(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed]
) -> None:
    def fail(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    changed(change=fail)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        stage()(preprocessed(GRIDS))


def test_an_encoder_that_cannot_be_loaded_fails_the_first_call(
    preprocessed: Callable[..., pa.Table],
) -> None:
    encode = stage(location="nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        encode(preprocessed(GRIDS))


def test_a_device_without_memory_for_a_blank_image_is_no_items_fault(
    preprocessed: Callable[..., pa.Table],
    model: Glm4vVisionModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(self: Glm4vVisionModel, patches: torch.Tensor, grids: list[Grid]) -> EncoderOutput:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Glm4vVisionModel, "forward_features", full)
    with pytest.raises(DeviceError, match="no memory for a blank image of 2 x 2 patches"):
        stage()(preprocessed(GRIDS))


@dataclass
class Counter:
    """Stands for the progress actor's handle."""

    calls: list[Counts] = field(default_factory=list)

    @property
    def add(self) -> Counter:
        return self

    def remote(self, counts: Counts) -> None:
        self.calls.append(counts)


def test_progress_hears_of_items_failures_tokens_and_capacity(
    preprocessed: Callable[..., pa.Table],
) -> None:
    progress: Any = Counter()
    encode = Encode(EncodeConfig(**{**DEFAULTS, "token_budget": 8}), progress)
    encode(preprocessed([(1, 2, 2), None, (1, 4, 8), (1, 8, 8)]))
    # Packs of 16 (over the budget, full by itself), 8 and 1 token.
    errors = collections.Counter({"corrupt": 1})
    assert progress.calls == [Counts(items=4, errors=errors, tokens=25, capacity=32)]


def test_a_seed_makes_the_vectors_what_they_are(preprocessed: Callable[..., pa.Table]) -> None:
    rows = preprocessed(GRIDS[:2])
    assert stage()(rows).equals(stage()(rows))
    assert not stage()(rows).equals(stage(seed=8)(rows))


# --- processes that end -------------------------------------------------------------------------

# All of different sizes, by which they are told apart; a clip among them.
COMPANY: list[Grid] = [(1, 4, 6), (1, 2, 2), (3, 2, 4), (1, 6, 6), (1, 8, 8), (1, 2, 20)]
STICKY = "CUDA error: an illegal memory access was encountered\nand what to do about it"


class Ended(BaseException):
    """Stands for the end of a process."""


class Ray:
    """Stands for Ray: answers at once, starts ended processes again and repeats their calls."""

    def __init__(self) -> None:
        self.attempts = Attempts()
        self.process: Encode | None = None
        self.ended = 0

    def __getattr__(self, name: str) -> Any:
        return SimpleNamespace(remote=getattr(self.attempts, name))

    def embed(self, rows: pa.Table, **options: Any) -> pa.Table:
        while True:
            try:
                if self.process is None:
                    self.process = Encode(EncodeConfig(**{**DEFAULTS, **options}), None, self)
                return self.process(rows)
            except Ended:
                self.process = None
                self.ended += 1
                assert self.ended < 100


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Ray:
    def end(code: int) -> None:
        raise Ended

    here = SimpleNamespace(
        get_actor_id=lambda: "actor",
        get_node_id=lambda: "0123456789",
        get_accelerator_ids=lambda: {"GPU": ["3"]},
    )
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(socket, "gethostname", lambda: "machine")
    monkeypatch.setattr(ray, "get", lambda answer: answer)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: here)
    return Ray()


def kill(*killers: Grid) -> Callable[[torch.Tensor, list[Grid]], torch.Tensor]:
    """Ends the process that has any of these items in a pack."""

    def change(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if {(1, h, w) for _, h, w in killers} & set(grids):
            raise Ended
        return tokens

    return change


def failed(table: pa.Table) -> list[int]:
    return [n for n, code in enumerate(table["error_code"].to_pylist()) if code]


@pytest.mark.parametrize("killer", range(len(COMPANY)))
def test_the_item_that_ends_every_process_is_found_and_fails_alone(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    killer: int,
) -> None:
    rows = preprocessed([None, *COMPANY])
    clean = stage()(rows).to_pylist()
    changed(change=kill(COMPANY[killer]))
    out = started.embed(rows).to_pylist()
    assert started.ended == 4
    found = out.pop(killer + 1)
    clean.pop(killer + 1)
    names = ("stage", "error_code", "error_message", "attempts")
    message = "ended the encoder's process twice, alone in it"
    assert [found[name] for name in names] == ["encode", "encode_failed", message, 2]
    embeddings = [[row.pop("embedding") for row in table] for table in (out, clean)]
    assert out == clean
    for ours, expected in zip(*embeddings, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-4)


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(killers=st.sets(st.sampled_from(range(len(COMPANY)))))
def test_no_other_item_fails_however_many_end_processes(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    killers: set[int],
) -> None:
    started.__init__()  # type: ignore[misc]
    changed(change=kill(*(COMPANY[n] for n in killers)))
    try:
        assert failed(started.embed(preprocessed(COMPANY))) == sorted(killers)
    except DeviceError:
        # More in a row than one device is allowed: nothing shows that it is not the device.
        assert killers >= {0, 1, 2, 3}


@pytest.mark.parametrize("items", range(1, len(COMPANY) + 1))
def test_a_device_on_which_every_pack_fails_is_no_items_fault(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    items: int,
) -> None:
    def fail(grids: list[Grid]) -> None:
        if grids != [(1, 2, 2)]:  # The smallest there is comes through.
            raise RuntimeError(STICKY)

    def fail_too(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        raise RuntimeError(STICKY)

    changed(change=fail_too, blank=fail)
    with pytest.raises(DeviceError) as told:
        started.embed(preprocessed(COMPANY[:items]))
    assert str(told.value) == (
        "the encoder's process ended 6 times in a row on machine (01234567) gpu 3: CUDA error: an "
        "illegal memory access was encountered; shards stay open, run the same command again"
    )
    assert started.ended == 6


def test_an_item_without_company_fails_once_a_full_pack_shows_that_the_device_is_well(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    packs: list[list[Grid]] = []
    changed(change=kill((1, 8, 8)), blank=packs.append)
    assert failed(started.embed(preprocessed([(1, 8, 8)]), token_budget=200)) == [0]
    assert started.ended == 4
    # Every process looks at the device as it starts.
    assert packs == [[(1, 2, 2)]] * 5 + [[(1, 16, 16)] * 3]


def test_a_device_that_fails_with_every_item_is_found_though_blank_images_pass(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    changed(change=kill(*COMPANY))
    assert failed(started.embed(preprocessed(COMPANY[:1]))) == [0]
    with pytest.raises(DeviceError, match="it crashed or was killed"):
        started.embed(preprocessed(COMPANY[:2]).slice(1))


@pytest.mark.parametrize("ends", [1, 2, 3, 5])
def test_kills_from_outside_fail_no_item(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    ends: int,
) -> None:
    def kill_at_first(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if started.ended < ends:
            raise Ended
        return tokens

    changed(change=kill_at_first)
    out = started.embed(preprocessed(COMPANY))
    assert started.ended == ends
    assert failed(out) == []


def test_a_process_whose_device_fails_ends_and_the_next_one_goes_on(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    def fail_at_first(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if started.ended < 2:
            raise RuntimeError(STICKY)
        return tokens

    changed(change=fail_at_first)
    out = started.embed(preprocessed(COMPANY))
    assert started.ended == 2
    assert failed(out) == []


def test_a_device_that_fails_before_the_first_item_ends_processes_too(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    def fail(grids: list[Grid]) -> None:
        raise RuntimeError(STICKY)

    changed(blank=fail)
    with pytest.raises(DeviceError, match="6 times in a row on machine"):
        started.embed(preprocessed(COMPANY))
    assert started.ended == 6


def test_an_items_ends_on_another_device_are_not_held_against_it(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    changed(change=kill((1, 2, 2)))
    with pytest.MonkeyPatch.context() as elsewhere:
        elsewhere.setattr(socket, "gethostname", lambda: "sick machine")
        assert failed(started.embed(preprocessed(COMPANY))) == [1]
    changed()
    started.process = None
    assert failed(started.embed(preprocessed(COMPANY))) == []


@pytest.mark.parametrize(
    ("error", "ends"),
    [
        (torch.AcceleratorError("unspecified launch failure"), True),
        (RuntimeError("CUDA error: device-side assert triggered"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"), True),
        (RuntimeError("Triton Error [CUDA]: misaligned address"), True),
        (RuntimeError("CUDA error: out of memory"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_of_the_device_are_told_from_others(error: RuntimeError, ends: bool) -> None:
    assert is_device_error(error) == ends


def test_a_block_without_an_item_says_nothing_of_its_device(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    changed()
    started.embed(preprocessed([(1, 2, 2)]))
    started.attempts.start("actor", "machine (01234567) gpu 3")
    started.embed(preprocessed([None]))
    assert started.attempts.ends("actor") == 1
