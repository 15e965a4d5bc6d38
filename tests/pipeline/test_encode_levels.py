"""Segments and tokens: what each level keeps is what the model gives for the item alone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from encoder import Glm4vVisionModel
from pipeline import schema
from tests.support.encoding import Changed, Grid, levels, spoil, stage, vectors

pytestmark = pytest.mark.usefixtures("one_thread")

# Clips among stills, two of them with segments of a still's size.
MIXED: list[Grid] = [(3, 4, 6), (1, 4, 6), (1, 8, 8), (2, 2, 4), (5, 4, 6), (1, 2, 2)]

Preprocessed = Callable[..., pa.Table]


def tokens_alone(model: Glm4vVisionModel, n: int, features: str = "merged") -> np.ndarray:
    """Tokens [t, tokens a segment, D] of one item by itself, in plain PyTorch."""
    with torch.inference_mode():
        output = model.forward_features(torch.from_numpy(levels(MIXED[n], n)), [MIXED[n]])
    found = output.pooler_output if features == "merged" else output.last_hidden_state
    return found.numpy().reshape(MIXED[n][0], -1, found.shape[1])


def segment_vectors(out: pa.Table) -> list[np.ndarray]:
    """[t, D] a row."""
    return [np.array(row).reshape(-1, 256) for row in out["segment_embeddings"].to_pylist()]


def token_rows(out: pa.Table) -> list[np.ndarray]:
    """[tokens, D] a row."""
    lists = out["token_embeddings"].to_pylist()
    return [np.array(row, np.float16).reshape(-1, 256) for row in lists]


@pytest.mark.parametrize("token_budget", [1, 7, 2048])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"pool": "max"},
        {"normalize": True},
        {"features": "last_hidden_state", "pool": "max", "normalize": True},
    ],
    ids=lambda options: " ".join(f"{name}={value}" for name, value in options.items()) or "default",
)
def test_segments_and_tokens_are_those_of_the_item_alone(
    tiny_model: Glm4vVisionModel,
    preprocessed: Preprocessed,
    options: dict[str, Any],
    token_budget: int,
) -> None:
    rows = preprocessed(MIXED)
    out = stage(level="token", token_budget=token_budget, **options)(rows)
    assert out.schema.equals(schema.encoded(rows.schema, pa.float32(), "token"))
    pooled, tokens = segment_vectors(out), token_rows(out)
    for n, grid in enumerate(MIXED):
        alone = tokens_alone(tiny_model, n, options.get("features", "merged"))
        scale = np.abs(alone).max()
        assert tokens[n].shape == (grid[0] * grid[1] * grid[2] // 4, 256)
        # Half a unit of float16, and what packs change.
        np.testing.assert_allclose(
            tokens[n], alone.reshape(-1, 256), rtol=2**-11, atol=1e-5 * scale
        )
        expected = alone.max(axis=1) if options.get("pool") == "max" else alone.mean(axis=1)
        if options.get("normalize"):
            expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        np.testing.assert_allclose(pooled[n], expected, atol=1e-5 * np.abs(expected).max())


def test_the_segments_of_a_clip_differ(preprocessed: Preprocessed) -> None:
    # Else the test above could not tell their order.
    for found in segment_vectors(stage(level="frame")(preprocessed(MIXED)))[:1]:
        distances = np.linalg.norm(found[:, None] - found[None], axis=2)
        assert distances[~np.eye(len(found), dtype=bool)].min() > 1e-2 * np.abs(found).max()


@pytest.mark.parametrize("options", [{}, {"output_dtype": "float16"}, {"normalize": True}])
def test_a_level_adds_columns_and_changes_none(
    preprocessed: Preprocessed, options: dict[str, Any]
) -> None:
    rows = preprocessed([None, *MIXED])
    item, frame, token = (
        stage(level=level, **options)(rows) for level in ("item", "frame", "token")
    )
    assert token.drop_columns("token_embeddings").equals(frame)
    assert frame.drop_columns("segment_embeddings").equals(item)


def test_half_precision_segments_are_the_full_ones_rounded(preprocessed: Preprocessed) -> None:
    rows = preprocessed(MIXED)
    half, full = (stage(level="frame", output_dtype=d)(rows) for d in ("float16", "float32"))
    assert half["segment_embeddings"].type == pa.large_list(pa.float16())
    for ours, expected in zip(segment_vectors(half), segment_vectors(full), strict=True):
        np.testing.assert_array_equal(ours, expected.astype(np.float16))


def test_packs_mix_kinds_and_clips_spread_over_them(
    preprocessed: Preprocessed, changed: Callable[..., Changed]
) -> None:
    fake = changed()
    stage(token_budget=14)(preprocessed(MIXED))
    assert sorted(grid for pack in fake.packs for grid in pack) == sorted(
        (1, h, w) for t, h, w in MIXED for _ in range(t)
    )
    # One of 16 tokens, nine of 6 in pairs, two of 2 and one of 1: a clip lies in several packs.
    sizes = [sum(h * w // 4 for _, h, w in pack) for pack in fake.packs]
    assert sorted(sizes) == [6, 12, 13, 14, 14, 16]
    assert len(fake.kinds) == 6 and {*fake.kinds} == {1, 2}


def test_a_clip_of_one_segment_is_told_from_a_still_by_its_patches(
    tiny_model: Glm4vVisionModel, preprocessed: Preprocessed
) -> None:
    rows = preprocessed([(1, 4, 6), (1, 4, 6)])
    clip = np.random.default_rng(5).integers(0, 256, (24, 1176), np.uint8)
    patches = pa.array([rows["patches"][0].as_py(), clip.tobytes()], pa.large_binary())
    rows = rows.set_column(rows.schema.get_field_index("patches"), "patches", patches)
    with torch.inference_mode():
        expected = tiny_model(torch.from_numpy(clip), [(1, 4, 6)]).mean(0).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(vectors(stage()(rows))[1], expected, atol=1e-5 * scale)


def test_rows_without_an_embedding_have_no_segments_either(
    preprocessed: Preprocessed, changed: Callable[..., Changed]
) -> None:
    def too_large(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if (1, 2, 4) in grids:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tokens

    rows = preprocessed([*MIXED, None])
    whole = stage(level="token")(rows)
    changed(change=too_large)
    out = stage(level="token")(rows)
    assert out["error_code"].to_pylist() == [
        *[None] * 3,
        "encode_failed",
        None,
        None,
        "corrupt",
    ]
    assert out["segment_embeddings"].null_count == out["token_embeddings"].null_count == 0
    for read in (segment_vectors, token_rows):
        found, expected = read(out), read(whole)
        assert [len(rows) for rows in found][3] == 0 != len(expected[3])
        expected[3] = expected[3][:0]
        for ours, theirs in zip(found, expected, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
    # What failed leaves nothing behind in the buffers.
    assert len(out["token_embeddings"].chunk(0).values) == sum(map(len, token_rows(out))) * 256


def test_a_token_too_large_for_float16_fails_its_item_alone(
    preprocessed: Preprocessed, changed: Callable[..., Changed]
) -> None:
    changed(change=spoil((1, 2, 4), 1e6))
    rows = preprocessed(MIXED)
    assert stage(level="frame")(rows)["error_code"].null_count == len(MIXED)
    out = stage(level="token")(rows)
    assert out["error_code"].to_pylist() == [None, None, None, "not_finite", None, None]
    assert out["error_message"][3].as_py() == "a token of segment 0 is not finite in float16"
    assert [len(tokens) for tokens in token_rows(out)] == [18, 6, 16, 0, 30, 1]


def test_a_segment_too_large_for_half_precision_fails_its_item_though_the_mean_fits(
    preprocessed: Preprocessed, changed: Callable[..., Changed]
) -> None:
    def second(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        tokens = tokens.clone()
        tokens[0, 3] = 6 * 1e5 if len(grids) == 2 else tokens[0, 3]
        return tokens

    rows = preprocessed([(3, 4, 6)])
    changed(change=second)
    # Packs of two segments and of one: only the first segment's vector overflows.
    found = {
        level: stage(level=level, output_dtype="float16", token_budget=12)(rows)
        for level in ("item", "frame")
    }
    assert found["item"]["error_code"].null_count == 1
    assert found["frame"]["error_code"].to_pylist() == ["not_finite"]
    message = "the float16 vector of segment 0 is not finite"
    assert found["frame"]["error_message"].to_pylist() == [message]
    assert [len(rows) for rows in segment_vectors(found["frame"])] == [0]


def test_tokens_are_handed_over_in_the_buffer_that_they_were_collected_in(
    preprocessed: Preprocessed, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = stage(level="token", token_budget=8)
    blocks = []
    make = encode._encoder.block
    monkeypatch.setattr(encode._encoder, "block", lambda *a: blocks.append(make(*a)) or blocks[-1])
    out = encode(preprocessed(MIXED))
    values = out["token_embeddings"].chunk(0).values
    assert values.buffers()[1].address == blocks[0].tokens.ctypes.data


def test_several_calls_at_once_do_not_mix_tokens(preprocessed: Preprocessed) -> None:
    encode, rows = stage(level="token", token_budget=8, calls=3), preprocessed(MIXED)
    blocks = [rows.slice(start, 2) for start in (0, 2, 4)] * 2
    with ThreadPoolExecutor(3) as callers:
        found = list(callers.map(encode, blocks))
    for block, out in zip(blocks, found, strict=True):
        own = encode(block)
        for read, off in ((segment_vectors, 1e-5), (token_rows, 1e-3)):
            for ours, theirs in zip(read(out), read(own), strict=True):
                scale = np.abs(theirs).max()
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=off * scale)


def test_a_block_without_an_item_has_no_segments(preprocessed: Preprocessed) -> None:
    out = stage(level="token")(preprocessed([None, None]))
    assert [len(rows) for rows in token_rows(out)] == [0] * out.num_rows
    assert stage(level="token")(preprocessed(MIXED[:1]).slice(0, 0)).num_rows == 0
