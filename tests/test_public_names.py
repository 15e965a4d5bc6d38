"""What is public is documented, its examples are true, and some test uses it."""

import ast
import doctest
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import transformers

import encoder
import pipeline
import processors

TESTS = Path(__file__).parent
REFERENCE = Path(transformers.__file__).parent
ROOMS = (encoder, processors, pipeline)
PUBLIC = [(room.__name__, name) for room in ROOMS for name in room.__all__]
DOCUMENTED = [
    (room, name)
    for room, name in PUBLIC
    if inspect.isclass(public := getattr(import_module(room), name)) or inspect.isfunction(public)
]
MODULES = sorted({getattr(import_module(room), name).__module__ for room, name in DOCUMENTED})


def members_of(public: object) -> Iterator[tuple[str, object]]:
    """A class's own and inherited public methods and properties, as far as they are ours."""
    for cls in inspect.getmro(public) if inspect.isclass(public) else ():
        if cls.__module__.split(".")[0] in {room.__name__ for room in ROOMS}:
            for name, member in vars(cls).items():
                function = isinstance(member, classmethod | staticmethod | property)
                if not name.startswith("_") and (function or inspect.isfunction(member)):
                    yield name, member


def has_a_sentence(documented: object) -> bool:
    # What a dataclass makes up for want of one is its signature.
    doc = inspect.cleandoc(getattr(documented, "__doc__", None) or "")
    return doc.split("\n\n")[0].endswith((".", ":"))


def used_in(tree: ast.Module, room: str) -> set[str]:
    """Names of a room that a module imports or takes as attributes, and makes use of."""
    imported = {
        alias.asname or alias.name: alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == room
        for alias in node.names
    }
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id in imported:
            found.add(imported[node.id])
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == room:
            found.add(node.attr)
    return found


@pytest.fixture(scope="module")
def trees() -> list[ast.Module]:
    return [ast.parse(path.read_text()) for path in TESTS.rglob("*.py")]


def examples_of(module: ModuleType) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(module) if test.examples]


def used_in_examples(room: str) -> set[str]:
    sources = (
        example.source
        for name in MODULES
        if name.split(".")[0] == room
        for test in examples_of(import_module(name))
        for example in test.examples
    )
    return {
        node.id
        for source in sources
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Name)
    }


@pytest.mark.parametrize(("room", "name"), DOCUMENTED)
def test_a_public_name_is_documented_and_so_is_all_that_it_has(room: str, name: str) -> None:
    public = getattr(import_module(room), name)
    silent = [member for member, value in members_of(public) if not has_a_sentence(value)]
    assert has_a_sentence(public)
    assert silent == []


def test_silence_is_noticed() -> None:
    @dataclass
    class Silent:
        value: int

        def mute(self) -> None: ...

        def spoken(self) -> None:
            """Says so."""

    Silent.__module__ = "encoder.silent"
    assert not has_a_sentence(Silent)
    assert [name for name, member in members_of(Silent) if not has_a_sentence(member)] == ["mute"]


@pytest.mark.parametrize("room", [room.__name__ for room in ROOMS])
def test_a_public_name_is_used_by_some_test_or_example(room: str, trees: list[ast.Module]) -> None:
    used = used_in_examples(room).union(*(used_in(tree, room) for tree in trees))
    assert [name for where, name in PUBLIC if where == room and name not in used] == []


def test_what_nobody_uses_is_noticed() -> None:
    source = """
from encoder import next_pack as pack, load_encoder
from processors import smart_resize
import encoder
pack([], 1)
encoder.segments_of(load_encoder, smart_resize)
other.weight_bytes
"""
    assert used_in(ast.parse(source), "encoder") == {"next_pack", "load_encoder", "segments_of"}


@pytest.mark.parametrize("name", MODULES)
def test_examples_are_true(name: str) -> None:
    runner = doctest.DocTestRunner()
    report: list[str] = []
    for test in examples_of(import_module(name)):
        runner.run(test, out=report.append)
    assert report == []


def test_examples_are_found() -> None:
    assert len([test for name in MODULES for test in examples_of(import_module(name))]) >= 10


def names_in_the_reference() -> set[str]:
    """Classes and functions of transformers that could be the namesakes of ours."""
    files = [*(REFERENCE / "models").glob("glm[4g]*/*.py"), REFERENCE / "video_utils.py"]
    found: set[str] = set()
    for path in files:
        found |= set(re.findall(r"^(?:class|def) (\w+)", path.read_text(), re.MULTILINE))
    return found


@pytest.mark.parametrize(
    ("room", "name"), [pair for pair in DOCUMENTED if pair[1] in names_in_the_reference()]
)
def test_a_namesake_says_where_the_reference_has_it(room: str, name: str) -> None:
    doc = inspect.getdoc(getattr(import_module(room), name)) or ""
    paths = re.findall(r"`([\w/]+\.py)`", doc)
    assert "transformers" in doc
    assert any(
        re.search(rf"^(class|def) {name}\b", (REFERENCE / path).read_text(), re.MULTILINE)
        for path in paths
    )
