"""Bad input on the command lines: one clear line, the right exit code, nothing changed."""

from __future__ import annotations

import atexit
import gc
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDENS = ROOT / "tests" / "goldens"

NAMES = ("embed", "plan", "retry", "status", "verify")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """Runs a job in this process; only what would silence all of this process is left out."""
    monkeypatch.setattr("jobs.console.quiet", lambda: None)
    # A test that got as far as an encoder or a cluster would take seconds and hide its failure.
    monkeypatch.setattr("pipeline.embed.ray_running", None)
    handler = signal.getsignal(signal.SIGTERM)

    def call(name: str, *args: str) -> Ended:
        with pytest.raises(SystemExit) as end:
            import_module(f"jobs.{name}").main(list(args))
        captured = capsys.readouterr()
        assert isinstance(end.value.code, int)
        return Ended(end.value.code, captured.out, captured.err)

    yield call
    signal.signal(signal.SIGTERM, handler)
    atexit.unregister(gc.freeze)  # At the tests' own end, leaks shall be leaks.


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Everything below a folder: files with their bytes, folders with None."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("image0.png", "image1.png"):
        shutil.copy(GOLDENS / name, folder)
    return folder


@pytest.fixture
def refused(run: Run, tmp_path: Path) -> Callable[..., None]:
    """Runs a command that must end with `code` and one line that says each of `says`."""

    def check(code: int, says: list[str], name: str, *args: str) -> None:
        before = snapshot(tmp_path)
        ended = run(name, *args)
        assert ended.out == ""
        (line,) = ended.err.splitlines()
        assert line.startswith(f"patchflow {name}: ")
        assert [text for text in says if text not in line] == []
        assert ended.code == code
        assert snapshot(tmp_path) == before

    return check


@pytest.mark.usefixtures("manifests_read_apart")
@pytest.mark.parametrize("name", ["embed", "plan"])
@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        (["{tmp}/none"], ["'{tmp}/none' does not exist"]),
        (["{tmp}/none/*.jpg"], ["'{tmp}/none/*.jpg' does not exist"]),
        (["{tmp}/none.parquet"], ["'{tmp}/none.parquet' does not exist"]),
        (["{tmp}/dir.parquet"], ["dir.parquet is a folder", "'{tmp}/dir.parquet/*.parquet'"]),
        (["{tmp}/photos", "{tmp}/none"], ["'{tmp}/none' does not exist"]),
        (["{tmp}/empty"], ["no images or videos in {tmp}/empty", "nothing at all"]),
        (["{tmp}/texts"], ["no images or videos in {tmp}/texts", "2 files of other kinds"]),
        (["{tmp}/photos/*.gif"], ["no images or videos in {tmp}/photos/*.gif"]),
        (
            ["{tmp}/links"],
            ["no images or videos in {tmp}/links", "1 symbolic links", "--follow-links"],
        ),
        (["//host/share"], ["'//host/share' names another machine"]),
        (["C:\\photos"], ["'C:\\\\photos' is a path of Windows"]),
        (["http://host/x.jpg"], ["'http://host/x.jpg'", "copy it to S3 or to a disk first"]),
        (["gs://bucket/x"], ["'gs://bucket/x'", "gs:// is not supported"]),
        (["s3:///x"], ["'s3:///x' names no bucket"]),
        (["{tmp}/text.parquet"], ["{tmp}/text.parquet is not a readable Parquet file"]),
        ([""], ["an INPUT", "empty"]),
        ([], ["INPUT"]),
    ],
    ids=lambda value: " ".join(value) or "none",
)
def test_an_input_that_cannot_be_is_wrong_use(
    tmp_path: Path,
    photos: Path,
    refused: Callable[..., None],
    name: str,
    inputs: list[str],
    says: list[str],
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "a.txt").write_text("text")
    (tmp_path / "texts" / "deep" / "b.md").write_text("text")
    (tmp_path / "text.parquet").write_text("text")
    (tmp_path / "dir.parquet").mkdir()
    (tmp_path / "dir.parquet" / "part-0.parquet").write_text("text")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "photos").symlink_to(photos)
    filled = [text.format(tmp=tmp_path) for text in inputs]
    expected = [text.format(tmp=tmp_path) for text in says]
    refused(2, expected, name, *filled, "--output", str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--shard-rows", "0"], ["--shard-rows", "0"]),
        (["--shard-rows", "-5"], ["--shard-rows", "-5"]),
        (["--shard-rows", "many"], ["parsing --shard-rows: 'many' is no INT; see"]),
        (["--shard-rows", "1.5"], ["parsing --shard-rows: '1.5' is no INT; see"]),
        (["--max-duration-s", "4h"], ["parsing --max-duration-s: '4h' is no FLOAT; see"]),
        (["--limit", "0"], ["--limit", "0"]),
        (["--limit", "-1"], ["--limit", "-1"]),
        (["--token-budget", "0"], ["--token-budget", "0"]),
        (["--min-pixels", "0"], ["--min-pixels", "0"]),
        (["--max-pixels", "-1"], ["--max-pixels", "-1"]),
        (["--encoder-actors", "0"], ["--encoder-actors", "0"]),
        (["--preprocess-actors", "-2"], ["--preprocess-actors", "-2"]),
        (["--max-file-bytes", "0"], ["--max-file-bytes", "0"]),
        (["--max-source-pixels", "0"], ["--max-source-pixels", "0"]),
        (["--seed", "-1"], ["--seed", "-1"]),
        (["--max-error-rate", "1.5"], ["--max-error-rate", "1.5"]),
        (["--max-error-rate", "-0.5"], ["--max-error-rate", "-0.5"]),
        (["--max-error-rate", "nan"], ["--max-error-rate", "nan"]),
        (["--shards", "5"], ["--shards", "'5'"]),
        (["--shards", "3:3"], ["--shards", "3:3"]),
        (["--shards", "a:b"], ["--shards", "'a:b'"]),
        (["--pool", "median"], ["--pool", "median"]),
        (["--level", "video"], ["--level", "video"]),
        (["--features", "all"], ["--features", "all"]),
        (["--output-dtype", "float8"], ["--output-dtype", "float8"]),
        (["--device", "tpu"], ["--device", "tpu"]),
        (["--frobnicate"], ["--frobnicate"]),
        (["--frobnicate=3"], ["--frobnicate"]),
        (["--limit"], ["--limit"]),
        (["--min-pixels", "9000", "--max-pixels", "8000"], ["9000", "8000"]),
        (["--encoder", "huge"], ["--encoder", "huge"]),
        (["--encoder", "{tmp}/photos"], ["--encoder", "{tmp}/photos"]),
        (["--encoder", "{tmp}/model.bin"], ["--encoder", "{tmp}/model.bin", "refused"]),
        (["--encoder", "{tmp}/pickled"], ["--encoder", "{tmp}/pickled", "refused"]),
        (["--encoder", "{tmp}/cut"], ["--encoder", "{tmp}/cut"]),
        (["--partition-by", "label"], ["--partition-by label"]),
        (["--output", ""], ["--output"]),
        (["--output", "http://host/out"], ["http://host/out"]),
    ],
    ids=" ".join,
)
def test_an_option_that_cannot_be_is_wrong_use(
    tmp_path: Path,
    photos: Path,
    refused: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    says: list[str],
) -> None:
    # Where an output could be made by mistake.
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in ("pickled", "cut"):
        shutil.copytree(GOLDENS / "checkpoint-glm4v", tmp_path / name)
        for path in sorted((tmp_path / name).glob("*.safetensors*")):
            if name == "pickled":
                path.unlink()
            elif path.suffix == ".safetensors":
                path.write_bytes(path.read_bytes()[:64])
    for place in ("model.bin", "pickled/pytorch_model.bin"):
        (tmp_path / place).write_bytes(b"\x80\x02}q\x00.")
    output = [] if "--output" in args else ["--output", str(tmp_path / "out")]
    filled = [text.format(tmp=tmp_path) for text in args]
    expected = [text.format(tmp=tmp_path) for text in says]
    refused(2, expected, "embed", str(photos), *output, *filled)


@pytest.mark.parametrize("name", ["embed", "retry", "status", "verify"])
def test_a_command_without_its_output_is_wrong_use(refused: Callable[..., None], name: str) -> None:
    refused(2, ["--output"], name)


@pytest.mark.parametrize("name", ["plan", "retry", "status", "verify"])
def test_an_unknown_option_is_wrong_use_on_every_command(
    tmp_path: Path, refused: Callable[..., None], name: str
) -> None:
    refused(2, ["--frobnicate"], name, "--output", str(tmp_path / "out"), "--frobnicate")


@pytest.mark.parametrize("name", ["retry", "status", "verify"])
@pytest.mark.parametrize("place", ["none", "photos", "photos/image0.png", "photos/image0.png/x"])
def test_what_is_no_output_is_refused_by_name(
    tmp_path: Path, photos: Path, refused: Callable[..., None], name: str, place: str
) -> None:
    refused(2, [f"{tmp_path}/{place}"], name, "--output", f"{tmp_path}/{place}")


@pytest.mark.parametrize("name", ["embed", "plan"])
@pytest.mark.parametrize("place", ["photos/image0.png", "photos/image0.png/deep/out"])
def test_an_output_that_is_or_lies_below_a_file_is_refused(
    tmp_path: Path, photos: Path, refused: Callable[..., None], name: str, place: str
) -> None:
    says = [f"--output {tmp_path}/{place}", f"{photos}/image0.png is a file"]
    refused(2, says, name, str(photos), "--output", f"{tmp_path}/{place}")


def test_an_output_that_cannot_be_written_is_a_failure(
    photos: Path, refused: Callable[..., None]
) -> None:
    # Not even root makes folders there.
    refused(1, ["/proc/patchflow"], "plan", str(photos), "--output", "/proc/patchflow/out")


def test_an_output_that_holds_no_plan_needs_an_input(
    tmp_path: Path, refused: Callable[..., None]
) -> None:
    says = [f"{tmp_path}/out holds no plan yet", "INPUT"]
    refused(2, says, "embed", "--output", f"{tmp_path}/out")


def test_embedding_with_another_layout_than_planned_is_refused(
    tmp_path: Path, photos: Path, run: Run, refused: Callable[..., None]
) -> None:
    output = ["--output", str(tmp_path / "out")]
    assert run("plan", str(photos), *output, "--shard-rows", "2").code == 0
    refused(2, ["--shard-rows 3", "2"], "embed", str(photos), *output, "--shard-rows", "3")
    refused(2, ["--partition-by x", "none"], "embed", *output, "--partition-by", "x")
    refused(2, ["--shard-rows 3"], "plan", str(photos), *output, "--shard-rows", "3")


def test_a_slice_without_shards_is_not_called_done(tmp_path: Path, photos: Path, run: Run) -> None:
    output = ["--output", str(tmp_path / "out")]
    run("plan", str(photos), *output)
    ended = run("embed", *output, "--shards", "5:9", "--device", "cpu")
    assert "5:9" in ended.out + ended.err
    assert "every planned item" not in ended.out


def test_a_plan_without_an_output_prints_and_writes_nothing(
    tmp_path: Path, photos: Path, run: Run
) -> None:
    (photos / "notes.txt").write_text("text")
    before = snapshot(tmp_path)
    size = sum(path.stat().st_size for path in photos.glob("*.png"))
    ended = run("plan", str(photos), str(photos / "image0.png"), "--shard-rows", "1")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines() == [
        f"2 new items: {size / 1000:.1f} kB in 2 shards",
        "1 items were named more than once and are planned once",
        "skipped files that are neither images nor videos by name: 1 .txt",
        "nothing was written; --output OUT freezes the plan",
    ]
    assert snapshot(tmp_path) == before


def test_a_plan_with_an_output_is_frozen_once(tmp_path: Path, photos: Path, run: Run) -> None:
    output = str(tmp_path / "out")
    ended = run("plan", str(photos), "--output", output)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[-1] == f"frozen as generation 0 of {output}"
    before = snapshot(tmp_path)
    assert {"out/_patchflow/manifest/g000000.json"} < set(before)
    again = run("plan", str(photos), "--output", output)
    assert (again.code, again.err) == (0, "")
    assert again.out.splitlines() == ["2 items, all known and unchanged", "nothing to plan"]
    assert snapshot(tmp_path) == before
    shutil.copy(GOLDENS / "image2.png", photos)
    more = run("plan", str(photos), "--output", output)
    assert more.out.splitlines()[-1] == f"frozen as generation 1 of {output}"


def test_a_planned_output_has_a_status_and_passes_the_audit(
    tmp_path: Path, photos: Path, run: Run
) -> None:
    output = ["--output", str(tmp_path / "out")]
    run("plan", str(photos), *output)
    before = snapshot(tmp_path)
    status = run("status", *output)
    assert (status.code, status.err) == (0, "")
    assert status.out.splitlines()[1].split() == ["g000000", "0", "of", "1", "2", "0", "0", "2"]
    as_json = run("status", *output, "--json")
    assert '"open_items": 2' in as_json.out
    verify = run("verify", *output)
    assert (verify.code, verify.err) == (0, "")
    assert verify.out.splitlines()[-1] == "every invariant holds"
    assert snapshot(tmp_path) == before


def test_a_broken_output_fails_the_audit_with_a_list(
    tmp_path: Path, photos: Path, run: Run
) -> None:
    output = tmp_path / "out"
    run("plan", str(photos), "--output", str(output))
    (output / "embeddings").mkdir()
    (output / "embeddings" / "mine.parquet").write_bytes(b"")
    ended = run("verify", "--output", str(output))
    assert (ended.code, ended.err) == (1, "BROKEN embeddings/mine.parquet: in no marker\n")


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["retry", "--code", "broken"], ["--code broken", "not_found", "corrupt"]),
        (["retry", "--code", "corrupt", "--code", "x"], ["--code x"]),
        (["retry", "--token-budget", "0"], ["--token-budget", "0"]),
        (["retry", "--max-error-rate", "2"], ["--max-error-rate", "2"]),
        (["retry", "--pool", "max"], ["--pool"]),
        (["verify", "--recompute", "0"], ["--recompute", "0"]),
        (["verify", "--recompute", "x"], ["--recompute", "x"]),
        (["verify", "--recompute", "3", "--seed", "-1"], ["--seed", "-1"]),
    ],
    ids=" ".join,
)
def test_an_option_of_retry_or_verify_that_cannot_be_is_wrong_use(
    tmp_path: Path,
    photos: Path,
    run: Run,
    refused: Callable[..., None],
    args: list[str],
    says: list[str],
) -> None:
    output = ["--output", str(tmp_path / "out")]
    run("plan", str(photos), *output)
    refused(2, says, args[0], *output, *args[1:])


def test_a_planned_output_has_nothing_to_retry(tmp_path: Path, photos: Path, run: Run) -> None:
    output = ["--output", str(tmp_path / "out")]
    run("plan", str(photos), *output)
    before = snapshot(tmp_path)
    assert run("retry", *output) == Ended(0, "nothing to retry\n", "")
    assert snapshot(tmp_path) == before


def test_a_status_over_several_generations_says_what_became_of_every_item(
    tmp_path: Path, photos: Path, run: Run
) -> None:
    output = ["--output", str(tmp_path / "out")]
    run("plan", str(photos), *output)
    assert "embedded, 0 failed" not in run("status", *output).out
    shutil.copy(GOLDENS / "image2.png", photos / "image0.png")
    shutil.copy(GOLDENS / "image2.png", photos / "image3.png")
    run("plan", str(photos), *output)
    status = run("status", *output)
    assert [line.split()[0] for line in status.out.splitlines()[1:3]] == ["g000000", "g000001"]
    assert status.out.splitlines()[3:] == ["3 items: 0 embedded, 0 failed, 3 open"]
    verify = run("verify", *output)
    assert "over 2 generations 3 items: 0 embedded, 0 failed, 3 open" in verify.out.splitlines()


@pytest.mark.parametrize("name", NAMES)
def test_every_command_has_a_help(run: Run, name: str) -> None:
    ended = run(name, "--help")
    assert (ended.code, ended.err) == (0, "")
    assert f"patchflow {name}" in ended.out and "--output" in ended.out


# The same as real processes, with all that silences Ray in place.


def process(*args: str) -> Ended:
    command = [sys.executable, "-m", *args]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    return Ended(done.returncode, done.stdout, done.stderr)


def test_a_process_tells_wrong_use_in_a_line_and_exits_with_2(tmp_path: Path) -> None:
    ended = process("jobs.embed", f"{tmp_path}/none", "--output", f"{tmp_path}/out")
    line = f"patchflow embed: '{tmp_path}/none' does not exist\n"
    assert ended == Ended(2, "", line)
    assert list(tmp_path.iterdir()) == []


def test_a_process_tells_a_failure_in_a_line_and_exits_with_1(photos: Path) -> None:
    ended = process("jobs.plan", str(photos), "--output", "/proc/patchflow/out")
    (line,) = ended.err.splitlines()
    assert line.startswith("patchflow plan: /proc/patchflow")
    assert (ended.code, ended.out) == (1, "")


def test_the_installed_command_hands_over_to_a_job(tmp_path: Path) -> None:
    ended = process("jobs.cli", "status", "--output", f"{tmp_path}/out")
    line = f"patchflow status: {tmp_path}/out is no patchflow output: no plan is frozen there\n"
    assert ended == Ended(2, "", line)


def test_the_installed_command_lists_its_jobs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs import cli

    monkeypatch.setattr(sys, "argv", ["patchflow"])
    cli.main()
    shown = capsys.readouterr()
    assert shown.err == ""
    assert [name for name in NAMES if f"patchflow {name}" not in shown.out] == []


def test_an_unknown_job_is_wrong_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from jobs import cli

    monkeypatch.setattr(sys, "argv", ["patchflow", "embedd", "x"])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2
    assert "there is no job 'embedd'" in capsys.readouterr().err


def test_every_job_of_the_installed_command_exists() -> None:
    from jobs import cli

    assert set(NAMES) <= set(cli.JOBS)
    assert all(callable(import_module(f"jobs.{name}").main) for name in cli.JOBS)


HOSTILE = "\x1b[2J\x07\u202e\u2066\x9b31m\r"


def test_hostile_names_reach_no_terminal(
    tmp_path: Path, write_manifest: Callable[..., str], healthy: str, run: Run
) -> None:
    media = tmp_path / f"media{HOSTILE}"
    media.mkdir()
    for name in ("x.jpg", f"y.{HOSTILE}", f"z\n{HOSTILE}.jpg"):
        (media / name).write_bytes(b"data")
    (Path(healthy) / "embeddings" / f"{HOSTILE}.parquet").write_bytes(b"foreign")

    def manifest(columns: dict[str, list[str]], name: str) -> str:
        return write_manifest(columns, f"{name}{HOSTILE}")

    commands: list[tuple[str, list[str], str]] = [
        ("plan", [str(media)], r"1 .\x1b[2j\x07\u202e\u2066\x9b31m\r"),
        ("plan", [str(media), "--output", str(tmp_path / f"out{HOSTILE}")], r"/out\x1b[2J"),
        ("plan", [f"{tmp_path}/none{HOSTILE}"], "no images or videos in"),
        ("plan", [manifest({"uri": [f"/{HOSTILE}"]}, "a")], "lies outside of the inputs"),
        ("plan", [manifest({HOSTILE: ["a"]}, "b")], "no `uri` column; it has"),
        ("plan", [manifest({"uri": ["a"], HOSTILE * 99: ["a"]}, "c")], "longer than 256 bytes"),
        ("plan", [manifest({"uri": ["a"], HOSTILE: ["a"]}, "d"), "--partition-by", "x"], r"\x1b"),
        ("plan", [str(media), "--limit", HOSTILE], "see patchflow plan --help"),
        ("verify", ["--output", healthy], r"BROKEN embeddings/\x1b[2J"),
        ("status", ["--output", f"{tmp_path}/{HOSTILE}"], "is no patchflow output"),
    ]
    for name, args, says in commands:
        ended = run(name, *args)
        printed = ended.out + ended.err
        assert says in printed
        assert [line for line in printed.split("\n") if not line.isprintable()] == []
