"""The default tower, all 24 blocks of it: 9 GB of memory for a minute or two."""

from __future__ import annotations

import pytest
import torch

from encoder import load_encoder
from tests.parity.pictures import KINDS, cut_picture
from tests.parity.reference import (
    make_reference,
    normalize,
    pooled_cosine,
    repeat_frames,
    run_reference,
    worst_error,
)
from tests.support.towers import cast_model


@pytest.mark.whole
def test_the_default_tower_equals_transformers() -> None:
    model = load_encoder("large")
    pictures = [cut_picture(kind, model.config, max_pixels=18_816) for kind in KINDS]
    grids = [grid for _, grid in pictures]
    sizes = [h * w // 4 for _, h, w in grids]
    levels = torch.cat([picture for picture, _ in pictures])
    pixels = normalize(repeat_frames(levels, 2))

    ours = model.forward_features(levels, grids)
    alone = model.forward_features(*[[part] for part in pictures[0]])
    half = cast_model(model, torch.bfloat16)(levels, grids)
    # It shares our weights; cast, one tensor after the other, it takes their place.
    reference = make_reference(model)
    del model
    rounded = run_reference(reference, pixels.float(), grids)
    truth = run_reference(reference.double(), pixels, grids)

    first = [output[: sizes[0]] for output in ours]
    pairs = zip(half.split(sizes), truth[1].split(sizes), strict=True)
    cosines = dict(zip(KINDS, (pooled_cosine(*pair) for pair in pairs), strict=True))
    error, their_error = worst_error(ours, truth), worst_error(rounded, truth)
    assert error < 1e-5
    # oneDNN adds up the long sums of this tower one by one, MKL in blocks.
    assert error < 1.5 * their_error
    assert worst_error(first, alone) < 1e-6
    assert min(cosines.values()) > 0.9995, cosines
