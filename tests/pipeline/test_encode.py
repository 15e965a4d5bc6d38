"""The encoder stage, called as the engine calls it, with the tiny preset and without the engine."""

from __future__ import annotations

import collections
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

import encoder
import encoder.blocks
from encoder import Glm4vVisionModel
from encoder.attention import Segments, attend
from pipeline import schema
from pipeline.errors import DeviceError
from pipeline.idle_cpus import Sharing
from pipeline.progress import Counts
from tests.support.encoding import (
    GRIDS,
    Changed,
    Grid,
    alone,
    spoil,
    stage,
    vectors,
)
from tests.support.processes import Ray

pytestmark = pytest.mark.usefixtures("one_thread")


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
    tiny_model: Glm4vVisionModel,
    preprocessed: Callable[..., pa.Table],
    options: dict[str, Any],
    token_budget: int,
) -> None:
    found = vectors(stage(token_budget=token_budget, **options)(preprocessed(GRIDS)))
    expected = alone(tiny_model, options)
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
    tiny_model: Glm4vVisionModel, preprocessed: Callable[..., pa.Table]
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
    encode, rows = stage(token_budget=8, calls=3), preprocessed(GRIDS)
    blocks = [rows.slice(start, 2) for start in (0, 2, 4)] * 2
    with ThreadPoolExecutor(3) as callers:
        found = list(callers.map(encode, blocks))
    for block, out in zip(blocks, found, strict=True):
        own = encode(block)
        assert out.drop_columns("embedding").equals(own.drop_columns("embedding"))
        scale = np.abs(vectors(own)).max()
        np.testing.assert_allclose(vectors(out), vectors(own), rtol=0, atol=1e-5 * scale)


def test_packs_keep_the_token_budget(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed]
) -> None:
    fake = changed()
    stage(token_budget=8)(preprocessed(GRIDS))
    tokens = [[h * w // 4 for _, h, w in pack] for pack in fake.packs]
    assert sorted(token for pack in tokens for token in pack) == [1, 1, 2, 2, 2, 6, 10, 16]
    assert all(sum(pack) <= 8 or len(pack) == 1 for pack in tokens)


@pytest.mark.parametrize("options", [{}, {"pool": "max"}, {"normalize": True}])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_vector_that_is_not_finite_fails_its_item_alone(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    options: dict[str, Any],
    value: float,
) -> None:
    rows = preprocessed(GRIDS)
    clean = stage(**options)(rows)
    changed(change=spoil((1, 4, 6), value))
    out = stage(**options)(rows)
    assert out["error_code"].to_pylist() == [None, "not_finite", None, None, None, None]
    assert out["error_message"][1].as_py() == "the float32 vector is not finite"
    np.testing.assert_array_equal(*(np.delete(vectors(t), 1, axis=0) for t in (out, clean)))


def test_an_item_that_an_encoder_makes_too_large_for_half_precision_fails_alone(
    preprocessed: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights as a checkpoint could have them; nothing else is changed."""
    rows = preprocessed(GRIDS)
    largest = np.abs(vectors(stage()(rows))).max(axis=1)
    lost = int(largest.argmax())
    first, second = np.sort(largest)[[-1, -2]]
    assert first > 1.05 * second
    model = encoder.load_encoder("tiny", seed=7)
    model.merger.down_proj.weight.mul_(float(65504 / np.sqrt(first * second)))
    monkeypatch.setattr(encoder, "load_encoder", lambda *args, **options: model, raising=False)
    full, half = stage()(rows), stage(output_dtype="float16")(rows)
    assert full["error_code"].null_count == len(GRIDS)
    codes = [None] * len(GRIDS)
    codes[lost] = "not_finite"
    assert half["error_code"].to_pylist() == codes
    assert half["error_message"][lost].as_py() == "the float16 vector is not finite"
    expected = np.delete(vectors(full), lost, axis=0).astype(np.float16)
    np.testing.assert_array_equal(np.delete(vectors(half), lost, axis=0), expected)


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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_an_encoder_that_computes_something_else_embeds_nothing(
    preprocessed: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    def to_all(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, own: Segments) -> torch.Tensor:
        return attend(q, k, v, Segments.of([len(q)], q.device))

    rows = preprocessed(GRIDS)
    assert stage(dtype=dtype)(rows)["error_code"].null_count == len(GRIDS)
    monkeypatch.setattr(encoder.blocks, "attend", to_all)
    encode = stage(dtype=dtype)
    for _ in range(2):
        with pytest.raises(DeviceError) as told:
            encode(rows)
    assert re.fullmatch(
        rf"the encoder's tokens are off by 0\.0\d+ of their size on a known input, over the "
        rf"[0-9.]+ that torch\.{dtype} on cpu explains \(cpu of .+\); shards stay open, run the "
        "same command again without that device",
        str(told.value),
    )


def test_a_process_with_a_gpu_that_torch_does_not_see_fails_the_first_call(
    preprocessed: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    encode = stage(device="cuda")
    with pytest.raises(DeviceError) as told:
        encode(preprocessed(GRIDS))
    assert re.fullmatch(
        rf"Ray has a GPU on .+, but torch {re.escape(torch.__version__)} there, built for CUDA "
        r"13\.0, sees none; .+",
        str(told.value),
    )


@pytest.mark.parametrize(("share", "fractions"), [(0.5, [0.5]), (1, []), (2, [])])
def test_encoders_that_share_a_gpu_share_its_memory(
    monkeypatch: pytest.MonkeyPatch, share: float, fractions: list[float]
) -> None:
    def load(*args: object, **options: object) -> None:
        raise ValueError("far enough")

    found: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", found.append)
    monkeypatch.setattr(encoder, "load_encoder", load, raising=False)
    stage(device="cuda", gpu_share=share)
    assert found == fractions


def test_an_encoder_that_cannot_be_loaded_fails_the_first_call(
    preprocessed: Callable[..., pa.Table],
) -> None:
    encode = stage(location="nowhere")
    with pytest.raises(ValueError, match="nowhere"):
        encode(preprocessed(GRIDS))


# A call that shares no packs could not have filled its last one.
@pytest.mark.parametrize(("calls", "capacity"), [(1, 16 + 8 + 8 + 6), (2, 16 + 8 + 8 + 8)])
def test_items_failures_tokens_and_capacity_are_counted(
    preprocessed: Callable[..., pa.Table], started: Ray, calls: int, capacity: int
) -> None:
    rows = preprocessed([(1, 2, 2), None, (1, 4, 6), (1, 4, 6), (1, 4, 8), (1, 8, 8)])
    began = time.perf_counter()
    started.embed(rows, token_budget=8, calls=calls)
    most_s = time.perf_counter() - began
    # Packs of 16 (over the budget, full by itself), 8, 6 with 1, and 6 tokens.
    found = started.notes.snapshot()
    assert replace(found, encode_s=0.0) == Counts(
        items=6,
        errors=collections.Counter({"corrupt": 1}),
        tokens=37,
        capacity=capacity,
        encoded_blocks=1,
    )
    assert 0 < found.encode_s < most_s


def test_operations_are_counted_where_the_devices_ceiling_is_known(
    preprocessed: Callable[..., pa.Table], started: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoder, "ceiling_flop_s", lambda device, dtype: 1e12, raising=False)
    started.embed(preprocessed([(1, 2, 2), None, (3, 4, 6)]))
    found = started.notes.snapshot()
    grids = [(1, 2, 2), (3, 4, 6)]
    assert found.flop == encoder.forward_flop(encoder.PRESETS["tiny"], grids)
    assert found.ceiling_flop == pytest.approx(found.encode_s * 1e12)


def test_while_preprocessing_rests_packs_have_more_threads_and_the_same_vectors(
    preprocessed: Callable[..., pa.Table], monkeypatch: pytest.MonkeyPatch
) -> None:
    grids = [(1, 16, 14)] * 9 + [(3, 12, 16), (1, 40, 40)]
    expected = stage()(preprocessed(grids))
    encode, threads = stage(sharing=Sharing(threads=2, encoders=1, items=99)), []
    starter = encode._encoder._packs._starter
    # One block is in its hands; then others wait for it, and took no time; then there is no other;
    # then all are preprocessed.
    for blocks, items in ((1, 11), (5, 55), (1, 11), (9, 99)):
        counts = Counts(preprocessed_blocks=blocks, preprocessed=items)
        attempts: Any = SimpleNamespace(run_counts=lambda counts=counts: counts)
        encode._take_idle_cpus(attempts)
        threads.append(starter.submit(torch.get_num_threads).result())
        assert encode(preprocessed(grids)).equals(expected)
    assert threads == [1, 2, 1, 2]


def test_a_seed_makes_the_vectors_what_they_are(preprocessed: Callable[..., pa.Table]) -> None:
    rows = preprocessed(GRIDS[:2])
    assert stage()(rows).equals(stage()(rows))
    assert not stage()(rows).equals(stage(seed=8)(rows))
