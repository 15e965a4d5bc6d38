"""Hostile names: links, pipes and devices on a disk, keys that look like paths and URLs on S3."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.blame import fetch_item
from pipeline.config import InputConfig
from pipeline.errors import ItemError, UsageError
from pipeline.manifest import reach_of, read_shard, shards_of
from pipeline.plan import plan
from pipeline.retry import plan_retry
from pipeline.storage import storage_for
from pipeline.verify import verify
from tests.faults.proxy import this_process_through

Row = dict[str, Any]

# What SeaweedFS stores letter for letter; beside them, objects that they must not be taken for.
KEYS = [
    "http:evil/x.jpg",
    "%2e%2e/x.jpg",
    "%2F..%2Fx.jpg",
    "a?b#c.jpg",
    "x.jpg?versionId=7",
    "file:",
    "C:x.jpg",
    "new\nline\r.jpg",
    "trailing .jpg ",
    " leading.jpg",
    "*.jpg",
    "[a]?.jpg",
    "~/.ssh/x.jpg",
    "$HOME.jpg",
    "a+b&c=d.jpg",
    "'\"<>.jpg",
    "\x1b[2J.jpg",
    "\x01\x7f.jpg",
    "\u202egnp.jpg",
    "größe \U0001f9ff.jpg",
    "\u00e9.jpg",
    "e\u0301.jpg",
    "...jpg",
]
# What it refuses to have.
REFUSED_KEYS = ["../../etc/passwd.jpg", "a/../x.jpg", "./x.jpg", "a/./x.jpg", "..\\x.jpg"]
# What it stores under names of its own, with one slash.
REWRITTEN_KEYS = ["http://evil/x.jpg", "a//x.jpg", "a\\x.jpg", "/a/x.jpg"]
DECOYS = ["x.jpg", "b.jpg", "line.jpg", "trailing .jpg", "leading.jpg", "evil/x.jpg"]

NOT_HERE = [
    "http://h/x.jpg",
    "HTTPS://h/x.jpg",
    "http:x.jpg",
    "ftp://h/x.jpg",
    "data:image/png;base64,AAAA",
    "gs://b/x.jpg",
    "S3://b/x.jpg",
    "s3:/b/x.jpg",
    "s3://",
    "file://host/x.jpg",
    "file:////host/x.jpg",
    "file:x.jpg",
    "//host/share/x.jpg",
    "C:\\x.jpg",
    "c:/x.jpg",
    "javascript://x\x1b[2J\n.jpg",
]
OUTSIDE = [
    "/etc/passwd",
    "../x.jpg",
    "a/../../x.jpg",
    "file:///etc/passwd",
    "file://{here}/..%2f..%2fx.jpg",
    "{here}-not/x.jpg",
    "s3://media/x.jpg",
]


def planned(uris: list[str], folder: Path, output: str | None = None, **options: Any) -> Any:
    """What planning a manifest of `uris` comes to."""
    folder.mkdir(exist_ok=True)
    place = folder / "items.parquet"
    pq.write_table(pa.table({"uri": uris}), place)
    return plan(InputConfig(inputs=(str(place),), **options), output, [])


@pytest.mark.parametrize("uri", NOT_HERE)
def test_what_is_neither_on_a_disk_nor_on_s3_is_refused_wherever_it_stands(
    uri: str, tmp_path: Path
) -> None:
    told = []
    for ask in (
        lambda: planned([uri], tmp_path),
        lambda: planned(["a.jpg"], tmp_path, root=(uri,)),
        lambda: plan(InputConfig(inputs=(uri,)), None, []),
    ):
        with pytest.raises(UsageError) as caught:
            ask()
        told.append(str(caught.value))
    assert all(repr(uri) in line and line.isprintable() for line in told)
    assert str(tmp_path) in told[0]
    assert ("copy it to S3 or to a disk first" in told[0]) == uri.lower().startswith(("http", "ft"))


@pytest.mark.parametrize("uri", OUTSIDE)
def test_a_uri_outside_of_the_inputs_is_refused_and_nothing_frozen(
    uri: str, tmp_path: Path
) -> None:
    named = uri.format(here=tmp_path / "here")
    output = tmp_path / "output"
    with pytest.raises(UsageError) as caught:
        planned(["a.jpg", named], tmp_path / "here", str(output))
    line = str(caught.value)
    assert f"{tmp_path}/here/items.parquet: the `uri` {named!r} lies outside" in line
    assert "--root LOCATION" in line
    assert not output.exists()
    _, generation = planned(
        ["a.jpg", named], tmp_path / "here", str(output), root=("/", "s3://media")
    )
    assert generation.rows == 2
    assert generation.roots == (str(tmp_path / "here"), "/", "s3://media")


def test_relative_uris_stay_relative_whatever_they_look_like(tmp_path: Path) -> None:
    names = ["a/http://x.jpg", "b?x=s3://b/k.jpg", "x/../y.jpg", "~/z.jpg", "%2e%2e/w.jpg"]
    _, generation = planned(names, tmp_path, str(tmp_path / "output"))
    (shard,) = shards_of(generation, without=set())
    found = read_shard(str(tmp_path / "output"), shard)["uri"].to_pylist()
    resolved = ["a/http:/x.jpg", "b?x=s3:/b/k.jpg", "y.jpg", "~/z.jpg", "%2e%2e/w.jpg"]
    assert found == [f"{tmp_path}/{name}" for name in resolved]


def test_a_manifest_on_s3_reaches_its_own_prefix_only(s3_media: str, write_manifest) -> None:
    place = f"{s3_media}/lists/items.parquet"
    for uri, refused in [
        ("a.jpg", False),
        ("../a.jpg", False),  # A key like any other.
        (f"{s3_media}/lists/a.jpg", False),
        (f"{s3_media}/lists.old/a.jpg", True),
        (f"{s3_media}/a.jpg", True),
        ("/etc/passwd", True),
    ]:
        storage_for(place).upload(place, write_manifest({"uri": [uri]}))
        if refused:
            with pytest.raises(UsageError, match="lies outside of the inputs' folders"):
                plan(InputConfig(inputs=(place,)), None, [])
        else:
            assert plan(InputConfig(inputs=(place,)), None, [])[0].new == 1


# --- keys ---------------------------------------------------------------------------------------


def test_a_key_is_a_key_and_that_very_object_is_read(s3_media: str, s3_environment) -> None:
    store = storage_for(s3_media)
    names = [*KEYS, *DECOYS]
    for name in names:
        store.write(f"{s3_media}/{name}", name.encode())
    assert {info.uri for info in store.list(s3_media)} == {f"{s3_media}/{n}" for n in names}
    for name in names:
        found = fetch_item(store, f"{s3_media}/{name}", version=None, max_bytes=None)
        assert found.data == name.encode()


def test_keys_that_a_server_does_not_have_are_asked_for_as_they_are(s3_media: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    storage_for(s3_media).write(f"{s3_media}/x.jpg", b"x")
    with this_process_through(environment) as proxy:
        for name in [*REFUSED_KEYS, *REWRITTEN_KEYS]:
            with pytest.raises(ItemError) as caught:
                fetch_item(
                    storage_for(s3_media), f"{s3_media}/{name}", version=None, max_bytes=None
                )
            assert caught.value.code in ("read_failed", "not_found")
        asked = {f"s3://{a.key}" for a in proxy.requests}
    assert {f"{s3_media}/{name}" for name in [*REFUSED_KEYS, *REWRITTEN_KEYS]} <= asked


@pytest.mark.whole
def test_hostile_keys_are_embedded_each_with_its_own_bytes(
    s3, collection, commands, alone, score, tmp_path
) -> None:
    media = {f"hostile/{name}": collection.cut(".png") for name in KEYS}
    s3.put(media)
    uris = [f"s3://media/{key}" for key in media]
    pq.write_table(pa.table({"uri": uris}), tmp_path / "items.parquet")
    place = "s3://embeddings/hostile keys"
    done = commands.run(
        "embed",
        *(tmp_path / "items.parquet", "--root", "s3://media/hostile", "--output", place),
        *("--shard-rows", 16, "--max-pixels", 50176),
        env=s3.env,
    )
    assert done.code == 0, str(done)
    output = s3.download("hostile keys", tmp_path / "downloaded")
    score.rows(uris, output.terminal())
    (tmp_path / "alone").mkdir()
    for number, row in enumerate(output.rows()):
        path = tmp_path / "alone" / f"{number}.png"
        path.write_bytes(media[row["uri"].removeprefix("s3://media/")])
        assert row["content_hash"] == alone(path)["content_hash"]
    assert output.rows("errors") == []
    audit = commands.run("verify", "--output", place, "--recompute", 100, env=s3.env)
    assert (audit.code, audit.err) == (0, ""), str(audit)
    assert f"{len(KEYS)} items embedded again and compared" in audit.out


# --- a disk -------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, collection) -> Iterator[Path]:
    """Photos, links of every kind, and what is no file; beside it, photos that are not meant."""
    media, other = tmp_path / "media", tmp_path / "other"
    for folder, names in ((media / "a", ("1.png", "2.png")), (other / "deep", ("5.png", "6.png"))):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).write_bytes(collection.cut(".png"))
    for link, target in {
        "in.png": "a/1.png",
        "out.png": "../other/deep/5.png",
        "loop.png": "loop.png",
        "folder": "../other",
        "up": "..",
        "zero.png": "/dev/zero",
    }.items():
        (media / link).symlink_to(target)
    (other / "back").symlink_to("../media")
    os.mkfifo(media / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(media / "socket.png"))
        yield media


INSIDE = ["a/1.png", "a/2.png", "in.png"]
FOLLOWED = ["out.png", "folder/deep/5.png", "folder/deep/6.png"]
NO_FILES = ["pipe.png", "socket.png", "a", "loop.png", "/dev/zero", "/dev/tty", "zero.png"]


def error_codes(output: Any) -> dict[str, str]:
    return {row["uri"]: row["error_code"] for row in output.rows("errors")}


@pytest.mark.whole
def test_links_out_are_embedded_only_where_they_are_followed(
    here: Path, run_embed, commands, alone, assert_rows, output_at, score, tmp_path
) -> None:
    plain = run_embed(tmp_path / "plain", here, "--max-pixels", 50176)
    assert plain.done.code == 0, str(plain.done)
    assert "left out 4 symbolic links" in plain.done.out
    assert plain.output.terminal() == [str(here / name) for name in INSIDE]
    assert_rows(plain.rows, [alone(here / name) for name in INSIDE])
    followed = run_embed(tmp_path / "followed", here, "--follow-links", "--max-pixels", 50176)
    assert followed.done.code == 0, str(followed.done)
    wanted = [str(here / name) for name in [*INSIDE, *FOLLOWED]]
    score.rows(wanted, followed.output.terminal())
    assert_rows(followed.rows, [alone(Path(uri)) for uri in wanted])
    audit = commands.run("verify", "--output", tmp_path / "followed", "--recompute", 100)
    assert (audit.code, audit.err) == (0, ""), str(audit)
    assert f"{len(wanted)} items embedded again and compared" in audit.out


@pytest.mark.whole
def test_rows_that_name_no_files_and_links_swapped_later_cost_a_row_each(
    here: Path, commands, output_at, alone, assert_rows, score, tmp_path
) -> None:
    names = [*INSIDE, *NO_FILES, "out.png", "folder/deep/6.png", "a/2.png/x.png", "swapped.png"]
    uris = [name if name.startswith("/") else str(here / name) for name in names]
    (here / "swapped.png").write_bytes((here / "a" / "1.png").read_bytes())
    pq.write_table(pa.table({"uri": uris}), here / "items.parquet")
    output = output_at(tmp_path / "output")
    args = (here / "items.parquet", "--root", "/dev", "--output", output.folder)
    frozen = commands.run("plan", *args)
    assert frozen.code == 0, str(frozen)
    (here / "swapped.png").unlink()
    (here / "swapped.png").symlink_to("../other/deep/6.png")
    done = commands.run("embed", "--output", output.folder, "--max-pixels", 50176)
    assert done.code == 0, str(done)
    assert done.seconds < 60
    score.rows(uris, output.terminal())
    out = ["out.png", "folder/deep/6.png", "swapped.png"]
    expected = dict.fromkeys((u for u, n in zip(uris, names, strict=True)), "not_found")
    expected |= {str(here / name): "access_denied" for name in out}
    for name in INSIDE:
        del expected[str(here / name)]
    assert error_codes(output) == expected
    assert_rows(
        output.rows(), [alone(here / n) | {"version": None} for n in INSIDE], but=("version",)
    )
    again = commands.run("retry", "--output", output.folder, "--follow-links")
    assert again.code == 0, str(again)
    assert {str(here / name) for name in out} <= {row["uri"] for row in output.rows()}
    assert verify(str(output.folder)).breaches == []


def test_what_a_generation_allows_is_kept_for_later_runs(tmp_path: Path, freeze, commit) -> None:
    """A second planning and a retry allow what the first did; a retry may allow links as well."""
    output = str(tmp_path / "output")
    for number, root in enumerate(("/a", "/b")):
        folder = tmp_path / str(number)
        folder.mkdir()
        pq.write_table(pa.table({"uri": [f"{root}/x.jpg"]}), folder / "items.parquet")
        _, generation = freeze(output, str(folder / "items.parquet"), root=(root,))
        commit(output, generation, failed={0: "access_denied"})
    _, existing = plan_retry(output, follow_links=True)
    roots = (str(tmp_path / "0"), "/a", str(tmp_path / "1"), "/b")
    assert [g.follow_links for g in existing] == [False, False, True]
    assert existing[2].roots == reach_of(existing).roots == roots
    assert not reach_of(existing[:2]).follow_links
    assert reach_of(existing).follow_links
