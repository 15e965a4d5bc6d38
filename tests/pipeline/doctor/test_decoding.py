"""The sandbox of this machine, made-up ones, and photos a second."""

from __future__ import annotations

import pytest

from pipeline.doctor.options import Options
from pipeline.doctor.steps import decoding
from processors import GlmgaImageProcessor, decode_image
from processors.sandbox import Decoder, SandboxError

SECCOMP, LANDLOCK = "system calls filtered (seccomp)", "no files by name (Landlock)"


def test_a_picture_is_decoded_in_a_locked_process_here() -> None:
    (found,) = decoding.sandbox(Options())
    assert found.result in ("ok", "warning"), found
    assert set(found.values) >= {SECCOMP, LANDLOCK}


@pytest.mark.parametrize(
    ("missing", "result"),
    [
        (set(), "ok"),
        ({SECCOMP}, "warning"),
        ({LANDLOCK}, "warning"),
        ({SECCOMP, LANDLOCK}, "broken"),
    ],
)
def test_what_is_not_denied_is_named(missing: set[str], result: str) -> None:
    enforced = {name: name not in missing for name in (SECCOMP, LANDLOCK, "memory limit")}
    found = decoding.judge_sandbox(enforced, right=True)
    assert found.result == result
    assert all(name in found.figure for name in missing)
    assert ("libseccomp2" in found.advice) == (SECCOMP in missing)
    assert decoding.judge_sandbox(enforced, right=False).result == "broken"


def test_a_machine_without_decoder_processes_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Decoder, **options: object) -> None:
        raise SandboxError("no process can be had")

    monkeypatch.setattr(Decoder, "__init__", refuse)
    (found,) = decoding.sandbox(Options())
    assert (found.result, found.figure) == ("broken", "no process can be had")


def test_the_photo_is_as_large_as_it_is_counted() -> None:
    data = decoding.make_photo()
    pixels = decode_image(data).pixels
    assert pixels.shape == (683, 1024, 3)
    _, grid = GlmgaImageProcessor().patches(pixels, size=pixels.shape[:2])
    from pipeline.doctor.capacity import WEB_PATCHES

    assert grid[1] * grid[2] == WEB_PATCHES
    assert 60_000 < len(data) < 300_000


def test_photos_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "_MEASURED_S", 0.05)
    (found,) = decoding.photos(Options())
    assert min(found.values["photos_per_s"], found.values["stills_per_s"]) > 1  # type: ignore[type-var]
