"""Limits: as given, else as the output was begun with, else safe defaults."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import EmbedConfig, RunConfig
from pipeline.embed import embed
from pipeline.identity import identity
from pipeline.limits import Limits
from pipeline.record import record, recorded

DEFAULTS = {
    "max_file_bytes": 2**30,
    "max_source_pixels": 200_000_000,
    "max_duration_s": 14_400.0,
    "decode_timeout_s": 300.0,
    "decoder_memory_bytes": 3 * 2**29,
}
GIVEN: dict[str, Any] = {
    "max_file_bytes": 1,
    "max_source_pixels": 2,
    "max_duration_s": 3.5,
    "decode_timeout_s": 4.5,
    "decoder_memory_bytes": 5,
}


def begun(output: Path, **options: Any) -> str:
    config = EmbedConfig(output=str(output), **options)
    record(config, identity(config, "cpu"))
    return str(output)


def test_the_defaults_are_safe() -> None:
    assert asdict(RunConfig(output="out").limits()) == DEFAULTS


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_goes_and_the_rest_is_the_outputs(name: str) -> None:
    others = Limits(**GIVEN)
    config = RunConfig(output="out", **{name: 7})
    assert asdict(config.limits(others)) == {**GIVEN, name: 7}
    assert asdict(config.limits()) == {**DEFAULTS, name: 7}


def test_they_are_kept_in_run_json(tmp_path: Path) -> None:
    output = begun(tmp_path / "out", **GIVEN)
    run = json.loads((tmp_path / "out" / "_patchflow" / "run.json").read_text())
    assert run["limits"] == GIVEN
    found = recorded(output)
    assert found is not None
    assert found.limits == Limits(**GIVEN)


def test_a_retry_has_the_outputs_own_but_for_those_that_it_is_given(tmp_path: Path) -> None:
    run = recorded(begun(tmp_path, **GIVEN))
    assert run is not None
    config = run.embed_config(RunConfig(output="out", max_duration_s=9.0), "out")
    assert asdict(config.limits()) == {**GIVEN, "max_duration_s": 9.0}


def test_a_resumed_run_has_the_outputs_own_but_for_those_that_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = begun(tmp_path, **GIVEN)
    used: list[EmbedConfig] = []
    monkeypatch.setattr("pipeline.embed.embed_open", lambda config, _: used.append(config))
    embed(EmbedConfig(output=output, max_file_bytes=77), on_plan=lambda _: None)
    assert asdict(used[0].limits()) == {**GIVEN, "max_file_bytes": 77}
