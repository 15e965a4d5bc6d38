"""Which files of this machine belong to a checkpoint."""

import os
from pathlib import Path

import pytest

from encoder.json_text import MAX_JSON_BYTES, parse_object
from encoder.local_file import check_local_file, read_local_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("secret")
    return made


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    """A checkpoint as Hugging Face's cache lays it out: its files are links."""
    repository = tmp_path / "hub" / "models--zai-org--GLM"
    made = repository / "snapshots" / "5d3c"
    made.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "8a31").write_text("{}")
    (made / "config.json").symlink_to("../../blobs/8a31")
    return made


def test_a_file_of_the_folder_is_read(folder: Path) -> None:
    assert check_local_file(folder / "config.json") == 2
    assert read_local_json(folder / "config.json") == b"{}"


def test_the_folder_may_be_a_link_and_a_file_one_to_its_neighbour(folder: Path) -> None:
    other = folder.parent / "other"
    other.symlink_to(folder)
    (folder / "again.json").symlink_to("config.json")
    assert check_local_file(other / "config.json") == 2
    assert check_local_file(other / "again.json") == 2


def test_the_hugging_face_cache_is_read(snapshot: Path) -> None:
    assert check_local_file(snapshot / "config.json") == 2
    part = snapshot / "vision"
    part.mkdir()
    (part / "config.json").symlink_to("../../../blobs/8a31")
    assert check_local_file(part / "config.json") == 2
    other = snapshot.parents[3] / "other"
    other.symlink_to(snapshot)
    assert check_local_file(other / "config.json") == 2


@pytest.mark.parametrize("target", ["../secret", "{root}/secret", "../aside/secret", "hop"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, target: str) -> None:
    (folder.parent / "aside").symlink_to(folder.parent)
    (folder / "hop").symlink_to("../secret")
    (folder / "x.json").symlink_to(target.format(root=folder.parent))
    with pytest.raises(ValueError, match=r"^a symbolic link out of its folder, to .*/secret, is"):
        check_local_file(folder / "x.json")


def test_a_link_out_of_the_cached_repository_is_refused(snapshot: Path) -> None:
    repository = snapshot.parents[1]
    (repository.parent / "blob").write_text("another repository's")
    (snapshot / "x.json").symlink_to("../../../blob")
    (repository / "blobs" / "9b42").symlink_to("/etc/passwd")
    (snapshot / "y.json").symlink_to("../../blobs/9b42")
    for name in ("x.json", "y.json"):
        with pytest.raises(ValueError, match="a symbolic link out of its folder"):
            check_local_file(snapshot / name)


def test_a_folder_that_is_only_called_like_the_cache_has_no_more_rights(folder: Path) -> None:
    made = folder.parent / "models--x" / "REV"  # of no snapshots
    made.mkdir(parents=True)
    (made / "config.json").symlink_to("../../secret")
    with pytest.raises(ValueError, match="a symbolic link out of its folder"):
        check_local_file(made / "config.json")


def test_what_is_no_file_is_not_opened(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "device").symlink_to("/dev/zero")
    (folder / "folder").mkdir()
    for name in ("pipe", "device", "folder"):
        with pytest.raises(ValueError, match=r"^not a regular file$"):
            check_local_file(folder / name)
    (folder / "loop").symlink_to("loop")
    with pytest.raises(ValueError, match=r"^a symbolic link to itself$"):
        check_local_file(folder / "loop")
    (folder / "dangling").symlink_to("nothing")
    with pytest.raises(FileNotFoundError):
        check_local_file(folder / "dangling")


def test_a_terminal_obeys_no_name_of_a_target(folder: Path) -> None:
    (folder.parent / "\x1b[31m\n").write_text("secret")
    (folder / "x.json").symlink_to("../\x1b[31m\n")
    with pytest.raises(ValueError, match="out of its folder") as caught:
        check_local_file(folder / "x.json")
    assert str(caught.value).isprintable()


def test_no_more_than_16_mib_are_read(folder: Path) -> None:
    os.truncate(folder / "config.json", MAX_JSON_BYTES)
    assert len(read_local_json(folder / "config.json")) == MAX_JSON_BYTES
    os.truncate(folder / "config.json", 10 * 2**30)
    with pytest.raises(ValueError, match=r"^10,737,418,240 bytes, over 16,777,216, the most supp"):
        read_local_json(folder / "config.json")


def test_a_file_that_is_larger_than_it_says_is_refused(folder: Path) -> None:
    """Files of the kernel's say 0; those that grow are the same."""
    grown = folder / "config.json"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("encoder.local_file.MAX_JSON_BYTES", 1)
        patch.setattr("encoder.local_file.check_local_file", lambda path: 0)
        with pytest.raises(ValueError, match="2 bytes, over 1, the most supported"):
            read_local_json(grown)


def test_json_is_an_object_that_every_reader_takes_alike() -> None:
    assert parse_object(b'{"a": [1, {"b": null}]}') == {"a": [1, {"b": None}]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"[1]", "^a JSON object is expected, not list$"),
        (b'{"a": 1, "a": 1}', "^an object has a name twice$"),
        (b'{"a": {"b": 1, "b": 2}}', "^an object has a name twice$"),
        (b'{"a": NaN}', "^NaN is no JSON$"),
        (b'{"a": -Infinity}', "^-Infinity is no JSON$"),
        (b'{"a": ' + b"[" * 100_000, "^nested too deeply$"),
        (b'{"a": ' + b'{"a": ' * 100_000, "^nested too deeply$"),
        (b'{"a": [' + b"0," * 500_000 + b"0]}", "^500,003 values, over 500,000, the most supp"),
        (b'{"a": [' + b"[]," * 250_000 + b"0]}", "values, over"),
        (b'{"a": ' + b"9" * 5000 + b"}", "Exceeds the limit"),
        (b'\xff\xfe{"a": 1}', "'utf-8' codec"),
        ('{"a": 1}'.encode("utf-16"), "'utf-8' codec"),
    ],
)
def test_other_json_is_refused_in_a_line(text: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_object(text)
    assert "\n" not in str(caught.value)
