"""What a run refuses before it starts anything."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EmbedConfig
from pipeline.embed import embed
from pipeline.errors import UsageError


@pytest.mark.parametrize("planned", [False, True])
def test_shards_too_large_for_an_object_are_refused_with_the_most_that_fits(
    planned: bool, tmp_path: Path, write_manifest: Callable[..., str], freeze, files
) -> None:
    location, output = write_manifest({"uri": ["/a.jpg"]}), tmp_path / "output"
    if planned:
        freeze(str(output), location, shard_rows=2**20)
    before = files(tmp_path)
    config = EmbedConfig(
        inputs=(location,),
        root=("/",),
        output=str(output),
        encoder="large",
        shard_rows=None if planned else 2**20,
    )
    # 2 GiB of 4,096 float32 values each.
    with pytest.raises(
        UsageError, match=r"1048576: vectors of up to 16384 bytes an item allow 131072 rows"
    ):
        embed(config, on_plan=lambda report: None)
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    ("gpus", "dtype", "expected"),
    [
        (None, "auto", "float32"),
        ("1:9.0", "auto", "bfloat16"),
        ("1:7.0", "auto", "float16"),
        (None, "bfloat16", "bfloat16"),
        ("1:9.0", "float32", "float32"),
    ],
)
def test_what_an_output_was_begun_with_decides_the_dtype_on_every_machine(
    tmp_path: Path,
    write_manifest: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    gpus: str | None,
    dtype: Any,
    expected: str,
) -> None:
    def prepared(gpus: str | None, dtype: Any = "auto") -> tuple[str, str]:
        """The device and dtype that a run would have on a machine with these GPUs."""
        if gpus is None:
            monkeypatch.delenv("PATCHFLOW_TEST_GPUS", raising=False)
        else:
            monkeypatch.setenv("PATCHFLOW_TEST_GPUS", gpus)
        config = EmbedConfig(
            inputs=(location,), root=("/",), output=str(tmp_path / "output"), dtype=dtype
        )
        found: Any = embed(config, on_plan=lambda report: None)
        return found.device, found.dtype

    # Instead of embedding, what would be embedded with.
    monkeypatch.setattr(
        import_module("pipeline.embed"), "embed_open", lambda config, prepare: prepare()[0]
    )
    location = write_manifest({"uri": ["/a.jpg"]})
    assert prepared(gpus, dtype) == ("cpu" if gpus is None else "cuda", expected)
    for device, others in (("cpu", None), ("cuda", "2:9.0"), ("cuda", "2:7.5")):
        assert prepared(others) == (device, expected)
        assert prepared(others, expected) == (device, expected)
    other = "bfloat16" if expected == "float16" else "float16"
    with pytest.raises(UsageError, match=f"compute_dtype was {expected}, now {other}"):
        prepared(None, other)
