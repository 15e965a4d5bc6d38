"""Kernels of a GPU that fail: the next process uses plainer ones. The GPU is a pretended one."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
import torch

import encoder
from encoder import CompileError
from pipeline.errors import DeviceError
from pipeline.packs import PackedEncoder
from pipeline.rungs import RUNGS, Rung
from pipeline.watchdog import MOST_S, Watchdog
from tests.support.encoding import Changed, Grid
from tests.support.processes import Ray, failed

pytestmark = pytest.mark.usefixtures("one_thread")

ITEMS: list[Grid] = [(1, 4, 6), (1, 2, 2), (3, 2, 4)]
STICKY = "CUDA error: an illegal memory access was encountered\nand what to do about it"
REFUSED = "No available kernel. Aborting execution.\nand what to do about it"
Use = Callable[[Callable[[Rung], None]], None]


@pytest.fixture(autouse=True)
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHFLOW_TEST_GPUS", "1:8.0")


@pytest.fixture
def before_use(monkeypatch: pytest.MonkeyPatch) -> Use:
    """Does something before an encoder uses a rung."""

    def install(before: Callable[[Rung], None]) -> None:
        use_rung = PackedEncoder.use_rung

        def use(own: PackedEncoder, rung: Rung) -> None:
            own.rung = rung
            before(rung)
            use_rung(own, rung)

        monkeypatch.setattr(PackedEncoder, "use_rung", use)

    return install


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Lets all deadlines of the process pass: what is under way hangs."""
    dogs: list[Watchdog] = []

    def start(dog: Watchdog) -> None:
        dogs.append(dog)

    monkeypatch.setattr(Watchdog, "start", start)
    return lambda: dogs[-1].advance(MOST_S)


def kernels(table: pa.Table) -> set[str]:
    return set(table["device_kernels"].to_pylist())


def test_a_gpu_that_is_well_uses_the_first_rung(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    fake = changed()
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (kernels(out), fake.kernel) == ({"compiled varlen"}, "varlen")
    assert started.notes.remarks() == []


def test_kernels_that_refuse_a_pack_are_left_for_plainer_ones(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    def refuse(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if fake.kernel == "varlen":
            raise RuntimeError(REFUSED)
        return tokens

    fake = changed(change=refuse)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), started.ended, kernels(out)) == ([], 2, {"plain sdpa"})
    assert started.notes.remarks() == [
        f"cpu: No available kernel. Aborting execution.; plain {kernel} kernels are used"
        for kernel in ("varlen", "sdpa")
    ]


def test_an_error_that_stays_with_the_plainest_kernels_sets_the_device_aside(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    def refuse(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        raise RuntimeError(REFUSED)

    changed(change=refuse)
    with pytest.raises(DeviceError, match=r"ended 6 times in a row .* No available kernel"):
        started.embed(preprocessed(ITEMS), device="cuda")
    assert started.ended == 6


def test_an_item_that_no_kernels_take_is_found_and_gives_its_models_rungs_back(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    def refuse(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if (1, 4, 6) in grids:
            raise RuntimeError(REFUSED)
        return tokens

    changed(change=refuse)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert failed(out) == [0]
    assert started.notes.rungs("actor", "cpu", "cuda") == list(RUNGS["cuda"])


def test_a_gpu_on_which_nothing_can_be_loaded_is_set_aside(
    preprocessed: Callable[..., pa.Table], started: Ray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*arguments: object, **options: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory: another process has it all")

    monkeypatch.setattr(encoder, "load_encoder", load)
    with pytest.raises(DeviceError, match=r"6 times in a row .* another process has it all"):
        started.embed(preprocessed(ITEMS), device="cuda")


def test_kernels_that_leave_the_device_unusable_are_given_up_after_two_processes(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    before_use: Use,
) -> None:
    def fault(rung: Rung) -> None:
        if rung.kernel == "varlen":
            raise RuntimeError(STICKY)

    changed()
    before_use(fault)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), kernels(out)) == ([], {"plain sdpa"})
    assert started.ended == 4


def test_a_pack_that_fails_for_several_calls_costs_one_rung(
    preprocessed: Callable[..., pa.Table], changed: Callable[..., Changed], started: Ray
) -> None:
    def refuse(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if started.ended == 0:
            raise RuntimeError(REFUSED)
        return tokens

    changed(change=refuse)
    rows = preprocessed(ITEMS)
    blocks = [rows.slice(row, 1) for row in range(len(ITEMS))]
    out = pa.concat_tables(started.embed_together(blocks, device="cuda"))
    assert (failed(out), started.ended, kernels(out)) == ([], 1, {"plain varlen"})


def test_blocks_that_do_not_compile_cost_a_rung_and_no_process(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    before_use: Use,
) -> None:
    def compile_blocks(rung: Rung) -> None:
        if rung.compiled:
            raise CompileError("the encoder's blocks are not compiled: no C compiler")

    changed()
    before_use(compile_blocks)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), started.ended, kernels(out)) == ([], 0, {"plain varlen"})
    assert started.notes.remarks() == [
        "cpu: the encoder's blocks are not compiled: no C compiler; plain varlen kernels are used"
    ]


def test_a_device_error_while_blocks_compile_is_the_devices(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    before_use: Use,
) -> None:
    def compile_blocks(rung: Rung) -> None:
        if started.ended < 2:
            raise RuntimeError(STICKY)

    changed()
    before_use(compile_blocks)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), started.ended, kernels(out)) == ([], 2, {"compiled varlen"})
    assert started.notes.remarks() == []


def test_a_start_that_hangs_costs_a_rung(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    before_use: Use,
    hang: Callable[[], None],
) -> None:
    changed()
    before_use(lambda rung: hang() if rung.compiled else None)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), started.ended, kernels(out)) == ([], 1, {"plain varlen"})
    assert started.notes.remarks() == [
        "cpu: the start with compiled varlen kernels hangs: past its deadline of 600 s; plain "
        "varlen kernels are used"
    ]


def test_a_pack_that_hangs_costs_a_rung(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    hang: Callable[[], None],
) -> None:
    def stop(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if fake.kernel == "varlen":
            hang()
        return tokens

    fake = changed(change=stop)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), started.ended, kernels(out)) == ([], 2, {"plain sdpa"})
    assert started.notes.remarks()[1] == (
        "cpu: a pack of 5 segments hangs: past its deadline of 600 s; plain sdpa kernels are used"
    )


def test_an_item_that_hangs_with_all_kernels_is_found_and_fails_alone(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    hang: Callable[[], None],
) -> None:
    def stop(tokens: torch.Tensor, grids: list[Grid]) -> torch.Tensor:
        if (1, 2, 2) in grids:
            hang()
        return tokens

    changed(change=stop)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), started.ended, kernels(out)) == ([1], 4, {"plain math"})
    assert not any("set aside" in line for line in started.notes.remarks())


def test_a_gpu_on_which_everything_hangs_is_set_aside(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    before_use: Use,
    hang: Callable[[], None],
) -> None:
    changed()
    before_use(lambda rung: hang())
    with pytest.raises(
        DeviceError, match=r"6 times in a row on .* gpu 3: the start with plain math"
    ):
        started.embed(preprocessed(ITEMS), device="cuda")
    (line,) = started.notes.remarks()
    assert line.startswith("machine (01234567) gpu 3 is set aside: ")


def test_what_failed_before_a_hang_is_remembered_with_it(
    preprocessed: Callable[..., pa.Table],
    changed: Callable[..., Changed],
    started: Ray,
    before_use: Use,
    hang: Callable[[], None],
) -> None:
    def fail(rung: Rung) -> None:
        if rung.compiled:
            raise CompileError("no C compiler")
        if rung.kernel == "varlen":
            hang()

    changed()
    before_use(fail)
    out = started.embed(preprocessed(ITEMS), device="cuda")
    assert (failed(out), started.ended, kernels(out)) == ([], 1, {"plain sdpa"})
    assert len(started.notes.remarks()) == 2
