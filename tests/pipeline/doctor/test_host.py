"""This machine's packages, folders and memory, and made-up ones."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

from pipeline.doctor.options import Options
from pipeline.doctor.steps import host

GPU = Options(device="cuda")


def test_this_machines_packages_are_there_in_versions() -> None:
    (found,) = host.packages(Options())
    assert found.result == "ok"
    assert found.values["torch"] == torch.__version__
    assert found.values["code"] == host.code_digest()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setitem(sys.modules, "PIL", None)
    (found,) = host.packages(Options())
    assert (found.result, found.advice) == ("broken", "pip install av pillow")


def test_other_code_has_another_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "encoder").mkdir()
    monkeypatch.setattr(host, "_ROOT", tmp_path)
    digests = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (tmp_path / "encoder" / "a.py").write_text(text)
        digests.append(host.code_digest())
    assert digests[0] == digests[2] != digests[1]


def test_a_compiler_is_needed_on_gpus_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "/no/such/compiler")
    assert next(host.compiler(Options(device="cpu"))).result == "ok"
    found = next(host.compiler(GPU))
    assert found.result == "warning"
    assert "/no/such/compiler fails" in found.figure


def test_a_compiler_without_headers_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake = tmp_path / "cc"
    fake.write_text("#!/bin/sh\necho 'x.c:1:10: fatal error: Python.h: No such file' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("CC", str(fake))
    found = next(host.compiler(GPU))
    assert "fatal error: Python.h" in found.figure
    assert "python3-dev" in found.advice


def test_a_cache_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "made" / "here"))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "below"))
    inductor, triton = host.cache(GPU)
    assert inductor.result == "ok"
    assert triton.result == "warning"
    assert "set TRITON_CACHE_DIR to" in triton.advice


def test_a_cache_that_cannot_run_code_is_noticed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fields = list(os.statvfs(tmp_path))
    fields[8] |= os.ST_NOEXEC
    monkeypatch.setattr(os, "statvfs", lambda folder: os.statvfs_result(fields))
    assert "noexec" in host.judge_cache("X", tmp_path).figure


def test_shared_memory_is_measured_against_gpus() -> None:
    assert next(host.shared_memory(Options(device="cpu"))).values
    assert host.judge_shared_memory("/dev/shm", 10_000).result == "warning"
    assert host.judge_shared_memory("/no/such/folder", 0).result == "warning"
