"""A small Hugging Face Hub on loopback, for one model repository with several commits.

It answers what huggingface_hub's filesystem asks, in the Hub's own words: revisions, trees, and
files by range, the large ones by redirection to another path.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

REPO = "zai-org/GLM-Test"


@dataclass(frozen=True)
class Served:
    """A request, and how much of a body it was answered with."""

    method: str
    path: str
    status: int
    body_bytes: int


class FakeHub:
    """The server, in threads of its own."""

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, Path]] = {}
        self.revisions: dict[str, str] = {}
        """Branches and tags, by name."""
        self.then: dict[str, str] = {}
        """Branches that move as soon as somebody has asked where they are."""
        self.served: list[Served] = []
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> FakeHub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def commit(self, letter: str, folder: Path, *names: str) -> str:
        """Adds a commit with a folder's files, which the names then stand for; returns its hash."""
        sha = letter * 40
        self.commits[sha] = {path.name: path for path in folder.iterdir()}
        self.revisions |= dict.fromkeys(names, sha)
        return sha

    def paths(self) -> list[str]:
        """What was asked for, request by request."""
        return [served.path for served in self.served]

    def find(self, revision: str) -> str | None:
        """The commit that a revision names."""
        sha = self.revisions.get(revision, revision)
        return sha if sha in self.commits else None


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            self._revision(found[1], found[2] or "main")
        elif found := re.fullmatch(rf"/api/models/{REPO}/tree/([^/]+)", path):
            self._tree(found[1])
        elif found := re.fullmatch(rf"/{REPO}/resolve/([^/]+)/(.+)", path):
            self._file(found[1], found[2], redirect=found[2].endswith(".safetensors"))
        elif found := re.fullmatch(r"/blobs/([^/]+)/(.+)", path):
            self._file(found[1], found[2], redirect=False)
        else:
            self._refuse("EntryNotFound")

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _revision(self, repo: str, revision: str) -> None:
        if repo != REPO:
            self._refuse("RepoNotFound")
        elif (sha := self.hub.find(revision)) is None:
            self._refuse("RevisionNotFound")
        else:
            self.hub.revisions |= self.hub.then
            self._answer(json.dumps({"id": REPO, "sha": sha, "siblings": []}).encode())

    def _tree(self, revision: str) -> None:
        files = self.hub.commits[self.hub.find(revision) or ""]
        entries = [
            {"type": "file", "oid": "0" * 40, "size": path.stat().st_size, "path": name}
            for name, path in files.items()
        ]
        self._answer(json.dumps(entries).encode())

    def _file(self, revision: str, name: str, *, redirect: bool) -> None:
        sha = self.hub.find(revision) or ""
        if name not in self.hub.commits[sha]:
            self._refuse("EntryNotFound")
        elif redirect:
            self._answer(b"", 302, {"Location": f"{self.hub.endpoint}/blobs/{sha}/{name}"})
        else:
            self._answer_range(self.hub.commits[sha][name])

    def _answer_range(self, file: Path) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(file.read_bytes())
            return
        start, last = int(asked[1]), int(asked[2])
        with file.open("rb") as opened:
            opened.seek(start)
            data = opened.read(last + 1 - start)
        size = file.stat().st_size
        self._answer(data, 206, {"Content-Range": f"bytes {start}-{start + len(data) - 1}/{size}"})

    def _refuse(self, code: str) -> None:
        self._answer(b'{"error":"Not found"}', 404, {"X-Error-Code": code})

    def _answer(
        self, body: bytes, status: int = 200, headers: dict[str, str] | None = None
    ) -> None:
        self.hub.served.append(Served(self.command, self.path, status, len(body)))
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub without commits, which `hf://` leads to in this process."""
    import fsspec

    with FakeHub() as server:
        monkeypatch.setitem(fsspec.config.conf, "hf", {"endpoint": server.endpoint})
        yield server
