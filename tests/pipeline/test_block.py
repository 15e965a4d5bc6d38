"""Segments and their places: what comes of them is found again, whatever the packs were."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.block import Block

# Two by two patches a token, and three values a vector.
MERGED, WIDTH = 4, 3

grids = st.lists(
    st.tuples(
        st.integers(1, 4),
        st.integers(1, 3).map(lambda n: 2 * n),
        st.integers(1, 3).map(lambda n: 2 * n),
        st.booleans(),
    ),
    max_size=6,
)


def block_of(items: list[tuple[int, int, int, bool]]) -> Block:
    """Byte p of a patch of segment s of item n is 16 n + s; clips' patches have 6, stills' 3."""
    patches = [
        np.repeat(np.arange(t) + 16 * n, h * w * (6 if t > 1 or clip else 3)).astype(np.uint8)
        for n, (t, h, w, clip) in enumerate(items)
    ]
    return Block(
        names=[f"item {n}" for n in range(len(items))],
        grids=[[t, h, w] for t, h, w, _ in items],
        patches=patches,
        width=WIDTH,
        merged=MERGED,
        keeps_tokens=True,
    )


def encode(block: Block) -> None:
    """Token k of a segment is its patches' byte plus k / 16, a vector its first token plus 0.5."""
    for index, length in enumerate(block.lengths):
        levels = block.levels(index)
        assert len(levels) == MERGED * length
        first = float(levels[0, 0])
        tokens = np.repeat(first + np.arange(length)[:, None] / 16, WIDTH, axis=1)
        vector = np.full(WIDTH, first + 0.5, np.float32)
        block.fill(index, vector, tokens.astype(np.float16), np.ones(length, np.bool_))


@given(grids, st.data())
def test_what_comes_of_every_segment_is_put_in_its_place(
    items: list[tuple[int, int, int, bool]], data: st.DataObject
) -> None:
    block = block_of(items)
    encode(block)
    failed = data.draw(st.sets(st.sampled_from(range(len(items)))) if items else st.just(set()))
    kept, tokens = block.without(failed)
    expected = [
        (n, s, 16 * n + s, h * w // MERGED)
        for n, (t, h, w, _) in enumerate(items)
        for s in range(t)
        if n not in failed
    ]
    found = [(block.segments[i].item, block.segments[i].slice) for i in kept]
    assert found == [(n, s) for n, s, _, _ in expected]
    assert block.vectors[kept].tolist() == [[value + 0.5] * WIDTH for _, _, value, _ in expected]
    assert tokens.tolist() == [
        [value + k / 16] * WIDTH for _, _, value, length in expected for k in range(length)
    ]


@given(grids)
def test_an_items_vector_is_pooled_from_all_of_its_segments(
    items: list[tuple[int, int, int, bool]],
) -> None:
    block = block_of(items)
    encode(block)
    means, most = (block.pooled(pool) for pool in ("mean", "max"))
    for n, (t, *_) in enumerate(items):
        assert means[n].tolist() == [16 * n + (t - 1) / 2 + 0.5] * WIDTH
        assert most[n].tolist() == [16 * n + t - 1 + 0.5] * WIDTH


def test_one_token_that_is_not_finite_marks_its_segment_alone() -> None:
    block = block_of([(2, 2, 4, True), (1, 2, 2, False)])
    for index, finite in enumerate([[True, False], [True, True], [True]]):
        tokens = np.zeros((len(finite), WIDTH), np.float16)
        block.fill(index, np.zeros(WIDTH, np.float32), tokens, np.array(finite))
    assert block.finite.tolist() == [False, True, True]


def test_tokens_that_nobody_wants_take_no_memory() -> None:
    block = Block(
        names=["a"],
        grids=[[2, 2, 2]],
        patches=[np.zeros(48, np.uint8)],
        width=WIDTH,
        merged=MERGED,
    )
    none = np.zeros((0, WIDTH), np.float16)
    block.fill(1, np.ones(WIDTH, np.float32), none, np.zeros(0, np.bool_))
    assert block.vectors.tolist() == [[0] * WIDTH, [1] * WIDTH]
    assert block.tokens.nbytes == 0
    assert block.without(set())[0] == [0, 1]


def test_patches_are_views() -> None:
    block = block_of([(4, 2, 2, True)])
    assert np.shares_memory(block.levels(2), block.patches[0])
    assert block.levels(2).tolist() == [[2] * 6] * 4
