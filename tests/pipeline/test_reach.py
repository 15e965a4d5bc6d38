"""Where items may lie: by name, and where symbolic links lead."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.reach import Links, Reach
from pipeline.walk import walk

names = st.text("ab/", max_size=6).map(lambda text: f"/{text}")


@pytest.mark.parametrize(
    ("root", "uri", "covered"),
    [
        ("/a", "/a/x.jpg", True),
        ("/a", "/a", True),
        ("/a", "/ab/x.jpg", False),
        ("/a", "/", False),
        ("/", "/x.jpg", True),
        ("/", "s3://b/x.jpg", False),
        ("/a/x.jpg", "/a/x.jpg", True),
        ("/a/x.jpg", "/a/x.jpg.jpg", False),
        ("/caf%FF", "file:///caf%FF/x.jpg", False),
        ("file:///caf%FF", "file:///caf%FF/x.jpg", True),
        ("s3://media", "s3://media/x.jpg", True),
        ("s3://media/", "s3://media/x.jpg", True),
        ("s3://media", "s3://media.old/x.jpg", False),
        ("s3://media/pho", "s3://media/photos/x.jpg", False),
        ("s3://media/photos", "s3://media/photos/x.jpg", True),
        ("s3://media/photos/", "s3://media/photos", False),
        ("s3://media/photos//", "s3://media/photos/x.jpg", False),
        ("s3://media/photos", "s3://media/photos//x.jpg", True),
        ("s3://media/photos", "s3://media/other/../photos/x.jpg", False),
        ("s3://media/photos", "s3://media/photos/../x.jpg", True),  # But a key, letter for letter.
    ],
)
def test_a_root_covers_itself_and_what_lies_below_it(root: str, uri: str, covered: bool) -> None:
    assert Reach(roots=(root,)).covers(uri) is covered


@given(st.lists(names), names)
def test_many_roots_cover_what_any_of_them_covers(roots: list[str], uri: str) -> None:
    covered = any(uri == r or uri.startswith(r if r.endswith("/") else f"{r}/") for r in roots)
    assert Reach(roots=tuple(roots)).covers(uri) is covered


def test_real_paths_are_held_against_the_roots_own(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to(tmp_path / "real")
    reach = Reach(roots=(str(tmp_path / "named"), "s3://media"))
    assert reach.holds(f"{tmp_path}/real/x.jpg")
    assert not reach.holds(f"{tmp_path}/real.jpg")
    assert not Reach(roots=("s3://media",)).holds("/x.jpg")
    assert Reach(roots=(), follow_links=True).holds("/etc/passwd")


# --- listings -----------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with links of every kind, and another one beside it.

    media/a/1 media/z/9, in/ -> a, in.jpg -> a/1, out/ -> ../other, out.jpg -> ../other/5
    loop -> loop, up/ -> .., nothing -> gone, other/5 other/back/ -> media, other/self/ -> .
    """
    media, other = tmp_path / "media", tmp_path / "other"
    for path in (media / "a" / "1", media / "z" / "9", other / "5"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    links = {
        media / "in": "a",
        media / "in.jpg": "a/1",
        media / "loop": "loop",
        media / "nothing": "gone",
        media / "out": "../other",
        media / "out.jpg": "../other/5",
        media / "up": "..",
        other / "back": "../media",
        other / "self": ".",
    }
    for link, target in links.items():
        link.symlink_to(target)
    os.mkfifo(media / "pipe.jpg")
    return media


def found(folder: Path, links: Links | None = None) -> list[str]:
    return [os.path.relpath(path, folder) for path, _ in walk(str(folder), links)]


def test_links_out_of_the_roots_are_left_out_and_counted(place: Path) -> None:
    links = Links(Reach(roots=(str(place),)))
    assert found(place, links) == ["a/1", "in.jpg", "z/9"]
    assert links.left_out == 3  # out, out.jpg and up


def test_links_lead_to_any_of_the_roots(place: Path) -> None:
    links = Links(Reach(roots=(str(place), str(place.parent / "other"))))
    assert found(place, links) == ["a/1", "in.jpg", "out.jpg", "z/9"]
    assert links.left_out == 1  # up


def test_links_that_are_followed_end_though_they_lead_round_in_circles(place: Path) -> None:
    """Every folder once, by its own name where it has one, and what links lead to last."""
    links = Links(Reach(roots=(str(place),), follow_links=True))
    expected = ["a/1", "in.jpg", "out.jpg", "z/9", "out/5"]
    assert found(place, links) == expected
    assert found(place, links) == expected
    assert links.left_out == 0


def test_links_to_links_to_links_do_not_multiply(tmp_path: Path) -> None:
    """Two links a folder, twenty folders deep: a million ways to the last one."""
    for number in range(21):
        (tmp_path / "out" / str(number)).mkdir(parents=True)
        (tmp_path / "out" / str(number) / "x").write_bytes(b"")
        for name in "ab":
            if number:
                (tmp_path / "out" / str(number) / name).symlink_to(f"../{number - 1}")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "first").symlink_to(tmp_path / "out" / "20")
    links = Links(Reach(roots=(str(tmp_path / "in"),), follow_links=True))
    assert len(found(tmp_path / "in", links)) == 21


def test_a_folder_deeper_than_the_stack_is_listed(tmp_path: Path) -> None:
    depth = 1500
    folders = [tmp_path / ("d/" * number) for number in range(1, depth + 1)]
    try:
        for folder in folders:
            folder.mkdir()
        (folders[-1] / "x").touch()
        assert found(tmp_path) == ["d/" * depth + "x"]
    finally:
        # Whoever clears up after the tests has a stack, too.
        (folders[-1] / "x").unlink()
        for folder in reversed(folders):
            folder.rmdir()
