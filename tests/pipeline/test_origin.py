"""Resuming on the copy that an output keeps of its encoder: what the original is looked at for."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
from safetensors.torch import load_file, save_file

import pipeline.identity
from pipeline.config import EmbedConfig
from pipeline.errors import UsageError
from pipeline.identity import Identity, identity
from pipeline.record import record, recorded
from pipeline.storage import output_root
from pipeline.tower import mend
from tests.support.checkpoints import in_one_file
from tests.support.hub import REPO, FakeHub


class Begun:
    """An output that was begun with a checkpoint of its own, and resumed in another process."""

    def __init__(self, folder: Path, checkpoint: Path | str) -> None:
        self.checkpoint, self.output = checkpoint, folder / "out"
        self.what = identity(self._config(str(checkpoint)), "cpu")
        record(self._config(str(checkpoint)), self.what)
        self.tower = next((self.output / "_patchflow" / "encoder").iterdir())

    def resume(self, encoder: str | None = None, **options: object) -> Identity:
        config = self._config(encoder or str(self.checkpoint), **options)
        run = recorded(config.output)
        assert run is not None
        what = identity(config, "cpu", run.encoder)
        mend(config.output, what.encoder)
        return what

    def _config(self, encoder: str, **options: object) -> EmbedConfig:
        return EmbedConfig(output=output_root(str(self.output)), encoder=encoder, **options)  # type: ignore[arg-type]


@pytest.fixture
def begun(tmp_path: Path, goldens: Path) -> Begun:
    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(goldens / "checkpoint-glm46v", checkpoint)
    (checkpoint / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "Glm46VImageProcessorFast", "max_pixels": 400_000})
    )
    return Begun(tmp_path, checkpoint)


@pytest.fixture
def digested(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Locations whose weights were read to the end."""
    found: list[str] = []

    def counting(tensors):
        found.append(tensors.location)
        return original(tensors)

    original = pipeline.identity.checkpoint_digest
    monkeypatch.setattr(pipeline.identity, "checkpoint_digest", counting)
    return found


def test_an_unchanged_original_is_not_read_again(begun: Begun, digested: list[str], capsys) -> None:
    capsys.readouterr()
    assert begun.resume() == begun.what
    assert digested == []
    assert capsys.readouterr().err == ""


def test_an_original_that_is_gone_is_not_needed(begun: Begun, capsys) -> None:
    shutil.rmtree(begun.checkpoint)
    capsys.readouterr()
    assert begun.resume() == begun.what
    assert capsys.readouterr().err == (
        f"patchflow: --encoder {begun.checkpoint} is gone: going on with the copy that "
        f"{begun.output} keeps of it\n"
    )


def test_an_original_in_one_file_that_is_gone_is_not_needed(tmp_path: Path, goldens: Path) -> None:
    whole = shutil.copytree(goldens / "checkpoint-glm46v", tmp_path / "whole")
    in_one_file(whole)
    begun = Begun(tmp_path, whole)
    shutil.rmtree(whole)
    assert begun.resume() == begun.what


def test_a_tower_that_is_gone_from_beside_a_whole_model_is_not_needed(begun: Begun) -> None:
    folder = begun.checkpoint.with_name("towers")
    folder.mkdir()
    for name in ("tower.safetensors", "model.safetensors"):
        shutil.copy(begun.tower, folder / name)
    again = Begun(folder, folder / "tower.safetensors")
    (folder / "tower.safetensors").unlink()
    assert again.resume() == again.what


def test_a_copy_is_read_from_an_output_of_any_name(tmp_path: Path, goldens: Path, capsys) -> None:
    for name in ("a::b", os.fsdecode(b"caf\xe9")):
        begun = Begun(tmp_path / name, goldens / "checkpoint-glm46v")
        capsys.readouterr()
        assert begun.resume() == begun.what
        assert capsys.readouterr().err == ""


def test_weights_that_are_gone_beside_their_config_are_not_needed(begun: Begun) -> None:
    next(begun.checkpoint.glob("*.safetensors")).unlink()
    assert begun.resume() == begun.what


def test_storage_that_answers_no_more_is_not_needed(
    begun: Begun, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    local = fsspec.implementations.local.LocalFileSystem
    look = local.info

    def refuse(self: object, path: str, **options: object) -> object:
        if begun.checkpoint.name in path:
            raise PermissionError(13, "no\nsuch luck")
        return look(self, path, **options)

    monkeypatch.setattr(local, "info", refuse)
    capsys.readouterr()
    assert begun.resume() == begun.what
    assert "cannot be looked at ([Errno 13] no such luck): going on" in capsys.readouterr().err


def test_the_options_of_the_command_line_still_count(begun: Begun) -> None:
    shutil.rmtree(begun.checkpoint)
    was, now = begun.what.semantics, begun.resume(max_pixels=1000).semantics
    assert (was["max_pixels"], now["max_pixels"]) == (200_000, 1000)


def other_weights(checkpoint: Path) -> str:
    path = next(
        path for path in checkpoint.glob("*.safetensors") if "model.visual" in str(load_file(path))
    )
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)
    return path.name


def another_budget(checkpoint: Path) -> None:
    (checkpoint / "preprocessor_config.json").write_text('{"max_pixels": 300000}')


def a_file_more(checkpoint: Path) -> None:
    (checkpoint / "processor_config.json").write_text(
        '{"image_processor": {"patch_expand_factor": 2}}'
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        (other_weights, "encoder_digest"),
        (another_budget, "max_pixels"),
        (a_file_more, "patch_expand_factor"),
    ],
)
def test_an_original_that_has_changed_is_another_one(
    begun: Begun, change: Callable[[Path], object], field: str
) -> None:
    change(begun.checkpoint)
    assert begun.resume().semantics[field] != begun.what.semantics[field]


@pytest.mark.parametrize(
    ("change", "field"), [(another_budget, "max_pixels"), (a_file_more, "patch_expand_factor")]
)
def test_processor_files_beside_an_original_in_one_file_are_looked_at(
    begun: Begun, tmp_path: Path, change: Callable[[Path], object], field: str
) -> None:
    whole = in_one_file(begun.checkpoint)
    by_file = Begun(tmp_path / "by-file", whole)
    assert by_file.what.semantics == begun.what.semantics
    change(begun.checkpoint)
    assert by_file.resume().semantics[field] != by_file.what.semantics[field]


def test_files_that_were_only_touched_are_read_again_and_found_the_same(
    begun: Begun, digested: list[str]
) -> None:
    os.utime(next(begun.checkpoint.glob("*.safetensors")), (1, 1))
    assert begun.resume().semantics == begun.what.semantics
    assert digested == [str(begun.checkpoint)]


def test_another_name_of_the_same_place_is_the_same_place(
    begun: Begun, digested: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(begun.checkpoint.parent)
    monkeypatch.setenv("HOME", str(begun.checkpoint.parent))
    place = begun.checkpoint
    for name in ("checkpoint", "./checkpoint/", "~/checkpoint", f"file://{place}", f"{place}/"):
        assert begun.resume(name) == begun.what
    assert digested == []


@pytest.mark.parametrize("name", ["~/checkpoint", "file://{home}/checkpoint/"])
def test_a_folder_is_found_again_however_it_was_named(
    tmp_path: Path, goldens: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(goldens / "checkpoint-glm46v", tmp_path / "checkpoint")
    begun = Begun(tmp_path, name.format(home=tmp_path))
    shutil.rmtree(tmp_path / "checkpoint")
    assert begun.resume(str(tmp_path / "checkpoint")) == begun.what


def test_another_place_is_read(begun: Begun, digested: list[str]) -> None:
    moved = begun.checkpoint.rename(begun.checkpoint.with_name("moved"))
    assert begun.resume(str(moved)).semantics == begun.what.semantics
    assert digested == [str(moved)]
    with pytest.raises(UsageError, match="nowhere"):
        begun.resume(str(moved.with_name("nowhere")))


def lose(tower: Path) -> str:
    tower.unlink()
    return "is missing"


def truncate(tower: Path) -> str:
    os.truncate(tower, 1000)
    return "is damaged: "


def flip_a_bit(tower: Path) -> str:
    content = bytearray(tower.read_bytes())
    content[-1000] ^= 1
    tower.write_bytes(content)
    return "is not the encoder that was recorded"


@pytest.mark.parametrize("damage", [lose, truncate, flip_a_bit])
def test_a_copy_that_is_damaged_is_made_again(
    begun: Begun, damage: Callable[[Path], str], capsys
) -> None:
    content = begun.tower.read_bytes()
    told = damage(begun.tower)
    capsys.readouterr()
    assert begun.resume() == begun.what
    assert capsys.readouterr().err.startswith(f"patchflow: {begun.tower} {told}")
    assert begun.tower.read_bytes() == content


def test_shards_in_place_of_which_there_is_one_file_have_changed(begun: Begun) -> None:
    tensors = {}
    for path in begun.checkpoint.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    save_file({n: t + 1 for n, t in tensors.items()}, begun.checkpoint / "model.safetensors")
    digest = begun.resume().semantics["encoder_digest"]
    assert digest != begun.what.semantics["encoder_digest"]


def test_without_copy_and_original_there_is_nothing_to_go_on_with(begun: Begun) -> None:
    begun.tower.unlink()
    shutil.rmtree(begun.checkpoint)
    with pytest.raises(UsageError, match=str(begun.checkpoint)):
        begun.resume()


def test_a_checkpoint_that_changes_while_it_is_copied_is_refused(begun: Begun) -> None:
    begun.tower.unlink()
    other_weights(begun.checkpoint)
    with pytest.raises(UsageError, match="is not the encoder any more that was fingerprinted"):
        mend(str(begun.output), begun.what.encoder)
    assert not begun.tower.exists()


def test_on_s3_it_is_the_etag_that_counts(
    tmp_path: Path, goldens: Path, s3_media: str, digested: list[str]
) -> None:
    fs = fsspec.filesystem("s3")
    for path in (goldens / "checkpoint-glm46v").iterdir():
        fs.pipe_file(f"{s3_media}/{path.name}", path.read_bytes())
    begun = Begun(tmp_path, s3_media)
    digested.clear()
    fs.pipe_file(f"{s3_media}/config.json", fs.cat_file(f"{s3_media}/config.json"))
    assert begun.resume() == begun.what
    assert digested == []
    local = shutil.copytree(goldens / "checkpoint-glm46v", tmp_path / "other")
    name = other_weights(local)
    fs.pipe_file(f"{s3_media}/{name}", (local / name).read_bytes())
    assert begun.resume().semantics["encoder_digest"] != begun.what.semantics["encoder_digest"]
    assert digested == [s3_media]
    fs.rm(s3_media, recursive=True)
    assert begun.resume() == begun.what
    assert begun.resume(f"{s3_media}/") == begun.what


def test_a_branch_of_the_hub_stays_the_commit_that_it_was(
    tmp_path: Path, goldens: Path, hub: FakeHub, digested: list[str], capsys
) -> None:
    first = hub.commit("a", goldens / "checkpoint-glm46v", "main")
    begun = Begun(tmp_path, f"hf://{REPO}")
    assert begun.what.encoder.location == f"hf://{REPO}@{first}"
    later = shutil.copytree(goldens / "checkpoint-glm46v", tmp_path / "later")
    other_weights(later)
    hub.commit("b", later, "main")
    hub.served.clear()
    digested.clear()
    capsys.readouterr()
    assert begun.resume() == begun.what
    assert begun.resume(f"hf://{REPO}@{first}") == begun.what
    assert (hub.served, digested, capsys.readouterr().err) == ([], [], "")
    asked = begun.resume(f"hf://{REPO}@main").semantics
    assert asked["encoder_digest"] != begun.what.semantics["encoder_digest"]
