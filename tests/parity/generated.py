"""Generated towers and grids: the same ones at every run."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st

from encoder import Glm4vVisionConfig

Grid = tuple[int, int, int]


def generated(max_examples: int) -> settings:
    """So many examples, drawn alike at every run."""
    return settings(max_examples=max_examples, derandomize=True, deadline=None, database=None)


@st.composite
def towers(draw: st.DrawFn) -> Glm4vVisionConfig:
    """Narrow towers of every patch, temporal, merge and head size.

    At least 32 wide: of four values, a norm can blow rounding up to 1e-5, ours and transformers'.
    """
    head_dim = draw(st.sampled_from([4, 8, 20, 32, 64, 80, 128]))
    num_heads = draw(st.integers(-(-32 // head_dim), max(1, 64 // head_dim)))
    patch_size = draw(st.sampled_from([14, 16]))
    return Glm4vVisionConfig(
        depth=draw(st.integers(1, 3)),
        hidden_size=head_dim * num_heads,
        num_heads=num_heads,
        image_size=draw(st.integers(patch_size, 12 * patch_size)),
        patch_size=patch_size,
        temporal_patch_size=draw(st.sampled_from([1, 2, 4])),
        spatial_merge_size=draw(st.sampled_from([1, 2, 3])),
        out_hidden_size=draw(st.sampled_from([24, 33, 64])),
        intermediate_size=draw(st.sampled_from([40, 96])),
        attention_bias=draw(st.booleans()),
        rms_norm_eps=draw(st.sampled_from([1e-6, 1e-5, 1e-2])),
        rope_theta=draw(st.sampled_from([100.0, 10000.0, 500000.0])),
    )


@st.composite
def packs(draw: st.DrawFn, merge_size: int, most_items: int = 4) -> list[Grid]:
    """Grids of a few items, stills and clips, of one token and more."""
    side = st.integers(1, 6).map(lambda tokens: tokens * merge_size)
    return draw(st.lists(st.tuples(st.integers(1, 3), side, side), min_size=1, max_size=most_items))
