"""Checkpoints full of code: none of it is run, and nothing but what is needed is opened."""

from __future__ import annotations

import json
import os
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.support.checkpoints import write_config
from tests.support.processor_files import FLAT, NESTED
from tests.support.towers import SMALL, random_model

ROOT = Path(__file__).parents[2]
WHOLE = "model.safetensors"
READ = {"config.json", WHOLE, NESTED, *FLAT.values()}

# Modules that others import: where the folder is searched first, one of them is run.
MODULES = (
    *("sitecustomize", "usercustomize", "numpy", "torch", "PIL", "av", "pyarrow", "fsspec"),
    *("safetensors", "encoder", "processors", "pipeline", "json", "typing", "__init__"),
    *("modeling_glm4v", "configuration_glm4v", "processing_glm4v", "image_processing_glm4v"),
)
PICKLES = (
    *("pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl", "optimizer.pt"),
    *("training_args.bin", "model.safetensors.bin", "tokenizer.pkl", "config.pkl", "scheduler.pt"),
)

# In a process that ends as soon as anything of the folder's is compiled, imported or run, or
# anything at all is unpickled.
WATCHED = """
import json, os, sys
folder, read = os.path.realpath(sys.argv[1]), set()
os.chdir(folder)

def of_folder(name):
    return isinstance(name, str) and os.path.realpath(name).startswith(folder + os.sep)

def watch(event, args):
    if event == "open" and of_folder(args[0]):
        read.add(os.path.relpath(os.path.realpath(args[0]), folder))
    ran = event == "exec" and of_folder(args[0].co_filename)
    ran |= event in ("compile", "import") and of_folder(args[1])
    if ran or event.startswith(("pickle.", "marshal.", "subprocess.", "os.exec", "os.posix_spawn")):
        if not (event.startswith("marshal.") and loading_modules()):
            os.write(2, f"{event} {args!r:.200}".encode())
            os._exit(9)

def loading_modules():
    frame = sys._getframe()
    while frame := frame.f_back:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap_external>":
            return True
    return False

import torch, PIL.Image
import encoder.load, processors.video, pipeline.library
from encoder import checkpoint_digest, load_encoder, vision_tensors
from encoder import Glm4vVisionConfig, GlmgaConfig
from processors import GlmgaImageProcessor, load_processors
from pipeline import create_complete_glm4v_vision_pipeline
from pipeline.processor_files import brought_options

sys.addaudithook(watch)
checkpoint_digest(vision_tensors(folder))
load_encoder(folder)
Glm4vVisionConfig.from_pretrained(folder), GlmgaConfig.from_pretrained(folder)
GlmgaImageProcessor.from_pretrained(folder)
load_processors(folder)
brought_options(folder)
model, images, _ = create_complete_glm4v_vision_pipeline(folder)
inputs = images.preprocess(PIL.Image.new("RGB", (56, 56)), return_tensors="pt")
model(inputs["pixel_values"], inputs["image_grid_thw"])
print(json.dumps(sorted(read)))
"""


class Fuse:
    """Writes the canary once it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """What every trap would write."""
    return tmp_path / "canary"


@pytest.fixture
def trapped(tmp_path: Path, canary: Path) -> Path:
    """A good checkpoint, and every way to have code run that others fall for."""
    folder = tmp_path / "trapped"
    folder.mkdir()
    write_config(folder, SMALL)
    save_file(random_model(SMALL).state_dict(), folder / WHOLE)
    code = f"import os; os.system('touch {canary}'); raise SystemExit('trapped')"
    for name in MODULES:
        (folder / f"{name}.py").write_text(code)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text(code)
    (folder / "trap.pth").write_text(f"import os; os.system('touch {canary}')")
    remote = {
        "trust_remote_code": True,
        "auto_map": {name: f"modeling_glm4v.{name}" for name in ("AutoModel", "AutoConfig")}
        | {"AutoProcessor": "processing_glm4v.X", "AutoImageProcessor": "processing_glm4v.X"},
        "_attn_implementation": "modeling_glm4v.run",
        "custom_pipelines": {"x": {"impl": "modeling_glm4v.X"}},
    }
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | remote))
    said = {"auto_map": remote["auto_map"], "image_processor_type": "GlmgaImageProcessor"}
    (folder / FLAT["image"]).write_text(json.dumps(said))
    (folder / FLAT["video"]).write_text(json.dumps({"auto_map": remote["auto_map"]}))
    template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    (folder / "chat_template.jinja").write_text(template)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    (folder / "tokenizer_config.json").write_text(json.dumps(remote))
    data = pickle.dumps(Fuse(canary))
    for name in PICKLES:
        (folder / name).write_bytes(data)
    with zipfile.ZipFile(folder / "archive.pt", "w") as archive:
        archive.writestr("archive/data.pkl", data)
    return folder


def test_the_traps_are_live(trapped: Path, canary: Path, commands) -> None:
    commands.start(sys.executable, trapped / f"{MODULES[-1]}.py").ended()
    assert canary.exists()
    canary.unlink()
    assert pickle.loads((trapped / PICKLES[0]).read_bytes()) == 0  # As its command ends.
    assert canary.exists()


def test_the_library_runs_and_opens_nothing_of_a_checkpoints_but_its_data(
    trapped: Path, canary: Path, commands
) -> None:
    done = commands.start(sys.executable, "-P", "-c", WATCHED, trapped, env=importable()).ended()
    assert done.code == 0, str(done)
    assert set(json.loads(done.out)) == READ - {NESTED}
    assert not canary.exists()


@pytest.mark.whole
def test_a_run_in_the_middle_of_them_runs_none(
    trapped: Path, canary: Path, commands, output_at, tmp_path: Path
) -> None:
    """The folder is checkpoint, input and working directory at once."""
    Image.new("RGB", (56, 56), (9, 90, 200)).save(trapped / "photo.png")
    output = output_at(tmp_path / "output")
    script = "import os, sys; os.chdir(sys.argv.pop(1)); from jobs.embed import main; main()"
    args = (".", "--encoder", ".", "--output", output.folder, "--preprocess-actors", 1)
    done = commands.start(
        *(sys.executable, "-P", "-c", script, trapped, *args, "--encoder-actors", 1),
        env=importable(),
    ).ended()
    assert done.code == 0, str(done)
    assert [row["uri"] for row in output.rows()] == [str(trapped / "photo.png")]
    assert not canary.exists()


def importable() -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT)}
