"""Files that name others, whatever they are called and wherever they are: nothing is opened."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from pipeline.build import nest
from pipeline.location import join
from pipeline.media_types import IMAGE_SUFFIXES, VIDEO_SUFFIXES, media_type
from pipeline.preprocess import Preprocess
from pipeline.storage import storage_for
from processors.media import MediaOptions, open_media
from processors.sampling import VideoSampling
from processors.sandbox import Decoder
from tests.faults.canaries import Canaries
from tests.faults.playlists import NESTED, PROTOCOLS, Places, disguised, texts, with_references
from tests.support.clips import ClipMaker, real_clip
from tests.support.preprocessing import preprocess_config, whole

ROOT = Path(__file__).parents[2]
SUFFIXES = sorted(IMAGE_SUFFIXES | VIDEO_SUFFIXES)
ENCODERS = {"ASF": "wmv2", "AVI": "mpeg4", "FLV": "flv1", "MP4": "mpeg4", "Matroska": "mpeg4"}
CONTAINERS = {"ASF": "wmv", "AVI": "avi", "FLV": "flv", "MP4": "mp4", "Matroska": "mkv"}

# Of files that begin like what is decoded; None where the clip is whole without what it names.
CODES = {
    "playlist as BMP": "truncated",
    "playlist as GIF": "too_large",
    "playlist as PNG": "corrupt",
    "playlist as AVI": "truncated",
    "playlist as ASF": "truncated",
    "playlist as FLV": "truncated",
    "playlist as JPEG": "truncated",
    "playlist as MP4": "truncated",
    "playlist as Matroska": "truncated",
    "playlist as MPEG-PS": "truncated",
    "playlist as MPEG-TS": "truncated",
    "playlist as TIFF": "truncated",
    "playlist as WebP": "truncated",
    "reference movie": "no_video_stream",
    "linked segments": "truncated",
    "MP4 of a URL": None,
    "MP4 of an alias": "corrupt",
    "MP4 with a reference movie": None,
    "Matroska of segments": None,
    "AVI with subtitles": None,
    "ASF with a command": None,
    "FLV of a page": None,
}
OPENS = re.compile(r"\b(open|openat|openat2|creat|socket|connect|bind|sendto|execve)\(")


@pytest.fixture(scope="module")
def canaries(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Canaries]:
    with Canaries(tmp_path_factory.mktemp("canaries")) as canaries:
        yield canaries


@pytest.fixture(scope="module")
def clip(clips: ClipMaker) -> dict[str, bytes]:
    """A real clip in each container that can name other files."""
    source = ("-i", real_clip("bikes.mp4"), "-frames:v", 8, "-an", "-vf", "scale=64:-2")
    return {
        kind: clips.make(f"named.{suffix}", *source, "-c:v", ENCODERS[kind]).read_bytes()
        for kind, suffix in CONTAINERS.items()
    }


@pytest.fixture(scope="module")
def files(canaries: Canaries, clip: dict[str, bytes]) -> dict[str, bytes]:
    """Every attack by its name."""
    places = Places(file=str(canaries.file), port=canaries.port)
    found = dict(texts(places)) | dict(disguised(places)) | dict(with_references(clip, places))
    assert len(found) > 250
    return found


@pytest.fixture(scope="module")
def stage() -> Iterator[Preprocess]:
    """One whose decoder processes die where they try to open anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "_template_module", "tests.faults.trapped_template")
        with closing(Preprocess(preprocess_config(animated="video"))) as stage:
            yield stage


@pytest.fixture
def run(stage: Preprocess, manifest_rows) -> Callable[..., dict[str, dict[str, Any]]]:
    """Stores files below a root by name, and reads them from there: the stage's rows by name."""

    def run(root: str, files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
        uris = {name: join(root, name) for name in files}
        for name, data in files.items():
            storage_for(root).write(uris[name], data)
        kinds = [media_type(uri) for uri in uris.values()]
        rows = manifest_rows(list(uris.values()), media_type=kinds)
        out = whole(stage(nest(rows, [0, rows.num_rows]))).to_pylist()
        assert [row["uri"] for row in out] == list(uris.values())
        return dict(zip(files, out, strict=True))

    return run


def expected(name: str) -> str | None:
    return CODES.get(name, "unsupported_format")


def assert_refused(rows: dict[str, dict[str, Any]], names: dict[str, str], score) -> None:
    """Each with its own code, in one attempt: nothing was opened, or the trap would have shut."""
    score.rows(names, list(rows))
    found = {name: (row["error_code"], row["attempts"]) for name, row in rows.items()}
    codes = {name: expected(attack) for name, attack in names.items()}
    assert found == {name: (code, 1 if code else None) for name, code in codes.items()}


def test_attacks_of_every_kind_under_every_name_are_one_row_each(
    run, files: dict[str, bytes], canaries: Canaries, root: str, score
) -> None:
    names = {
        f"{number}{suffix}": attack
        for number, (attack, suffix) in enumerate(zip(files, cycle(SUFFIXES), strict=False))
    }
    assert_refused(run(root, {n: files[attack] for n, attack in names.items()}), names, score)
    assert canaries.touched() == []


@pytest.mark.whole
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_attack_under_each_suffix_is_one_row(
    suffix: str, run, files: dict[str, bytes], canaries: Canaries, root: str, score
) -> None:
    names = {f"{number}{suffix}": attack for number, attack in enumerate(files)}
    assert_refused(run(root, {n: files[attack] for n, attack in names.items()}), names, score)
    assert canaries.touched() == []


def test_names_that_are_protocols_are_just_names(
    run, clip: dict[str, bytes], files: dict[str, bytes], canaries: Canaries, root: str, score
) -> None:
    places = Places(file="etc/passwd", port=canaries.port)
    spelt = [places.fill(protocol).replace("//", "/") for protocol in (*PROTOCOLS, *NESTED)]
    spelt = [re.sub("^file:|/", "_", name)[:200] for name in spelt]
    good = {f"{number} {name}.mp4": clip["MP4"] for number, name in enumerate(spelt)}
    bad = {f"{name} {number}.mp4": files["hls of http"] for number, name in enumerate(spelt)}
    rows = run(root, good | bad)
    score.rows([*good, *bad], list(rows))
    assert {rows[name]["patches"] for name in good} == {rows[next(iter(good))]["patches"]}
    assert {rows[name]["error_code"] for name in good} == {None}
    assert {rows[name]["error_code"] for name in bad} == {"unsupported_format"}
    assert canaries.touched() == []


def test_a_clip_that_names_others_is_what_it_is_without(
    files: dict[str, bytes], clip: dict[str, bytes]
) -> None:
    options = MediaOptions(sampling=VideoSampling())
    whole = [name for name in files if expected(name) is None]
    for name in whole:
        alone = open_media(clip[name.split()[0]], options)
        found = open_media(files[name], options)
        for one, two in zip(alone.frames, found.frames, strict=True):
            assert (one == two).all(), name
    assert len(whole) == 6


def test_whatever_a_process_tries_to_open_ends_it(
    run, canaries: Canaries, tmp_path: Path, score
) -> None:
    (row,) = run(str(tmp_path), {"trip.mp4": f"TRIP {canaries.file}".encode()}).values()
    found = (row["error_code"], row["error_message"], row["attempts"])
    assert found == ("decoder_crashed", "the decoder died of SIGSYS", 2)
    assert canaries.touched() == []
    score.kills += 2


@pytest.fixture(scope="module")
def cases(files: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cases") / "cases.pickle"
    path.write_bytes(pickle.dumps(files))
    return path


def plain(cases: Path, *arguments: object, under: tuple[object, ...] = ()) -> Any:
    """The files in a process without a lock: its lines, and how it ended."""
    command = [*under, sys.executable, "-m", "tests.faults.trap", cases, *arguments]
    return subprocess.run(
        [*map(str, command)], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_without_a_sandbox_nothing_is_opened_either(
    cases: Path, files: dict[str, bytes], canaries: Canaries
) -> None:
    done = plain(cases)
    assert (done.returncode, done.stderr) == (0, "")
    found = {name: codes for name, *codes in map(json.loads, done.stdout.splitlines())}
    assert {name: codes[0] for name, codes in found.items()} == {n: expected(n) for n in files}
    # As each container, too: only what is a whole one is ever read.
    whole = {"MP4 of an alias", *(name for name in files if expected(name) is None)}
    assert {name for name, codes in found.items() if None in codes} == whole
    assert canaries.touched() == []


def test_the_trap_shuts_and_the_canaries_tell(cases: Path, canaries: Canaries) -> None:
    done = plain(cases, canaries.file)
    assert done.returncode == -31  # SIGSYS
    assert "opened" not in done.stdout
    assert canaries.touched() == ["file"]  # Once before the trap was set.
    host, port = canaries.port.split(":")
    with socket.create_connection((host, int(port))):
        assert canaries.touched() == ["tcp"]
    with socket.socket(type=socket.SOCK_DGRAM) as stranger:
        stranger.sendto(b"hello", (host, int(port)))
        assert canaries.touched() == ["udp"]


def traced(log: Path) -> dict[str, list[str]]:
    """By process, its calls that open something, after the last filter that it loaded."""
    found: dict[str, list[str]] = {}
    for line in log.read_text().splitlines():
        process, call = line.split(maxsplit=1)
        if "seccomp(SECCOMP_SET_MODE_FILTER" in call:
            found[process] = []
        elif process in found and OPENS.search(call):
            found[process].append(call)
    return found


STRACE = shutil.which("strace")


@pytest.mark.skipif(STRACE is None, reason="strace is not installed")
def test_strace_sees_nothing_opened(cases: Path, canaries: Canaries, tmp_path: Path) -> None:
    """Its word, in a plain process and in the decoder process itself, filters or not."""
    script = """
import pickle, sys
from pathlib import Path
from processors import DecodeError
from processors.media import MediaOptions
from processors.sampling import VideoSampling
from processors.sandbox import Decoder
files = pickle.loads(Path(sys.argv[1]).read_bytes())
with Decoder(options=MediaOptions(sampling=VideoSampling(), animated="video")) as decoder:
    for data in files.values():
        try:
            list(decoder.submit(data).frames())
        except DecodeError:
            pass
    print(decoder._supervisor.child.pid)
"""
    log = tmp_path / "trace"
    strace = (STRACE, "-f", "-qq", "-o", log, "-e", "trace=%file,%network,seccomp")
    command = [*map(str, strace), sys.executable, "-c", script, str(cases)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    calls = traced(log)
    child = done.stdout.strip()
    # It answers on its socket, and does nothing else.
    assert {call.split("(")[0] for call in calls[child]} == {"sendto"}
    assert [call for call in calls[child] if not call.startswith("sendto(3, ")] == []
    assert re.search(rf'^{child} +openat\(AT_FDCWD, "/dev/null"', log.read_text(), re.MULTILINE)
    for arguments, opened in ((), 0), ((canaries.file,), 1):
        plain(cases, *arguments, under=strace)
        (found,) = traced(log).values()
        assert [str(canaries.file) in call for call in found] == [True] * opened
    canaries.touched()
