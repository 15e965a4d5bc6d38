"""Segments and their places: what comes of them is found again, whatever the packs were."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoder import plan_packs
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


def encode(block: Block, pack: list[int]) -> None:
    """Token k of a segment is its patches' byte plus k / 16, a vector its first token plus 0.5."""
    levels = np.concatenate([kind[:, 0] for kind in block.gather(pack)]).astype(np.float32)
    starts = np.cumsum([0, *(MERGED * block.lengths[index] for index in pack)])
    firsts = levels[starts[:-1]]
    tokens = [v + np.arange(block.lengths[i]) / 16 for v, i in zip(firsts, pack, strict=True)]
    rows = np.repeat(np.concatenate(tokens)[:, None], WIDTH, axis=1).astype(np.float16)
    vectors = np.repeat(firsts[:, None] + 0.5, WIDTH, axis=1)
    block.fill(pack, vectors, rows, np.ones(len(rows), np.bool_))


@given(grids, st.integers(1, 20), st.data())
def test_every_segment_is_encoded_once_and_put_in_its_place(
    items: list[tuple[int, int, int, bool]], budget: int, data: st.DataObject
) -> None:
    block = block_of(items)
    kinds = {2: 0, 1: 0}
    packs = plan_packs(block.lengths, budget) if block.lengths else []
    for pack in packs:
        ordered = block.by_kind(pack)
        assert sorted(ordered) == sorted(pack)
        kinds[len(block.gather(ordered))] += 1
        encode(block, ordered)
    assert sum(kinds.values()) == len(packs)
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
    if items:
        encode(block, block.by_kind(range(len(block.segments))))
    means, most = (block.pooled(pool) for pool in ("mean", "max"))
    for n, (t, *_) in enumerate(items):
        assert means[n].tolist() == [16 * n + (t - 1) / 2 + 0.5] * WIDTH
        assert most[n].tolist() == [16 * n + t - 1 + 0.5] * WIDTH


def test_one_token_that_is_not_finite_marks_its_segment_alone() -> None:
    block = block_of([(2, 2, 4, True), (1, 2, 2, False)])
    tokens = np.zeros((5, WIDTH), np.float16)
    finite = np.array([True, True, True, True, False])
    # Segments of 2, 1 and 2 tokens: the last token is the first segment's.
    block.fill([1, 2, 0], np.zeros((3, WIDTH), np.float32), tokens, finite)
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
    block.fill([0, 1], np.ones((2, WIDTH), np.float32), none, np.zeros(0, np.bool_))
    assert block.tokens.nbytes == 0
    assert block.without(set())[0] == [0, 1]


def test_patches_are_views_until_they_are_packed() -> None:
    block = block_of([(4, 2, 2, True)])
    assert np.shares_memory(block._patches_of(2), block.patches[0])
    (copied,) = block.gather([1, 2])
    assert copied.shape == (8, 6)
    assert not np.shares_memory(copied, block.patches[0])
