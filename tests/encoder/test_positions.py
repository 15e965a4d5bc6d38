import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import encoder.positions
from encoder.positions import (
    PackTables,
    PositionTables,
    cubic_taps,
    interpolate_positions,
    rotate,
)


def make_tables(grid_size: int = 4, head_dim: int = 8) -> PositionTables:
    return PositionTables(head_dim=head_dim, rope_theta=10000.0, grid_size=grid_size, merge_size=2)


def tables_of(tables: PositionTables, *sizes: tuple[int, int]) -> PackTables:
    return tables.of(sizes, torch.device("cpu"))


def places(height: int, width: int, merge: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Row and column of each patch, as transformers orders `pixel_values`."""
    blocks = (height // merge, merge, width // merge, merge)
    place = torch.arange(height * width).view(blocks).transpose(1, 2).flatten()
    return place // width, place % width


def angles(tables: PackTables) -> torch.Tensor:
    """What they were before sines and cosines, as far as they are between 0 and pi."""
    return torch.atan2(tables.sin_NR, tables.cos_NR)


def test_patches_run_block_by_block() -> None:
    # Two frequencies: 1, and 1 / 100, which tells all rows and columns apart.
    row, column = (100 * angles(tables_of(make_tables(), (4, 4)))[:, [1, 3]]).round().T.tolist()
    assert row == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert column == [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]


@pytest.mark.parametrize("merge", [1, 2, 3])
def test_segments_follow_each_other(merge: int) -> None:
    sizes = [(2, 4), (6, 2), (2, 4), (1, 1), (3, 5)]
    sizes = [(merge * height, merge * width) for height, width in sizes]
    tables = PositionTables(head_dim=8, rope_theta=10000.0, grid_size=4, merge_size=merge)
    found = (100 * angles(tables_of(tables, *sizes))[:, [1, 3]]).round().long()
    expected = [torch.stack(places(*size, merge), 1) for size in sizes]
    assert torch.equal(found, torch.cat(expected))


@given(
    sizes=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=6),
)
@settings(max_examples=30, deadline=None)
def test_a_segments_tables_do_not_depend_on_its_pack(sizes: list[tuple[int, int]]) -> None:
    sizes = [(2 * height, 2 * width) for height, width in sizes]
    together = tables_of(make_tables(), *sizes)
    alone = [tables_of(make_tables(), size) for size in sizes]
    for found, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.equal(found, torch.cat(parts))


def test_rotary_angles_are_rows_then_columns() -> None:
    tables = tables_of(make_tables(), (2, 4))
    # The fourth patch of the second block: row 1, column 3. Frequencies 1 and 1/100.
    torch.testing.assert_close(tables.cos_NR[7], torch.tensor([1.0, 0.01, 3.0, 0.03]).cos())
    torch.testing.assert_close(tables.sin_NR[7], torch.tensor([1.0, 0.01, 3.0, 0.03]).sin())


def test_rotation_by_a_quarter_turn_swaps_the_halves() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    turned = rotate(x, torch.zeros(1, 2), torch.ones(1, 2))
    assert turned.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (24, 24), (8, 50), (96, 2)])
def test_interpolation_equals_grid_sample(height: int, width: int) -> None:
    torch.manual_seed(0)
    grid_size, dim = 24, 3
    weight = torch.randn(grid_size, grid_size, dim)
    tables = tables_of(make_tables(grid_size), (height, width))
    ours = interpolate_positions(weight.flatten(0, 1), tables)

    row, column = places(height, width)
    x, y = (column + 0.5) / width * 2 - 1, (row + 0.5) / height * 2 - 1
    sampled = F.grid_sample(
        weight.permute(2, 0, 1)[None].double(),
        torch.stack([x, y], dim=-1)[None, None].double(),
        mode="bicubic",
        padding_mode="border",
        align_corners=False,
    )
    torch.testing.assert_close(ours, sampled[0, :, 0].T.float(), rtol=0, atol=1e-5)


def test_the_learned_size_is_left_as_it_is() -> None:
    taps, weights = cubic_taps([24], 24)
    assert taps[:, 1].tolist() == list(range(24))
    assert torch.equal(weights, torch.tensor([0.0, 1.0, 0.0, 0.0]).double().expand(24, 4))


def test_halfway_between_two_points_four_make_one_and_the_edge_stands_for_what_is_beyond() -> None:
    taps, weights = cubic_taps([4], 2)
    assert taps.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    # Keys' kernel at 1.25, 0.25, 0.75 and 1.75.
    quarter = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    assert weights.tolist() == [quarter[::-1], quarter, quarter[::-1], quarter]


def test_taps_of_several_sides_follow_each_other() -> None:
    both = cubic_taps([4, 6], 5)
    for found, *alone in zip(both, cubic_taps([4], 5), cubic_taps([6], 5), strict=True):
        assert torch.equal(found, torch.cat(alone))


def test_a_patch_is_made_of_its_rows_taps_and_its_columns() -> None:
    tables = tables_of(make_tables(grid_size=4), (4, 4))
    # As many patches as embeddings: each is its own, the second of four taps along both sides.
    row, column = places(4, 4)
    assert tables.taps_NK[:, 4 * 1 + 1].tolist() == (4 * row + column).tolist()
    assert torch.equal(tables.weights_NK, F.one_hot(torch.tensor([5] * 16), 16).float())


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """Which side lengths were made, each time that some were."""
    found: list[list[int]] = []

    def recording(lengths: list[int], grid_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        found.append(lengths)
        return cubic_taps(lengths, grid_size)

    monkeypatch.setattr(encoder.positions, "cubic_taps", recording)
    return found


def test_a_side_length_is_made_once(made: list[list[int]]) -> None:
    tables = make_tables()
    tables_of(tables, (2, 4), (4, 4))
    first = tables_of(tables, (6, 2))
    again = tables_of(tables, (6, 2), (4, 6), (4, 2))
    assert made == [[2, 4], [2, 4, 6]]
    for ours, all_of_them in zip(first, again, strict=True):
        assert torch.equal(ours, all_of_them[: len(ours)])


def test_past_the_bound_only_a_packs_own_side_lengths_are_kept(
    monkeypatch: pytest.MonkeyPatch, made: list[list[int]]
) -> None:
    monkeypatch.setattr(encoder.positions, "_MAX_CACHED_PLACES", 12)
    tables = make_tables()
    for size in [(2, 4), (6, 2), (8, 8), (2, 4), (8, 10)]:
        found = tables_of(tables, size)
        for ours, fresh in zip(found, tables_of(make_tables(), size), strict=True):
            assert torch.equal(ours, fresh)
    # Of each pair the second is the fresh one's. The last is over the bound by itself.
    assert made[::2] == [[2, 4], [2, 4, 6], [8], [2, 4], [8, 10]]


def test_tables_made_in_inference_mode_serve_training_later() -> None:
    tables = make_tables()
    with torch.inference_mode():
        tables_of(tables, (2, 4))
    assert not any(table.is_inference() for table in tables_of(tables, (2, 4)))


def test_sides_that_are_no_multiples_of_a_merge_block_are_our_bug() -> None:
    with pytest.raises(AssertionError):
        tables_of(make_tables(), (2, 3))
