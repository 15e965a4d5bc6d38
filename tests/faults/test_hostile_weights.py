"""Checkpoints that lie: each is refused in one line, at once and for next to no memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import time
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from encoder import CheckpointError, load_encoder, vision_tensors
from pipeline.errors import UsageError
from pipeline.origin import Encoder
from pipeline.processor_files import brought_options
from pipeline.tower import find_damage
from processors import load_processors
from tests.support.checkpoints import write_config, write_sparse
from tests.support.processor_files import FLAT, NESTED, PUBLISHED
from tests.support.towers import SMALL

WHOLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SHARD = "model-00001-of-00001.safetensors"
NAME = "model.visual.merger.proj.weight"  # one of the tower's tensors: 24 by 24 numbers
# A lie of some KB costs no more; one of many MB, no more than the other.
LITTLE_BYTES, MUCH_BYTES = 8 * 2**20, 300 * 2**20
PATIENCE_S = 10.0

Header = dict[str, Any]


def safetensors(header: Header | bytes, length: int | None = None, body: int = 0) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + bytes(body)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small checkpoint, good so far, of one file."""
    made = tmp_path / "checkpoint"
    made.mkdir()
    write_config(made, SMALL)
    shapes = {f"model.visual.{name}": shape for name, shape in SMALL.tensor_shapes().items()}
    write_sparse(made / WHOLE, shapes, "F32", 4)
    for name in FLAT.values():
        (made / name).write_text(json.dumps({"patch_size": 14}))
    return made


def shard(folder: Path) -> Path:
    """Makes its one file a shard of an index."""
    names = [f"model.visual.{name}" for name in SMALL.tensor_shapes()]
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, SHARD)}))
    return (folder / WHOLE).rename(folder / SHARD)


@contextmanager
def costs_at_most(size_bytes: int) -> Iterator[None]:
    started = time.monotonic()
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < size_bytes
    finally:
        tracemalloc.stop()
    assert time.monotonic() - started < PATIENCE_S


def refusal(call: Callable[..., object], *args: object, cost: int = LITTLE_BYTES) -> str:
    """The line that a checkpoint is refused with."""
    with costs_at_most(cost), pytest.raises((CheckpointError, UsageError, ValueError)) as caught:
        call(*args)
    line = str(caught.value)
    assert line.isprintable() and len(line) < 2000, line[:2000]
    return line


def test_the_checkpoint_that_each_attack_spoils_is_good(folder: Path) -> None:
    assert vision_tensors(folder).config == SMALL
    shard(folder)
    assert load_encoder(folder).config == SMALL


def changed(**fields: Any) -> Callable[[Header], Header]:
    """One of the tower's tensors says something else."""
    return lambda header: header | {NAME: header[NAME] | fields}


def reserialised(header: Header) -> bytes:
    return json.dumps(header).encode()


def twice(header: Header) -> bytes:
    more = reserialised({NAME: header[NAME]})
    return reserialised(header)[:-1] + b", " + more[1:]


HEADERS: dict[str, tuple[Callable[[Header], Header | bytes], str]] = {
    "not JSON": (lambda header: b"{" * 8, "corrupt header: Expecting"),
    "not UTF-8": (lambda header: b'{"\xff": 1}', "'utf-8' codec"),
    "UTF-16": (lambda header: '{"a": 1}'.encode("utf-16"), "'utf-8' codec"),
    "no object": (lambda header: b"[[1]]", "a JSON object is expected, not list"),
    "deep lists": (lambda header: b"[" * 100_000, "nested too deeply"),
    "deep objects": (lambda header: b'{"a":' * 100_000, "nested too deeply"),
    "a name twice": (twice, "an object has a name twice"),
    "NaN": (changed(data_offsets=[0, float("nan")]), "NaN is no JSON"),
    "infinity": (changed(shape=[float("inf")]), "Infinity is no JSON"),
    "a number without end": (lambda h: b'{"a": ' + b"9" * 10_000 + b"}", "Exceeds the limit"),
    "an entry that is a number": (lambda header: header | {NAME: 3}, "corrupt header"),
    "an entry that is a text": (lambda header: header | {NAME: "F32"}, "corrupt header"),
    "no offsets": (lambda header: header | {NAME: {"dtype": "F32", "shape": [1]}}, "no 'data_off"),
    "one offset": (changed(data_offsets=[0]), "corrupt header: not enough values"),
    "a negative offset": (changed(data_offsets=[-2304, 0]), "-2304 where a size or an offset"),
    "an offset that is a float": (changed(data_offsets=[0.0, 2304.0]), "0.0 where a size or an"),
    "an offset that is a bool": (changed(data_offsets=[False, True]), "False where a size or"),
    "an offset that is a text": (changed(data_offsets="ab"), "'a' where a size or an offset"),
    "a huge offset": (changed(data_offsets=[0, 2**62]), "where the file holds"),
    "an offset over 64 bits": (changed(data_offsets=[0, 2**64]), "18446744073709551616 where a"),
    "offsets the wrong way round": (changed(data_offsets=[2304, 0]), "bytes 2304 to 0 of a"),
    "a shape of petabytes": (changed(shape=[2**25, 2**25]), "2304 bytes for F32 of shape"),
    "a shape that overflows": (changed(shape=[2**32, 2**32, 24, 24]), "2304 bytes for F32 of"),
    "a shape that wraps to the size": (changed(shape=[2**62, 2**62, 24, 24]), "bytes for F32"),
    "a shape of many long numbers": (changed(shape=[10**4000] * 100), "is no tensor's"),
    "a shape that is a text": (changed(shape="24"), "F32' of shape '24' is no tensor's"),
    "a shape that is an object": (changed(shape={"24": 24}), "is no tensor's"),
    "negative dimensions": (changed(shape=[-24, -24]), "-24 where a size"),
    "another dtype's size": (changed(dtype="F64"), "2304 bytes for F64 of shape (24, 24)"),
    "an unknown dtype": (changed(dtype="F3"), f"another dtype than F32, F16, BF16: {NAME} is F3"),
    "a dtype that is a list": (changed(dtype=["F32"]), "is no tensor's"),
    "a dtype that draws": (changed(dtype="\x1b[2J"), r"is '\x1b[2J'"),
    "metadata that is no object": (lambda h: h | {"__metadata__": [1]}, "__metadata__ is not an"),
    "metadata of objects": (lambda h: h | {"__metadata__": {"a": {}}}, "__metadata__ is not an"),
    "nothing at all": (lambda header: {}, "of the file are no tensor's"),
}


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "a shard"])
@pytest.mark.parametrize("attack", HEADERS)
def test_a_header_that_lies_is_refused(folder: Path, attack: str, sharded: bool) -> None:
    change, message = HEADERS[attack]
    target = shard(folder) if sharded else folder / WHOLE
    header, body = parts(target)
    target.write_bytes(safetensors(change(header), body=body))
    line = refusal(load_encoder, folder)
    assert line.startswith(str(folder)) and message in line


def parts(file: Path) -> tuple[Header, int]:
    """A file's header, and how many bytes follow it."""
    raw = file.read_bytes()
    (length,) = struct.unpack_from("<Q", raw)
    return json.loads(raw[8 : 8 + length]), len(raw) - 8 - length


def moved(header: Header, by: int) -> Header:
    """All tensors behind the first one lie elsewhere."""
    first = min(entry["data_offsets"][0] for entry in header.values())
    return {
        name: entry
        if entry["data_offsets"][0] == first
        else entry | {"data_offsets": [offset + by for offset in entry["data_offsets"]]}
        for name, entry in header.items()
    }


@pytest.mark.parametrize(
    ("shift", "more", "message"),
    [
        (-4, -4, "overlap"),
        (4, 4, "of the file are no tensor's"),
        (0, 4, "of the file are no tensor's"),
        (0, -4, "of a tensor, where the file holds"),
        (2**50, 0, "of a tensor, where the file holds"),
    ],
    ids=["overlap", "hole", "more at the end", "cut short", "far beyond the end"],
)
@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "a shard"])
def test_every_byte_is_one_tensors(
    folder: Path, shift: int, more: int, message: str, sharded: bool
) -> None:
    target = shard(folder) if sharded else folder / WHOLE
    header, body = parts(target)
    target.write_bytes(safetensors(moved(header, shift), body=body + more))
    assert message in refusal(load_encoder, folder)


PICKLE = pickle.dumps({"weights": [1.0] * 1000})
LENGTHS = {
    "empty": b"",
    "seven bytes": b"1234567",
    "length 0": safetensors(b"", body=100),
    "length 2^63": safetensors(b"{}", 2**63, 100),
    "length 2^64 - 1": safetensors(b"{}", 2**64 - 1, 100),
    "length past the end": safetensors(b"{}", 103, 100),
    "a pickle": PICKLE,
    "an old pickle": pickle.dumps({"weights": 1}, protocol=0),
    "a tar": b"model.pkl".ljust(2048, b"\0"),
    "a Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n",
}


@pytest.mark.parametrize("sharded", [False, True], ids=["one file", "a shard"])
@pytest.mark.parametrize("attack", LENGTHS)
def test_what_is_no_safetensors_is_refused_by_its_first_bytes(
    folder: Path, attack: str, sharded: bool
) -> None:
    target = shard(folder) if sharded else folder / WHOLE
    target.write_bytes(LENGTHS[attack])
    assert refusal(load_encoder, folder).startswith(str(target))


def test_a_zip_of_pickles_is_refused_by_its_first_bytes(folder: Path) -> None:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", PICKLE)
    (folder / WHOLE).write_bytes(data.getvalue())
    assert "corrupt: a header of" in refusal(load_encoder, folder)


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt", ".pkl", ".BIN", ".Pt"])
def test_pickles_are_refused_whatever_they_are_called(folder: Path, suffix: str) -> None:
    (folder / WHOLE).unlink()
    (folder / f"model{suffix}").write_bytes(PICKLE)
    for location in (folder, folder / f"model{suffix}"):
        assert "refused: pickled weights can run code" in refusal(load_encoder, location)
    names = [f"model.visual.{name}" for name in SMALL.tensor_shapes()]
    weight_map = dict.fromkeys(names, f"model{suffix}")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert f"the index names 'model{suffix}', not safetensors" in refusal(load_encoder, folder)


def many_tensors() -> bytes:
    entry = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return safetensors(b"{" + b",".join(b'"%d":%s' % (n, entry) for n in range(10**6)) + b"}")


def many_lists() -> bytes:
    return safetensors(b'{"a":[' + b"[]," * (5 * 2**20) + b"0]}")


def long_metadata() -> bytes:
    return safetensors({"__metadata__": {"a": "x" * 17 * 2**20}})


def many_metadata() -> bytes:
    return safetensors({"__metadata__": {str(n): "" for n in range(10**6)}})


@pytest.mark.parametrize("attack", [many_tensors, many_lists, long_metadata, many_metadata])
def test_a_header_of_very_much_is_refused(folder: Path, attack: Callable[[], bytes]) -> None:
    (folder / WHOLE).write_bytes(attack())
    assert "the most supported" in refusal(load_encoder, folder, cost=MUCH_BYTES)


def test_a_header_of_as_much_as_is_read_costs_no_more(folder: Path) -> None:
    """Shards are opened several at a time: each may cost this much."""
    text = b'{"__metadata__":{' + b",".join(b'"%07d":""' % n for n in range(499_990)) + b"}}"
    (folder / WHOLE).write_bytes(safetensors(text))
    assert "no GLM-4V vision tensors" in refusal(load_encoder, folder, cost=MUCH_BYTES)


def test_an_index_of_very_much_is_refused(folder: Path) -> None:
    shard(folder)
    weight_map = {str(number): SHARD for number in range(500_000)}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}, separators=(",", ":")))
    assert "the most supported" in refusal(load_encoder, folder, cost=MUCH_BYTES)


@pytest.mark.parametrize(
    "name",
    [
        *("../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "\x1b[2J.safetensors"),
        *("x\0.safetensors", "\n.safetensors", "x" * 10**6 + ".safetensors"),
        *("..", "", None, 3, []),
    ],
    ids=lambda name: f"{name!r:.20}",
)
def test_an_index_names_files_of_its_folder(folder: Path, name: object) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": {NAME: name}}))
    assert "the index" in refusal(load_encoder, folder)


@pytest.mark.parametrize("weight_map", [None, 3, [], "x", {}])
def test_an_index_without_its_map_is_refused(folder: Path, weight_map: object) -> None:
    shard(folder)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert refusal(load_encoder, folder).startswith(f"{folder}: ")


def test_a_terminal_obeys_no_tensors_name(folder: Path) -> None:
    header, body = parts(folder / WHOLE)
    evil = "model.visual.merger.\x1b]0;owned\x07\u202e\ud800" + "x" * 10**5
    header[evil] = {"dtype": "F32", "shape": [0], "data_offsets": [body, body]}
    (folder / WHOLE).write_bytes(safetensors(header, body=body))
    assert "1 that the config does not account for: 'model.visual" in refusal(load_encoder, folder)
    header = {evil: header[evil], f"{evil}2": header[evil]}
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    both = {evil: entry, f"{evil}2": entry}
    (folder / WHOLE).write_bytes(safetensors(both, body=4))
    assert "overlap" in refusal(load_encoder, folder)


CONFIGS: dict[str, tuple[Any, str]] = {
    "depth": (10**9, "depth=1000000000 is over 1000, the most supported"),
    "num_hidden_layers": (10**9, "depth=1000000000 is over 1000"),
    "hidden_size": (10**9, "hidden_size=1000000000 is over 1048576"),
    "num_heads": (10**300, "is over 262144"),
    "image_size": (10**9, "image_size=1000000000 is over 65536"),
    "patch_size": (10**9, "patch_size=1000000000 is over 1024"),
    "temporal_patch_size": (10**9, "temporal_patch_size=1000000000 is over 1024"),
    "spatial_merge_size": (10**9, "spatial_merge_size=1000000000 is over 1024"),
    "in_channels": (10**9, "in_channels=1000000000 is over 1024"),
    "out_hidden_size": (2**20, "parameters is over 10,000,000,000, the most supported"),
    "intermediate_size": (-1, "intermediate_size=-1 is not a positive integer"),
    "rope_theta": (10**400, "is not a positive number"),
    "rms_norm_eps": ("\x1b[2J" * 10**5, "rms_norm_eps='\\x1b"),
    "hidden_act": ("\x1b[2J" * 10**5, "is not supported; 'silu' is"),
    "model_type": ("\x1b[2J" * 10**5, "is another architecture"),
    "head_dim": (["\x1b[2J"] * 10**3, "is not hidden_size / num_heads=16"),
    "rope_parameters": (["\x1b[2J"] * 10**3, "is not an object"),
}


@pytest.mark.parametrize("field", CONFIGS)
def test_a_config_of_impossible_towers_is_refused(folder: Path, field: str) -> None:
    value, message = CONFIGS[field]
    raw = json.loads((folder / "config.json").read_text())
    raw["vision_config"] = {
        name: given
        for name, given in raw["vision_config"].items()
        if (field, name) != ("num_hidden_layers", "depth")
    } | {field: value}
    (folder / "config.json").write_text(json.dumps(raw))
    assert message in refusal(load_encoder, folder)


@pytest.mark.parametrize("value", [0, -1, 14.5, "14", True, [14], {"a": 14}, 2**63, 2**64])
@pytest.mark.parametrize("field", ["depth", "hidden_size", "image_size", "patch_size"])
def test_a_config_of_other_types_is_refused(folder: Path, field: str, value: object) -> None:
    raw = json.loads((folder / "config.json").read_text())
    raw["vision_config"][field] = value
    (folder / "config.json").write_text(json.dumps(raw))
    assert f"{field}=" in refusal(load_encoder, folder)


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def sparse(path: Path) -> None:
    path.touch()
    os.truncate(path, 10 * 2**30)


def link_out(path: Path) -> None:
    outside = path.parent.with_name("outside")
    shutil.copy(path.with_name(f"{path.name}.good"), outside)
    path.symlink_to(outside)


def link_to_secret(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def nest(path: Path) -> None:
    path.write_bytes(b"[" * 100_000)


WEIGHTS = ("config.json", INDEX, SHARD)
PROCESSORS = (NESTED, *FLAT.values())


@pytest.mark.parametrize("put", [pipe, device, sparse, link_out, link_to_secret, nest, Path.mkdir])
@pytest.mark.parametrize("name", [*WEIGHTS, *PROCESSORS])
def test_a_file_that_is_none_of_the_folders_is_not_read(
    folder: Path, name: str, put: Callable[[Path], None]
) -> None:
    shard(folder)
    if name == NESTED:  # It would go before the others.
        (folder / name).write_text(json.dumps({"image_processor": PUBLISHED}))
    (folder / name).rename(folder / f"{name}.good")
    put(folder / name)
    reads = [load_encoder] if name in WEIGHTS else [brought_options]
    # Here, what is no file counts as not there.
    reads += [load_processors] if name in PROCESSORS[:2] and put in (sparse, link_out, nest) else []
    for read in reads:
        line = refusal(read, str(folder))
        assert name in line and "root:" not in line
        if put is link_out:
            assert f"a symbolic link out of its folder, to {folder.parent / 'outside'}" in (
                line.replace("'", "")
            )


@pytest.mark.parametrize("name", ["config.json", INDEX, SHARD, *PROCESSORS])
def test_a_cache_of_links_to_its_own_blobs_is_read(folder: Path, name: str) -> None:
    shard(folder)
    (folder / NESTED).write_text(json.dumps({"image_processor": PUBLISHED}))
    repository = folder.parent / "models--zai-org--GLM"
    (repository / "snapshots").mkdir(parents=True)
    (repository / "blobs").mkdir()
    snapshot = folder.rename(repository / "snapshots" / "5d3c")
    (snapshot / name).rename(repository / "blobs" / "8a31")
    (snapshot / name).symlink_to("../../blobs/8a31")
    assert load_encoder(snapshot).config == SMALL
    assert brought_options(str(snapshot)).image
    assert load_processors(snapshot)
    (repository / "blobs" / "8a31").rename(folder.parent / "8a31")
    (repository / "blobs" / "8a31").symlink_to("../../8a31")
    line = refusal(load_encoder if name in WEIGHTS else brought_options, str(snapshot))
    assert "a symbolic link out of its folder" in line


OPTIONS: dict[str, tuple[str, str]] = {
    "a name that draws": ('{"\\u001b[2J": 1}', "is no option's name"),
    "a long name": ('{"%s": 1}' % ("x" * 10**5), "unknown option"),
    "a long value": ('{"patch_size": "%s"}' % ("x" * 10**5), "patch_size must be an integer"),
    "a value that draws": ('{"patch_size": "\\u001b[2J"}', "patch_size must be an integer"),
    "a type that draws": ('{"image_processor_type": "\\u001b[2J"}', "is no image processor"),
    "NaN": ('{"image_mean": [NaN, 1, 1]}', "NaN is no number"),
    "deep": ("[" * 100_000, "is no JSON"),
    "large": ('{"patch_size": 14}' + " " * 2**20, "over 1,048,576, the most supported"),
}


@pytest.mark.parametrize("attack", OPTIONS)
def test_processor_files_that_lie_are_refused(folder: Path, attack: str) -> None:
    text, message = OPTIONS[attack]
    (folder / FLAT["image"]).write_text(text)
    for read in (brought_options, load_processors):
        line = refusal(read, str(folder))
        assert str(folder) in line and (message in line or attack == "large")


@pytest.mark.parametrize("attack", ["a shape of petabytes", "deep lists", "a name twice"])
def test_a_kept_tower_that_lies_is_damaged(folder: Path, attack: str) -> None:
    kept = folder.parent / "output" / "_patchflow" / "encoder" / ("0" * 32 + ".safetensors")
    kept.parent.mkdir(parents=True)
    header, body = parts(folder / WHOLE)
    change, message = HEADERS[attack]
    kept.write_bytes(safetensors(change(header), body=body))
    encoder = Encoder(asked="x", location="x", digest="0" * 32, random=False, config=SMALL)
    with costs_at_most(LITTLE_BYTES):
        damage = find_damage(str(folder.parent / "output"), encoder)
    assert damage is not None and damage.isprintable()
    assert damage.startswith(f"is damaged: {kept}") and message in damage
