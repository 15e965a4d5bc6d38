"""Encoders whose processes end: the guilty item or device is found, and nothing else fails."""

from __future__ import annotations

import socket
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import DeviceError
from tests.support.encoding import Changed, Grid, stage
from tests.support.processes import Ended, Ray, failed, kill

pytestmark = pytest.mark.usefixtures("one_thread")


# All of different sizes, by which they are told apart; a clip among them.
COMPANY: list[Grid] = [(1, 4, 6), (1, 2, 2), (3, 2, 4), (1, 6, 6), (1, 8, 8), (1, 2, 20)]
STICKY = "CUDA error: an illegal memory access was encountered\nand what to do about it"


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


@pytest.mark.parametrize("rows_a_block", [1, 2])
@pytest.mark.parametrize("killer", [0, 2, 5])
def test_the_item_that_ends_every_process_is_found_among_blocks_that_share_packs(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    killer: int,
    rows_a_block: int,
) -> None:
    rows = preprocessed(COMPANY)
    changed(change=kill(COMPANY[killer]))
    blocks = [rows.slice(start, rows_a_block) for start in range(0, len(COMPANY), rows_a_block)]
    out = pa.concat_tables(started.embed_together(blocks))
    assert failed(out) == [killer]
    assert out["item_id"].equals(rows["item_id"])
    assert started.ended == 4


@pytest.mark.whole
@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(killers=st.sets(st.sampled_from(range(len(COMPANY)))), rows_a_block=st.integers(1, 3))
def test_no_other_item_of_blocks_that_share_packs_fails(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    killers: set[int],
    rows_a_block: int,
) -> None:
    started.__init__()  # type: ignore[misc]
    changed(change=kill(*(COMPANY[n] for n in killers)))
    rows = preprocessed(COMPANY)
    blocks = [rows.slice(start, rows_a_block) for start in range(0, len(COMPANY), rows_a_block)]
    try:
        assert failed(pa.concat_tables(started.embed_together(blocks))) == sorted(killers)
    except DeviceError:
        assert len(killers) > 1


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


def test_a_block_without_an_item_says_nothing_of_its_device(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    changed()
    started.embed(preprocessed([(1, 2, 2)]))
    started.notes.start("actor", "machine (01234567) gpu 3")
    started.embed(preprocessed([None]))
    assert started.notes.ends("actor") == 1
