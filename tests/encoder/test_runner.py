"""Packs run on a device: each segment's own results, whatever memory and neighbours do."""

import time
from collections import deque
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from encoder import (
    EncoderOutput,
    Glm4vVisionModel,
    PackResults,
    PackRunner,
    forward_flop,
    is_out_of_memory,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

# Of equal lengths side by side, and of both kinds: stills have 588 values a patch, slices of
# clips 1,176.
SIZES = [(4, 6), (4, 4), (2, 8), (2, 2), (6, 4), (2, 2)]
VALUES = [588, 588, 588, 588, 1176, 1176]


class Pack(NamedTuple):
    levels: list[npt.NDArray[np.uint8]]
    sizes: list[tuple[int, int]]


def make_pack(seed: int = 0) -> Pack:
    random = np.random.default_rng(seed)
    levels = [
        random.integers(0, 256, (h * w, values), np.uint8)
        for (h, w), values in zip(SIZES, VALUES, strict=True)
    ]
    return Pack(levels, SIZES)


def tokens_alone(model: Glm4vVisionModel, pack: Pack, features: str) -> list[torch.Tensor]:
    found = []
    for levels, size in zip(*pack, strict=True):
        with torch.inference_mode():
            output = model.forward_features(torch.from_numpy(levels), [(1, *size)])
        merged = features == "merged"
        found.append(output.pooler_output if merged else output.last_hidden_state)
    return found


def joined(parts: list[tuple[slice, PackResults | None]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vectors and tokens of a pack all of which fits."""
    vectors, tokens = [], []
    for _, results in parts:
        assert results is not None
        results.wait()
        vectors.append(results.vectors)
        tokens.append(results.tokens)
    return torch.cat(vectors), torch.cat(tokens)


class Full:
    """A model on a device that has memory for few segments, or not for every one."""

    def __init__(self, model: Glm4vVisionModel, most: int = 1000, never: tuple[int, int] = (0, 0)):
        self.config = model.config
        self.packs: list[int] = []
        self._model, self._most, self._never = model, most, (1, *never)

    def forward_features(self, levels: Any, grids: list[tuple[int, int, int]]) -> EncoderOutput:
        self.packs.append(len(grids))
        if len(grids) > self._most or self._never in grids:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self._model.forward_features(levels, grids)


def run(model: Any, pack: Pack, **options: Any) -> list[tuple[slice, PackResults | None]]:
    return PackRunner(model, device="cpu", **options).start(*pack)


@pytest.mark.parametrize("pool", ["mean", "max"])
@pytest.mark.parametrize("features", ["merged", "last_hidden_state"])
def test_every_segments_results_are_those_of_the_segment_alone(
    small_model: Glm4vVisionModel,
    pool: Literal["mean", "max"],
    features: Literal["merged", "last_hidden_state"],
) -> None:
    pack = make_pack()
    parts = run(small_model, pack, pool=pool, features=features, keep_tokens=True)
    assert [part for part, _ in parts] == [slice(0, 6)]
    vectors, tokens = joined(parts)
    alone = tokens_alone(small_model, pack, features)
    expected = [own.amax(0) if pool == "max" else own.mean(0) for own in alone]
    torch.testing.assert_close(vectors, torch.stack(expected), rtol=0, atol=1e-5)
    torch.testing.assert_close(tokens, torch.cat(alone).half(), rtol=1e-3, atol=1e-5)


def test_the_callers_default_device_is_not_asked(small_model: Glm4vVisionModel) -> None:
    expected = joined(run(small_model, make_pack()))
    with torch.device("meta"):
        found = joined(run(small_model, make_pack()))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))


def test_tokens_that_are_not_kept_do_not_come(small_model: Glm4vVisionModel) -> None:
    ((_, results),) = run(small_model, make_pack())
    assert results is not None
    assert results.vectors.shape == (6, 24)
    assert (results.tokens.shape, results.finite.shape) == ((0, 24), (0,))


def test_a_pack_tells_how_long_it_took_and_what_it_computed(small_model: Glm4vVisionModel) -> None:
    began = time.perf_counter()
    ((_, results),) = run(small_model, make_pack())
    most_s = time.perf_counter() - began
    assert results is not None
    assert 0 < results.seconds < most_s
    assert results.flop == forward_flop(small_model.config, [(1, *size) for size in SIZES])


def test_tokens_too_large_for_float16_are_told(small_model: Glm4vVisionModel) -> None:
    ((_, before),) = run(small_model, make_pack(), keep_tokens=True)
    assert before is not None
    largest = before.tokens.float().abs().amax(1)
    small_model.merger.down_proj.weight.mul_(65504 / float(largest.median()))
    ((_, results),) = run(small_model, make_pack(), keep_tokens=True)
    assert results is not None
    assert results.vectors.isfinite().all()
    assert 0 < results.finite.sum() < len(results.finite)
    assert torch.equal(results.finite, results.tokens.isfinite().all(1))


@pytest.mark.parametrize(
    ("most", "packs", "ends"),
    [(6, [6], [6]), (3, [6, 3, 3], [3, 6]), (2, [6, 3, 1, 2, 3, 1, 2], [1, 3, 4, 6])],
)
def test_a_pack_that_does_not_fit_is_halved_until_it_does(
    small_model: Glm4vVisionModel, most: int, packs: list[int], ends: list[int]
) -> None:
    pack, model = make_pack(), Full(small_model, most)
    parts = run(model, pack, keep_tokens=True)
    assert model.packs == packs
    assert [part.stop for part, _ in parts] == ends
    for ours, whole in zip(
        joined(parts), joined(run(small_model, pack, keep_tokens=True)), strict=True
    ):
        torch.testing.assert_close(ours, whole, rtol=1e-3, atol=1e-5)


def test_a_segment_that_never_fits_is_tried_once_more_on_an_empty_device(
    small_model: Glm4vVisionModel,
) -> None:
    model = Full(small_model, never=(4, 4))
    parts = run(model, make_pack())
    assert [(part.start, part.stop, results is None) for part, results in parts] == [
        (0, 1, False),
        (1, 2, True),
        (2, 3, False),
        (3, 6, False),
    ]
    assert model.packs == [6, 3, 1, 2, 1, 1, 1, 3]


def test_a_segment_that_did_not_fit_beside_others_fits_alone(
    small_model: Glm4vVisionModel,
) -> None:
    class Busy(Full):
        def forward_features(self, levels: Any, grids: list[Any]) -> EncoderOutput:
            if not self.packs:
                self.packs.append(len(grids))
                raise torch.OutOfMemoryError("CUDA out of memory")
            return super().forward_features(levels, grids)

    model = Busy(small_model)
    levels, sizes = make_pack()
    ((part, results),) = run(model, Pack(levels[:1], sizes[:1]))
    assert (part, results is None) == (slice(0, 1), False)
    assert model.packs == [1, 1]


def test_any_other_error_is_the_callers(small_model: Glm4vVisionModel) -> None:
    levels, sizes = make_pack()
    with pytest.raises(ValueError, match="covers 100 patches, pixel_values has 88"):
        run(small_model, Pack(levels, [(6, 6), *sizes[1:]]))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (MemoryError(), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), False),
    ],
)
def test_memory_that_ran_out_is_told_from_other_errors(error: RuntimeError, told: bool) -> None:
    assert is_out_of_memory(error) == told


@needs_gpu
@pytest.mark.parametrize("pool", ["mean", "max"])
def test_packs_under_way_together_on_a_gpu_are_those_of_a_cpu(
    small_model: Glm4vVisionModel, pool: Literal["mean", "max"]
) -> None:
    packs = [make_pack(seed) for seed in range(20)]
    expected = [joined(run(small_model, pack, pool=pool, keep_tokens=True)) for pack in packs]
    runner = PackRunner(small_model.cuda(), device="cuda", pool=pool, keep_tokens=True)
    joined(runner.start(*packs[0]))  # Makes tables, plans and buffers, which waits.
    under_way: deque[list[tuple[slice, PackResults | None]]] = deque()
    found = []
    for levels, sizes in packs:
        own = [part.copy() for part in levels]
        torch.cuda.set_sync_debug_mode("error")
        try:
            under_way.append(runner.start(own, sizes))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        for part in own:
            part[:] = 0  # They are the caller's again, whether they were copied yet or not.
        if len(under_way) > 2:
            found.append(joined(under_way.popleft()))
    found += map(joined, under_way)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-3)
