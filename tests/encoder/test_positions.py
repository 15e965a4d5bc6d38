import pytest
import torch
import torch.nn.functional as F

import encoder.positions
from encoder.positions import (
    PositionTables,
    cubic_taps,
    interpolate_positions,
    patch_coordinates,
    rotate,
)


def make_tables(grid_size: int = 4, head_dim: int = 8) -> PositionTables:
    return PositionTables(head_dim=head_dim, rope_theta=10000.0, grid_size=grid_size, merge_size=2)


def test_patches_run_block_by_block() -> None:
    row, column = patch_coordinates(4, 4, merge_size=2)
    assert row.tolist() == [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    assert column.tolist() == [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1, 2, 3, 2, 3]


def test_rotary_angles_are_rows_then_columns() -> None:
    tables = make_tables().get(2, 4, torch.device("cpu"))
    # The fourth patch of the second block: row 1, column 3. Frequencies 1 and 1/100.
    torch.testing.assert_close(tables.cos_SR[7], torch.tensor([1.0, 0.01, 3.0, 0.03]).cos())
    torch.testing.assert_close(tables.sin_SR[7], torch.tensor([1.0, 0.01, 3.0, 0.03]).sin())


def test_rotation_by_a_quarter_turn_swaps_the_halves() -> None:
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4)
    turned = rotate(x, torch.zeros(1, 2), torch.ones(1, 2))
    assert turned.flatten().tolist() == [-3.0, -4.0, 1.0, 2.0]


@pytest.mark.parametrize(("height", "width"), [(2, 2), (4, 6), (24, 24), (8, 50), (96, 2)])
def test_interpolation_equals_grid_sample(height: int, width: int) -> None:
    torch.manual_seed(0)
    grid_size, dim = 24, 3
    weight = torch.randn(grid_size, grid_size, dim)
    tables = make_tables(grid_size).get(height, width, torch.device("cpu"))
    ours = interpolate_positions(weight.flatten(0, 1), tables)

    row, column = patch_coordinates(height, width, merge_size=2)
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
    taps, weights = cubic_taps(24, 24)
    assert taps[:, 1].tolist() == list(range(24))
    assert torch.equal(weights, torch.tensor([0.0, 1.0, 0.0, 0.0]).double().expand(24, 4))


def test_halfway_between_two_points_four_make_one_and_the_edge_stands_for_what_is_beyond() -> None:
    taps, weights = cubic_taps(4, 2)
    assert taps.tolist() == [[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]]
    # Keys' kernel at 1.25, 0.25, 0.75 and 1.75.
    quarter = [-0.10546875, 0.87890625, 0.26171875, -0.03515625]
    assert weights.tolist() == [quarter[::-1], quarter, quarter[::-1], quarter]


def test_tables_are_made_once_a_grid() -> None:
    tables = make_tables()
    device = torch.device("cpu")
    assert tables.get(2, 4, device) is tables.get(2, 4, device)
    assert tables.get(2, 4, device) is not tables.get(4, 2, device)


def test_the_least_recently_used_grids_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder.positions, "_MAX_CACHED_PATCHES", 20)
    tables = make_tables()
    device = torch.device("cpu")
    used, unused = tables.get(2, 4, device), tables.get(4, 2, device)
    assert tables.get(2, 4, device) is used
    tables.get(2, 6, device)
    assert tables.get(2, 4, device) is used
    assert tables.get(4, 2, device) is not unused


def test_a_grid_past_the_bound_is_still_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder.positions, "_MAX_CACHED_PATCHES", 20)
    tables = make_tables()
    for _ in range(2):
        assert tables.get(8, 8, torch.device("cpu")).cos_SR.shape == (64, 4)


def test_tables_made_in_inference_mode_serve_training_later() -> None:
    tables = PositionTables(head_dim=8, rope_theta=10000.0, grid_size=4, merge_size=2)
    with torch.inference_mode():
        tables.get(2, 4, torch.device("cpu"))
    assert not any(table.is_inference() for table in tables.get(2, 4, torch.device("cpu")))
