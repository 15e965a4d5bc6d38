"""The arrows between rooms: who may import whom, read from the source itself."""

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("encoder", "processors", "pipeline", "jobs")
MAY_IMPORT = {
    "encoder": {"encoder", "torch", "numpy", "safetensors", "fsspec", "huggingface_hub"},
    "processors": {"processors", "torch", "numpy", "PIL", "simplejpeg", "av", "pyseccomp"},
    "jobs": {"jobs", "pipeline", "tyro", "rich"},
}
# Import names that differ from the distribution's, or that come with another one.
DISTRIBUTION = {"PIL": "pillow", "fsspec": "s3fs", "botocore": "s3fs", "aiohttp": "s3fs"}
DISTRIBUTION |= {"grpc": "ray"}
# It shows photos of the `samples` extra and reads the output as any user would.
DEMO = ROOT / "jobs" / "demo.py"


def modules(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if path != DEMO)


def imports_of(source: str) -> Iterator[str]:
    """Top-level names of every import, those in functions and under TYPE_CHECKING included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else (node.module or "").split(".")[0]
        elif (
            isinstance(node, ast.Call)
            and ast.unparse(node.func).endswith("import_module")
            and isinstance(node.args[0], ast.Constant)
        ):
            # Names that are computed are those of a room's own lazy exports and jobs.
            yield node.args[0].value.split(".")[0]


def room_imports(room: str) -> set[str]:
    found = {name for path in modules(room) for name in imports_of(path.read_text())}
    return found - sys.stdlib_module_names


def dependencies(extra: str | None = None) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {re.split(r"[\[<>=!~; ]", text, maxsplit=1)[0] for text in texts}


def test_every_kind_of_import_is_seen() -> None:
    source = """
import a.b, c as d
from e.f import g
from . import sibling
from importlib import import_module
if TYPE_CHECKING:
    import h
def function():
    import i
    import_module("j.k")
"""
    assert set(imports_of(source)) == {"a", "c", "e", ".", "importlib", "h", "i", "j"}


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_have_modules_to_look_at(room: str) -> None:
    assert len(modules(room)) > 3


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert room_imports(room) - MAY_IMPORT[room] == set()


def test_the_pipeline_imports_the_rooms_below_it_and_not_the_jobs() -> None:
    ours = room_imports("pipeline") & {*ROOMS, "benchmarks", "tests"}
    assert ours == {"encoder", "processors", "pipeline"}


def test_the_demo_imports_no_room_but_the_jobs_and_the_pipeline() -> None:
    found = set(imports_of(DEMO.read_text())) - sys.stdlib_module_names
    assert found <= MAY_IMPORT["jobs"] | {"pyarrow", "skimage"}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_needs_only_declared_dependencies(room: str) -> None:
    needed = {DISTRIBUTION.get(name, name) for name in room_imports(room) - set(ROOMS)}
    assert needed - dependencies() - dependencies("hub") == set()


def test_every_declared_dependency_is_imported_somewhere() -> None:
    used = {DISTRIBUTION.get(name, name) for room in ROOMS for name in room_imports(room)}
    assert dependencies() - used <= {"safetensors"}


@pytest.mark.parametrize("room", ROOMS)
def test_the_reference_is_never_imported_at_run_time(room: str) -> None:
    assert not room_imports(room) & {"transformers", "torchvision"}


@pytest.mark.parametrize("room", ROOMS)
def test_nothing_is_called_utils(room: str) -> None:
    assert [path for path in modules(room) if "util" in path.stem] == []


def test_a_command_line_starts_without_torch_and_ray() -> None:
    code = (
        "import pipeline.config, pipeline.plan, pipeline.status, pipeline.verify, pipeline.embed\n"
        "import jobs.cli, jobs.embed, jobs.plan, jobs.status, jobs.verify, encoder, processors\n"
        "import jobs.retry, jobs.summary, pipeline.retry\n"
        "import sys\n"
        "print(*({'torch', 'ray', 's3fs', 'transformers', 'torchvision'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == []
