"""`make check` fails where a dependency has a known advisory."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from security.audit import (
    ADVISORIES,
    CONSTRAINTS,
    PYPROJECT,
    Advisory,
    UnreachableError,
    admitted,
    affected,
    ask_database,
    read_advisories,
)

ROOT = Path(__file__).parents[1]
PILLOW = Advisory(
    package="pillow", fixed=Version("12.2.0"), id="PYSEC-2026-2250", about="FITS takes all memory"
)
TOLD = "PYSEC-2026-2250 (FITS takes all memory); 12.2.0 is the first without it"


@pytest.fixture
def osv() -> Iterator[str]:
    """A database that knows one advisory, of `six` before 1.17."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            events = [{"introduced": "0"}, {"fixed": "1.17.0"}]
            affected = {
                "package": {"name": "six", "ecosystem": "PyPI"},
                "ranges": [{"type": "ECOSYSTEM", "events": events}],
            }
            known = query["package"]["name"] == "six" and query["version"] == "1.16.0"
            answer: dict[str, Any] = {}
            if known:
                answer["vulns"] = [{"id": "PYSEC-1", "summary": "-", "affected": [affected]}]
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1/query"
        server.shutdown()


def test_a_version_before_the_fixed_one_is_a_fault() -> None:
    versions = {"pillow": Version("12.1.1"), "numpy": Version("1.0")}
    found = list(affected(versions, {"pillow": PILLOW}))
    assert found == [f"pillow 12.1.1 has {TOLD}: install that"]
    assert not list(affected({"pillow": Version("12.2.0")}, {"pillow": PILLOW}))


@pytest.mark.parametrize("text", ["Pillow>=12.1,<14", "pillow", "pillow<14", "pillow==12.1.1"])
def test_a_lower_bound_before_the_fixed_one_is_a_fault(tmp_path: Path, text: str) -> None:
    project = tmp_path / "pyproject.toml"
    others = '[build-system]\nrequires = []\n[project]\noptional-dependencies.hub = ["numpy"]\n'
    project.write_text(f'{others}dependencies = ["{text}"]\n')
    (fault,) = admitted(project, {"pillow": PILLOW})
    assert fault == f"pyproject.toml admits {text}, which has {TOLD}: raise its lower bound"
    project.write_text(project.read_text().replace(text, "pillow>=12.2"))
    assert not list(admitted(project, {"pillow": PILLOW}))


def test_the_database_is_asked_of_every_pin(tmp_path: Path, osv: str) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("six==1.16.0\nnumpy==2.4.6\n")
    assert ask_database(pins, osv) == (["six 1.16.0 has PYSEC-1; fixed in 1.17.0"], 2)
    pins.write_text("six==1.17.0\n")
    assert ask_database(pins, osv) == ([], 1)


def test_a_database_that_gives_no_answer_is_told(tmp_path: Path) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("six==1.16.0\n")
    with pytest.raises(UnreachableError, match="ConnectionError"):
        ask_database(pins, "http://127.0.0.1:9/v1/query")


def test_the_command_fails_by_what_it_finds(osv: str) -> None:
    command = [sys.executable, "-m", "security.audit", "--osv-url", osv]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    pins = sum("==" in line for line in CONSTRAINTS.read_text().splitlines())
    assert done.stdout.endswith(f"; {pins} pinned versions against the database\n")


def test_the_table_is_of_packages_that_are_used_and_pinned_without_them() -> None:
    known = read_advisories(ADVISORIES)
    assert list(known) == sorted(known)
    lines = CONSTRAINTS.read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(each.name): Version(str(each.specifier)[2:]) for each in pins}
    assert known.keys() <= pinned.keys()
    assert not list(affected(pinned, known))
    assert not list(admitted(PYPROJECT, known))
    direct = tomllib.loads(PYPROJECT.read_text())["project"]["dependencies"]
    assert {"pillow", "pyarrow", "ray", "torch"} <= known.keys() & {
        canonicalize_name(Requirement(text).name) for text in direct
    }


@pytest.mark.parametrize("name", ["Pillow", "pillow"])
def test_a_table_that_is_wrong_is_refused(tmp_path: Path, name: str) -> None:
    entry = '[[advisory]]\npackage = "{}"\nfixed = "1.0"\nid = "X"\nabout = "-"\n'
    path = tmp_path / "advisories.toml"
    path.write_text(entry.format("pillow") + entry.format(name))
    with pytest.raises(ValueError, match=f"'{name}' is there twice, or misspelt"):
        read_advisories(path)
