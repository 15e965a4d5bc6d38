"""What actors may hold is counted from the options, and the README says the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from encoder import PRESETS
from encoder.positions import _MAX_CACHED_PLACES
from pipeline import budgets
from pipeline.budgets import (
    claims,
    encode_bytes,
    most_segment_pixels,
    patch_bytes,
    preprocess_bytes,
)
from pipeline.encode import EncodeConfig
from pipeline.limits import Limits
from pipeline.options import ProcessorOptions
from pipeline.preprocess import PreprocessConfig
from processors.sandbox.protocol import BUFFERS, SLOTS
from tests.support.preprocessing import preprocess_config

MIB = 2**20
GIB = 2**30
README = Path(__file__).parents[2] / "README.md"


def preprocess(**limits: Any) -> PreprocessConfig:
    """The defaults of a run, but for those given."""
    return preprocess_config(**(vars(Limits()) | limits))


def encode(device: Any = "cpu", **others: Any) -> EncodeConfig:
    on_cpu = device == "cpu"
    return EncodeConfig(
        location="tiny",
        seed=0,
        device=device,
        dtype="float32" if on_cpu else "bfloat16",
        token_budget=1024 if on_cpu else 16384,
        calls=1 if on_cpu else 16,
        **{
            "level": "item",
            "pool": "mean",
            "features": "merged",
            "normalize": False,
            "output_dtype": "float32",
        }
        | others,
    )


def of_stills(max_pixels: int) -> ProcessorOptions:
    """With a budget of so many pixels a still, of two equal frames."""
    options = preprocess().options
    return replace(options, images=replace(options.images, max_pixels=2 * max_pixels))


def test_a_preprocessing_actor_by_hand() -> None:
    found = preprocess_bytes(preprocess(max_file_bytes=100 * MIB, max_source_pixels=10 * MIB))
    clip = 3 * preprocess().options.most_clip_pixels
    # Two files that are read and joined, a frame of 30 MiB that is resized, two clips' patches.
    assert found.own == (320 + 2 * 200 + 30) * MIB + 2 * clip
    assert found.shared == (2 * 100 + 2 * 30) * MIB
    assert found.decoder == (64 + 1536) * MIB
    assert found.total == found.own + found.shared + found.decoder


def test_a_patch_of_the_tiny_tower_by_hand() -> None:
    # Widths of 128, 256 and 1856: 4 of 128 last, and 3/4 of 1856 with 256 are the most beside.
    assert patch_bytes(PRESETS["tiny"]) == 4 * (4 * 128 + 3 * 1856 // 4 + 256) + 1176


def test_an_encoder_on_a_cpu_by_hand() -> None:
    tower = PRESETS["tiny"]
    pixels = 10_000 * 14 * 14
    found = encode_bytes(encode(), tower, preprocess().options, segment_pixels=pixels)
    weights, tables, vectors = 8_006_144, 2**15 * (384 + 64), 16 * 256 * 320
    expected = 400 * MIB + weights + tables + 10_000 * patch_bytes(tower) + vectors
    assert found == pytest.approx(expected, rel=1e-3)
    # A pack of the budget's 1,024 tokens, of four patches each, is larger than such a segment.
    small = encode_bytes(encode(), tower, preprocess().options, segment_pixels=196)
    assert found - small == (10_000 - 4096) * patch_bytes(tower)


def test_tokens_are_held_once_for_every_call() -> None:
    tower, options = PRESETS["large"], preprocess().options
    of = {
        level: encode_bytes(encode("cuda", level=level), tower, options, segment_pixels=196)
        for level in ("item", "token")
    }
    # A clip's, of 28 x 28 pixels and two frames, are more than those of a block of stills.
    tokens = options.most_clip_pixels // 2 // 28**2
    assert of["token"] - of["item"] == 16 * 2 * 4096 * tokens


def test_the_arithmetic_has_the_numbers_of_those_who_hold_the_memory() -> None:
    assert (budgets._FILES, budgets._FRAMES, budgets._TABLES) == (
        BUFFERS,
        SLOTS,
        _MAX_CACHED_PLACES,
    )


@given(
    file=st.integers(1, 2**39),
    pixels=st.integers(1, 2**39),
    device=st.sampled_from(["cpu", "cuda"]),
    preset=st.sampled_from(sorted(PRESETS)),
)
def test_a_claim_is_at_most_what_may_be_held(
    file: int, pixels: int, device: str, preset: str
) -> None:
    stage, tower = preprocess(max_file_bytes=file, max_source_pixels=pixels), PRESETS[preset]
    found = claims(stage, encode(device), tower)
    assert 0 < found.preprocess <= preprocess_bytes(stage).total
    most = most_segment_pixels(stage)
    assert found.encode <= encode_bytes(encode(device), tower, stage.options, segment_pixels=most)
    larger = preprocess_bytes(preprocess(max_file_bytes=2 * file, max_source_pixels=2 * pixels))
    assert larger.total > preprocess_bytes(stage).total


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"


def limit_row(name: str, default: str) -> str:
    """What an option's value adds, to what is claimed and to what may be held."""
    stage, without = preprocess(), preprocess(**{name: 1})
    each = preprocess_bytes(stage).total - preprocess_bytes(without).total
    claimed = claims(stage, encode(), PRESETS["tiny"]).preprocess
    claimed -= claims(without, encode(), PRESETS["tiny"]).preprocess
    return f"| `--{name.replace('_', '-')}` | {default} | {gib(claimed)} | {gib(each)} |"


def test_the_readme_says_what_a_preprocessing_actor_may_hold() -> None:
    stage = preprocess()
    clips = 2 * stage.clip_bytes
    rest = (384 + 2 * 64) * MIB
    found = claims(stage, encode(), PRESETS["tiny"]).preprocess
    rows = [
        limit_row("max_file_bytes", "1 GiB"),
        limit_row("max_source_pixels", "200,000,000"),
        limit_row("decoder_memory_bytes", "1.5 GiB"),
        f"| `--video-max-pixels` | the family's | {gib(clips)} | {gib(clips)} |",
        f"| imports, files read ahead | | {gib(rest)} | {gib(rest)} |",
        f"| all | | {gib(found)} | {gib(preprocess_bytes(stage).total)} |",
    ]
    assert "\n".join(rows) in README.read_text()


def encoder_row(preset: str) -> str:
    tower, stage = PRESETS[preset], preprocess()
    small = replace(stage, options=of_stills(50176))
    tokens = encode(level="token")
    sizes = [
        claims(small, encode(), tower).encode,
        claims(stage, encode(), tower).encode,
        claims(stage, tokens, tower).encode,
        encode_bytes(
            encode(), tower, stage.options, segment_pixels=most_segment_pixels(preprocess())
        ),
    ]
    each = f"{patch_bytes(tower) / 1000:.0f} kB"
    return f"| `{preset}` | {' | '.join([each, *map(gib, sizes)])} |"


def test_the_readme_says_what_an_encoder_may_hold() -> None:
    text = README.read_text()
    assert "\n".join(map(encoder_row, PRESETS)) in text
    on_gpus = [
        claims(preprocess(), encode("cuda", level=level), PRESETS[preset]).encode / GIB
        for level in ("item", "token")
        for preset in ("tiny", "large")
    ]
    assert (
        "claims {:.1f} to {:.1f} GiB of its machine's memory, and with `--level token` {:.1f} to "
        "{:.1f};".format(*on_gpus)
    ) in text.replace("\n", " ")
