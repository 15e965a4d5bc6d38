from typing import Any

import pytest

from pipeline.config import EmbedConfig, InputConfig, slice_of
from pipeline.errors import UsageError


@pytest.mark.parametrize(
    ("text", "bounds"),
    [(None, (0, None)), ("0:5", (0, 5)), ("3:", (3, None)), (":4", (0, 4)), (":", (0, None))],
)
def test_a_slice_of_shards_is_from_and_to(text: str | None, bounds: tuple[int, int | None]) -> None:
    assert slice_of(text) == bounds


@pytest.mark.parametrize("text", ["5", "5:5", "5:3", "-1:3", "a:b", "1:2:3", "", "1.0:2", "1:-2"])
def test_a_slice_that_is_none_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        slice_of(text)
    assert f"--shards {text}" in str(caught.value) or repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("shard_rows", "limit", "min_pixels", "max_pixels", "encoder_actors"),
        *("preprocess_actors", "token_budget", "max_file_bytes", "max_source_pixels"),
        *("max_duration_s", "decode_timeout_s", "decoder_memory_bytes"),
    ],
)
@pytest.mark.parametrize("value", [0, -3])
def test_a_count_that_is_not_positive_is_refused_by_its_flag(name: str, value: int) -> None:
    options: dict[str, Any] = {name: value}
    flag = "--" + name.replace("_", "-")
    with pytest.raises(UsageError, match=f"{flag} must be positive, got {value}"):
        EmbedConfig(output="out", **options)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_error_rate": -0.1}, "--max-error-rate must be within 0 and 1, got -0.1"),
        ({"max_error_rate": 1.5}, "got 1.5"),
        ({"max_error_rate": float("nan")}, "got nan"),
        ({"min_pixels": 9, "max_pixels": 8}, "--min-pixels 9 is more than --max-pixels 8"),
        ({"seed": -1}, "--seed must not be negative, got -1"),
        ({"shards": "x"}, "--shards must be FROM:TO, such as 0:500, got 'x'"),
        ({"inputs": ("a", " ")}, "an INPUT is empty"),
        ({"partition_by": ("",)}, "--partition-by is empty"),
        ({"partition_by": ("a", "a")}, "--partition-by"),
        ({"output": ""}, "--output"),
        ({"gpus_per_encoder": 0.0}, "--gpus-per-encoder must be a whole number, or a fraction"),
        ({"gpus_per_encoder": -1.0}, "got -1.0"),
        ({"gpus_per_encoder": 1.5}, "got 1.5"),
        ({"gpus_per_encoder": 0.00001}, "got 1e-05"),
        ({"gpus_per_encoder": float("nan")}, "got nan"),
        ({"gpus_per_encoder": float("inf")}, "got inf"),
        ({"max_file_bytes": 2**41}, "--max-file-bytes must be at most 1099511627776"),
        ({"max_duration_s": 2e6}, "--max-duration-s must be at most 1000000, got 2000000.0"),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        EmbedConfig(**{"output": "out", **options})
    assert says in str(caught.value)


@pytest.mark.parametrize("share", [0.0001, 0.5, 1, 1.0, 2, 8.0])
def test_a_whole_number_or_a_fraction_of_a_gpu_is_taken(share: float) -> None:
    assert EmbedConfig(output="out", gpus_per_encoder=share).gpus_per_encoder == share


def test_the_defaults_are_valid() -> None:
    assert InputConfig().inputs == ()
    assert EmbedConfig(output="out").encoder == "tiny"
