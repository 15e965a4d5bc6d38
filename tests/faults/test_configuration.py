"""Another configuration on resume: refused by the names of its fields; free ones may change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.config import EmbedConfig
from pipeline.errors import UsageError
from pipeline.identity import identity
from pipeline.record import check_resumable, record, recorded

SEMANTIC = {
    "encoder": ("small", "encoder_digest"),
    "seed": (1, "encoder_digest"),
    "min_pixels": (784, "min_pixels"),
    "max_pixels": (50176, "max_pixels"),
    "video_max_pixels": (10**6, "video_max_pixels"),
    "fps": (1.0, "fps"),
    "max_frames": (32, "max_frames"),
    "animated": ("video", "animated"),
    "decode": ("fast", "decode"),
    "level": ("frame", "level"),
    "pool": ("max", "pool"),
    "features": ("last_hidden_state", "features"),
    "normalize": (True, "normalize"),
    "dtype": ("bfloat16", "compute_dtype"),
    "output_dtype": ("float16", "output_dtype"),
}
FREE = {
    "max_error_rate": 0.5,
    "encoder_actors": 3,
    "gpus_per_encoder": 0.5,
    "preprocess_actors": 3,
    "token_budget": 77,
    "max_file_bytes": 12345,
    "max_source_pixels": 12345,
    "max_duration_s": 12.5,
    "decode_timeout_s": 12.5,
    "decoder_memory_bytes": 10**9,
    "shards": "0:1",
    "insecure_ray": True,
    "verbose": True,
}


@pytest.fixture
def begun(tmp_path: Path) -> EmbedConfig:
    """An output that was begun with the defaults."""
    config = EmbedConfig(output=str(tmp_path / "output"))
    record(config, identity(config, "cpu"))
    return config


def resume(begun: EmbedConfig, **changed: Any) -> bool:
    config = EmbedConfig(output=begun.output, **changed)
    return check_resumable(begun.output, identity(config, "cpu").semantics)


@pytest.mark.parametrize("name", SEMANTIC)
def test_another_semantic_field_is_refused_by_its_name(name: str, begun: EmbedConfig) -> None:
    value, field = SEMANTIC[name]
    with pytest.raises(UsageError, match=f"another configuration: {field} was .*, now "):
        resume(begun, **{name: value})


@pytest.mark.parametrize("name", FREE)
def test_a_free_field_may_change(name: str, begun: EmbedConfig) -> None:
    assert resume(begun, **{name: FREE[name]})


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels", "video_max_pixels", "fps"])
def test_a_default_that_is_given_is_the_default(name: str, begun: EmbedConfig) -> None:
    run = recorded(begun.output)
    assert run is not None
    assert resume(begun, **{name: run.semantics[name]})


def test_every_field_is_one_or_the_other() -> None:
    others = {"inputs", "root", "follow_links", "output", "shard_rows", "partition_by", "limit"}
    assert set(EmbedConfig.__dataclass_fields__) == {*SEMANTIC, *FREE, *others, "device"}


def test_several_fields_are_all_named(begun: EmbedConfig) -> None:
    with pytest.raises(UsageError) as refused:
        resume(begun, pool="max", normalize=True, max_pixels=50176)
    for words in ("pool was mean, now max", "normalize was False, now True", "max_pixels was"):
        assert words in str(refused.value)


def test_another_dtype_is_refused_and_the_same_one_is_not(begun: EmbedConfig) -> None:
    assert resume(begun, dtype="float32")
    with pytest.raises(UsageError, match=r"compute_dtype was float32, now float16.* is --dtype's"):
        resume(begun, dtype="float16")


def test_a_dtype_that_is_given_holds_on_any_device(begun: EmbedConfig) -> None:
    config = replace(begun, dtype="float32")
    assert check_resumable(begun.output, identity(config, "cuda").semantics)


def test_another_schema_version_is_refused(begun: EmbedConfig) -> None:
    path = Path(begun.output) / "_patchflow" / "run.json"
    run = json.loads(path.read_text())
    path.write_text(json.dumps(run | {"schema_version": run["schema_version"] + 1}))
    with pytest.raises(UsageError, match="has schema version 6; this patchflow writes 5"):
        resume(begun)


def test_the_command_refuses_before_it_starts_ray(commands, output_at, tmp_path) -> None:
    Image.new("RGB", (56, 56)).save(tmp_path / "a.png")
    output = output_at(tmp_path / "output")
    args = (tmp_path / "a.png", "--output", output.folder)
    assert commands.run("embed", *args).code == 0
    objects = output.objects()
    refused = commands.run("embed", *args, "--pool", "max", "--normalize")
    # The driver, and perhaps its workers' template, which begins beside its own imports.
    assert (refused.code, refused.left_behind) == (2, []), str(refused)
    assert refused.most_processes <= 2, str(refused)
    assert len(refused.err.splitlines()) == 1
    assert "pool was mean, now max; normalize was False, now True" in refused.err
    assert output.objects() == objects
    free = commands.run("embed", *args, "--encoder-actors", 2, "--token-budget", 99)
    assert (free.code, "nothing to do" in free.out) == (0, True), str(free)
