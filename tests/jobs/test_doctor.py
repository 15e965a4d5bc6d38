"""The command: its tables, its JSON, its exit codes, and a machine where packages are missing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs import doctor
from pipeline.doctor.capacity import Node
from pipeline.doctor.finding import Finding
from pipeline.doctor.options import Options

# Packages that the first GPU machines had not.
ABSENT = ("ray", "av", "tyro", "simplejpeg", "pyseccomp", "s3fs", "tenacity", "grpc")
OK = Finding(step="driver", result="ok", figure="no NVIDIA driver", values={"torch_cuda": None})
BROKEN = Finding(
    step="attention",
    result="broken",
    figure="varlen, bfloat16: off by 0.7 at most, bound 0.02; wrong at 5, 64 patches " * 2,
    advice="runs avoid this kernel; another torch or driver may cure it\x1b[31m",
    device="GPU 0",
)
PHOTOS = Finding(step="photos", result="ok", figure="", values={"photos_per_s": 100.0})


def run(
    monkeypatch: pytest.MonkeyPatch, findings: list[Finding], *args: str
) -> tuple[int, list[Options]]:
    given: list[Options] = []

    def examine(options: Options, nodes: list[Node], *, insecure: bool) -> Iterator[str]:
        given.append(options)
        yield "attention GPU 0: running for 5 s"
        nodes.append(Node(name="a", cpus=8, findings=findings))

    monkeypatch.setattr(doctor, "_examine", examine)
    with pytest.raises(SystemExit) as ended:
        doctor.main(args)
    assert isinstance(ended.value.code, int)
    return ended.value.code, given


def test_the_exit_code_says_whether_something_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    warning = Finding(step="clock", result="warning", figure="3 s ahead of the driver")
    assert run(monkeypatch, [OK])[0] == 0
    assert run(monkeypatch, [OK, warning])[0] == 0
    assert run(monkeypatch, [OK, BROKEN])[0] == 1


def test_a_table_fits_on_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    run(monkeypatch, [OK, BROKEN, PHOTOS])
    out, err = capsys.readouterr()
    assert max(map(len, out.splitlines())) <= 80
    assert "-> runs avoid this kernel" in out and "\x1b[31m" not in out
    assert "What it can do" in out and "CPUs decode 800/s" in out
    assert err == "patchflow doctor: attention GPU 0: running for 5 s\n"


def test_json_has_all_findings_and_the_capacity(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, [OK, BROKEN, PHOTOS], "--json")
    found = json.loads(capsys.readouterr().out)
    assert found["result"] == "broken"
    (node,) = found["nodes"]
    assert [Finding(**own) for own in node["findings"]] == [OK, BROKEN, PHOTOS]
    assert found["capacity"][0]["by_decoding"] == 800


def test_locations_are_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    _, (options,) = run(monkeypatch, [OK], "in", "--output", "s3://bucket/out", "--device", "cpu")
    here = str(Path.cwd())
    assert options == Options(inputs=(f"{here}/in",), output="s3://bucket/out", device="cpu")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--device", "tpu"), "invalid choice: 'tpu'"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--output", "http://example.com"), "nothing is fetched from the web"),
        (("--encoder", "/no/such/encoder"), "--encoder /no/such/encoder: "),
    ],
)
def test_wrong_use_is_one_line(
    args: tuple[str, ...],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert run(monkeypatch, [OK], *args)[0] == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("patchflow doctor: ") and words in line


@pytest.mark.whole
def test_where_packages_are_missing_the_rest_is_still_checked(
    commands: Any, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({ABSENT}))\n"
    )
    done = commands.start(
        *(sys.executable, "-m", "jobs.doctor", "--json", "--device", "cpu"),
        *("--output", tmp_path / "output"),
        env={"PYTHONPATH": str(tmp_path)},
    ).ended()
    assert done.code == 1, str(done)
    (node,) = json.loads(done.out)["nodes"]
    results = {finding["step"]: finding["result"] for finding in node["findings"]}
    missing = {step for step, result in results.items() if result == "broken"}
    assert missing == {"packages", "sandbox", "output", "photos"}
    assert {"driver", "attention", "pack", "in flight", "speed"} <= {*results} - missing
    packages = next(own for own in node["findings"] if own["step"] == "packages")
    assert "av" in packages["advice"].split() and "ray" in packages["advice"].split()
