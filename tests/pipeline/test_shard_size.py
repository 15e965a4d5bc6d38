"""How many items a shard may have at each level, worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EmbedConfig
from pipeline.embed import embed
from pipeline.errors import UsageError
from pipeline.identity import Identity, identity
from pipeline.manifest import generations
from pipeline.shard_size import check_shard_size, default_shard_rows

# Of a clip: 640 / 2 segments, and 201 tokens in each that is a strip; without strips there are
# 87,478,720 / (2 * 28 * 28) = 55,790.
SEGMENTS, TOKENS = 320, 320 * 201


def what(encoder: str, **options: Any) -> Identity:
    return identity(EmbedConfig(output="unused", encoder=encoder, **options), "cpu")


@pytest.mark.parametrize(
    ("encoder", "options", "item_bytes"),
    [
        ("tiny", {}, 256 * 4),
        ("large", {"level": "frame"}, 4096 * 4 * (1 + SEGMENTS)),
        ("large", {"level": "frame", "output_dtype": "float16"}, 4096 * 2 * (1 + SEGMENTS)),
        ("tiny", {"level": "token"}, 256 * 4 * (1 + SEGMENTS) + TOKENS * 256 * 2),
        ("large", {"level": "token"}, 4096 * 4 * (1 + SEGMENTS) + TOKENS * 4096 * 2),
        # A still of 100 million pixels has more tokens than any clip.
        (
            "tiny",
            {"level": "token", "max_pixels": 784 * 10**5},
            256 * 4 * (1 + SEGMENTS) + 10**5 * 256 * 2,
        ),
    ],
)
def test_the_most_rows_are_what_two_gib_hold(
    encoder: str, options: dict[str, Any], item_bytes: int
) -> None:
    most = 2**31 // item_bytes
    found = what(encoder, **options)
    assert default_shard_rows(found) == min(4096, most)
    check_shard_size(most, found)
    says = f"--shard-rows {most + 1}: vectors of up to {item_bytes} bytes an item allow {most} rows"
    with pytest.raises(UsageError, match=says):
        check_shard_size(most + 1, found)


def test_a_shard_of_one_item_is_always_allowed() -> None:
    huge = what("large", level="token", max_pixels=784 * 10**6)
    assert default_shard_rows(huge) == 1
    check_shard_size(1, huge)
    with pytest.raises(UsageError, match="allow 1 rows"):
        check_shard_size(2, huge)


def test_what_is_planned_too_large_is_refused_before_more_is_planned(
    tmp_path: Path,
    write_manifest: Callable[..., str],
    freeze: Callable[..., Any],
    files: Callable[[Path], dict[str, bytes]],
) -> None:
    output = tmp_path / "output"
    freeze(str(output), write_manifest({"uri": ["/a.jpg"]}))
    before = files(output)
    config = EmbedConfig(
        inputs=(write_manifest({"uri": ["a.jpg", "b.jpg"]}),), output=str(output), level="token"
    )
    with pytest.raises(UsageError, match="--shard-rows 4096: vectors of up to"):
        embed(config, on_plan=lambda report: None)
    assert files(output) == before


class StoppedError(Exception):
    pass


@pytest.mark.parametrize(
    ("options", "rows"),
    [({}, 4096), ({"level": "frame"}, 4096), ({"level": "token"}, 64), ({"shard_rows": 9}, 9)],
)
def test_what_is_planned_first_is_planned_for_its_level(
    tmp_path: Path, write_manifest: Callable[..., str], options: dict[str, Any], rows: int
) -> None:
    def stop(report: object) -> None:
        raise StoppedError

    location, output = write_manifest({"uri": ["a.jpg"]}), str(tmp_path / "output")
    with pytest.raises(StoppedError):
        embed(EmbedConfig(inputs=(location,), output=output, **options), on_plan=stop)
    assert generations(output)[0].shard_rows == rows
