import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import encoder
from encoder import CheckpointError, load_encoder, pin_location, vision_tensors
from tests.support.hub import REPO, FakeHub

ROOT = Path(encoder.__file__).parent.parent
WriteCheckpoint = Callable[..., tuple[Path, dict[str, torch.Tensor]]]
HF = f"hf://{REPO}"


@pytest.fixture
def two_commits(hub: FakeHub, write_checkpoint: WriteCheckpoint) -> tuple[Path, Path]:
    """`v1` (commit aa...) and `main` (commit bb...), whose weights are twice those of `v1`."""
    folder, _ = write_checkpoint(extra={"model.language.weight": torch.zeros(5_000_000)})
    later = folder.parent / "later"
    later.mkdir()
    (later / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    save_file({name: 2 * t for name, t in tensors.items()}, later / "model.safetensors")
    hub.commit("a", folder, "v1", "refs/pr/1", "feature/x")
    hub.commit("b", later, "main")
    return folder, later


@pytest.mark.usefixtures("two_commits")
@pytest.mark.parametrize(
    ("location", "pinned"),
    [
        (HF, f"{HF}@{'b' * 40}"),
        (f"{HF}/", f"{HF}@{'b' * 40}"),
        (f"{HF}@main", f"{HF}@{'b' * 40}"),
        (f"{HF}@v1", f"{HF}@{'a' * 40}"),
        (f"{HF}@refs/pr/1", f"{HF}@{'a' * 40}"),
        (f"{HF}@feature%2Fx", f"{HF}@{'a' * 40}"),
        (f"{HF}@v1/model.safetensors", f"{HF}@{'a' * 40}/model.safetensors"),
    ],
)
def test_a_revision_becomes_its_commit(location: str, pinned: str) -> None:
    assert pin_location(location) == pinned


@pytest.mark.parametrize(
    "location",
    [
        "tiny",
        "/models/GLM@main",
        "s3://bucket/GLM@main",
        f"{HF}@{'a' * 40}",
        f"{HF}@{'a' * 40}/model.safetensors",
        "hf://buckets/org/GLM",
    ],
)
def test_what_is_pinned_or_not_on_the_hub_is_returned_without_a_request(
    hub: FakeHub, location: str
) -> None:
    assert pin_location(location) == location
    assert hub.served == []


@pytest.mark.usefixtures("two_commits")
@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("hf://zai-org/nothing", "the Hub has no such repository, or shows it only to those"),
        (f"{HF}@v9", "the repository has no revision v9"),
        ("hf://gpt2", r"not of the form hf://org/name\[@revision\]"),
        ("hf://", "not of the form"),
        ("hf://zai-org/a..b", "Repo id must use alphanumeric chars|Cannot have"),
    ],
)
@pytest.mark.parametrize("ask", [pin_location, vision_tensors])
def test_what_is_not_on_the_hub_is_named(
    ask: Callable[[str], object], location: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as error:
        ask(location)
    assert str(error.value).startswith(location)
    assert "\n" not in str(error.value)


def test_all_is_of_one_commit_although_the_branch_moves_meanwhile(
    hub: FakeHub, two_commits: tuple[Path, Path]
) -> None:
    hub.revisions["main"] = "a" * 40
    hub.then["main"] = "b" * 40
    tensors = vision_tensors(HF)
    assert hub.revisions["main"] == "b" * 40
    assert tensors.location == f"{HF}@{'a' * 40}"
    official = load_file(two_commits[0] / "model.safetensors")
    assert {name: bytes(data) for name, data in tensors} == {
        name: official[f"model.visual.{name}"].numpy().tobytes() for name in tensors.entries
    }


def test_a_load_resolves_once_and_fetches_only_the_vision_tensors(
    hub: FakeHub, two_commits: tuple[Path, Path]
) -> None:
    model = load_encoder(HF)
    official = load_file(two_commits[1] / "model.safetensors")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, official[f"model.visual.{name}"]), name
    ours = [path for path in hub.paths() if REPO in path]
    assert len([path for path in ours if "b" * 40 not in path]) == 1
    assert len(hub.served) < 20
    fetched = sum(served.body_bytes for served in hub.served)
    vision = sum(parameter.nbytes for parameter in model.parameters())
    header = (two_commits[1] / "model.safetensors").stat().st_size - sum(
        tensor.nbytes for tensor in official.values()
    )
    assert vision < fetched < vision + header + 4096


def test_a_second_load_finds_where_the_branch_is_by_then(
    hub: FakeHub, two_commits: tuple[Path, Path]
) -> None:
    first = load_encoder(HF).state_dict()
    hub.revisions["main"] = "a" * 40
    second = load_encoder(HF).state_dict()
    assert all(torch.equal(first[name], 2 * second[name]) for name in first)


def test_the_environment_leads_to_a_hub_as_well(
    hub: FakeHub, two_commits: tuple[Path, Path]
) -> None:
    script = f"import encoder; print(encoder.checkpoint_digest(encoder.vision_tensors({HF!r})))"
    digest = run(script, {"HF_ENDPOINT": hub.endpoint})
    assert digest == encoder.checkpoint_digest(vision_tensors(str(two_commits[1])))


@pytest.mark.parametrize("location", [HF, f"{HF}@{'a' * 40}"])
def test_without_its_package_a_line_says_what_to_install(location: str) -> None:
    script = f"""
import sys
sys.modules["huggingface_hub"] = None
import encoder
try:
    encoder.vision_tensors({location!r})
except encoder.CheckpointError as error:
    print(error)
"""
    line = f'{location}: hf:// needs huggingface_hub: pip install "patchflow[hub]"'
    assert run(script, {}) == line


def run(script: str, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    return done.stdout.strip()
