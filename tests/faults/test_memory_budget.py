"""Items of every size, from a few bytes to 40 megapixels and ten minutes: actors keep budgets.

What they may hold is counted from the options by `pipeline/budgets.py`, as the README has it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from skimage import data

from encoder import PRESETS
from pipeline.budgets import claims, preprocess_bytes
from pipeline.config import EmbedConfig
from pipeline.encode import EncodeConfig
from pipeline.identity import identity
from pipeline.preprocess import PreprocessConfig
from pipeline.reach import Reach
from pipeline.verify import verify
from tests.faults.peaks import Held
from tests.support.clips import X264, ClipMaker, real_clip

MIB = 2**20
GIVE_UP_S = 600.0
FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("jpg", {"quality": 85}),
    ("progressive.jpg", {"quality": 85, "progressive": True}),
    ("png", {"compress_level": 1}),
    ("webp", {"method": 0}),
]
SMALL = [(27, 17), (126, 79), (400, 250), (1264, 790)]
LARGE = [(3577, 2236), (8000, 5000)]
STRIPS = [(1, 28), (28, 1), (4000, 20)]
# Nothing here is larger. The limits of a run make its budgets: with these, they are tight.
LIMITS = {"max_file_bytes": 256 * MIB, "max_source_pixels": 40_000_000}
DECODER = {"decoder_memory_bytes": 1024 * MIB}


@pytest.fixture(scope="module")
def photo() -> Image.Image:
    with Image.open(Path(data.data_dir) / "retina.jpg") as found:
        return found.convert("RGB")


@pytest.fixture(scope="module")
def stills(photo, tmp_path_factory) -> Callable[..., list[Path]]:
    """Writes the photo, scaled to each size, in every format."""
    folder = tmp_path_factory.mktemp("stills")

    def write(sizes: list[tuple[int, int]], formats=FORMATS) -> list[Path]:
        found = []
        for size in sizes:
            scaled = photo.resize(size, Image.Resampling.BILINEAR)
            for suffix, options in formats:
                found.append(folder / f"{size[0]}x{size[1]}.{suffix}")
                if not found[-1].exists():
                    scaled.save(found[-1], **options)
        return found

    return write


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory) -> Path:
    """Ten minutes of 720p, 220 MB, with ten seconds between the frames that can be sought."""
    make = ClipMaker(tmp_path_factory.mktemp("long")).make
    source = ("-stream_loop", 1, "-i", real_clip("bigbuckbunny.mp4"), "-t", 10, "-an")
    scaled = ("-vf", "fps=30,scale=1280:720", *X264[:4], "-b:v", "3M")
    part = make("part.mp4", *source, *scaled, "-g", 300, "-sc_threshold", 0)
    return make("long.mp4", "-stream_loop", 59, "-i", part, "-c", "copy")


@pytest.fixture
def kept(commands, output_at, score, tmp_path) -> Callable[..., Held]:
    """Embeds files, and holds the actors to their budgets and the output to its promises."""

    def run(files: list[Path], **options: int) -> Held:
        folder, output = tmp_path / "items", output_at(tmp_path / "output")
        folder.mkdir()
        for file in files:
            (folder / file.name).hardlink_to(file)
        options |= LIMITS | DECODER | {"preprocess_actors": 1, "encoder_actors": 1}
        flags = [(f"--{name.replace('_', '-')}", value) for name, value in options.items()]
        held, deadline = Held(), time.monotonic() + GIVE_UP_S
        command = commands.job("embed", folder, "--output", output.folder, *sum(flags, ()))
        while command.process.poll() is None and time.monotonic() < deadline:
            held.look(command.family())
            time.sleep(0.05)
        done = command.ended()
        assert done.code == 0, str(done)
        config = EmbedConfig(output=str(output.folder), inputs=(str(folder),), **options)
        assert_kept(held, config)
        rows = output.rows()
        assert len(rows) == len(files), [row["uri"] for row in rows]
        score.rows(map(str, folder.iterdir()), output.terminal())
        score.objects(verify(str(output.folder)).breaches)
        return held

    return run


def assert_kept(held: Held, config: EmbedConfig) -> None:
    what = identity(config, "cpu")
    stage = PreprocessConfig(
        limits=config.limits(), options=what.processors, reach=Reach(roots=("/",))
    )
    most = preprocess_bytes(stage)
    # No clip here is of two frames only: what is claimed is enough.
    encode = claims(stage, EncodeConfig.of(config, what, 1024), PRESETS["tiny"]).encode
    assert held.looks > 10
    assert 0 < held.preprocess < most.own, held
    assert 0 < held.shared <= most.shared, held
    assert 0 < held.decoder < most.decoder, held
    assert 0 < held.encode < encode, held


@pytest.mark.whole
def test_a_long_clip_and_stills_at_their_own_size(kept, stills, long_clip) -> None:
    """At the family's own budgets: a clip's patches, and photos of many tokens."""
    files = [*stills(SMALL), *stills(STRIPS, FORMATS[2:3]), *stills(LARGE[1:], FORMATS[1:2])]
    held = kept([*files, long_clip])
    # The file has been there, and then, while the clip was decoded, its patches.
    assert held.shared > long_clip.stat().st_size
    assert held.preprocess > 300 * MIB


@pytest.mark.whole
def test_stills_of_40_megapixels_in_every_format(kept, stills) -> None:
    held = kept([*stills(SMALL), *stills(LARGE)], max_pixels=50176)
    # A frame's pixels are between the two, and some copies with the decoder.
    assert held.shared > 3 * 40_000_000
    assert held.decoder > 3 * 40_000_000
