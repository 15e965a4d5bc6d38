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
        ({"max_file_bytes": 2**41}, "--max-file-bytes must be at most 1099511627776"),
        ({"max_duration_s": 2e6}, "--max-duration-s must be at most 1000000, got 2000000.0"),
    ],
)
def test_a_wrong_option_is_refused_with_its_value(options: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        EmbedConfig(**{"output": "out", **options})
    assert says in str(caught.value)


def test_the_defaults_are_valid() -> None:
    assert InputConfig().inputs == ()
    assert EmbedConfig(output="out").encoder == "tiny"
