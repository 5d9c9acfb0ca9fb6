"""What the documents name is there: files, tests, commands, classes."""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest

from road_ds.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "kernels" / "README.md"]
FOLDERS = ("road_ds", "benchmarks", "tests", "docs", "ds_configs", "kernels")
OTHERS = {"zero_to_fp32.py"}  # DeepSpeed's

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def all_files() -> set[str]:
    return {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*") if path.is_file()}


@documents
def test_files_are_there(document):
    text = document.read_text(encoding="utf-8")
    for path in re.findall(rf"(?<![\w./~-])(?:{'|'.join(FOLDERS)})/[\w./-]*\w(?![\w*<{{])", text):
        assert (ROOT / path).exists(), path
    files = all_files()
    for name in set(re.findall(r"(?<![\w./-])[\w/]+\.(?:py|sh)\b", text)) - OTHERS:
        assert any(f"/{file}".endswith(f"/{name}") for file in files), name
    for module, names in re.findall(r"\bfrom (road_ds[\w.]*) import ([\w, ]+)", text):
        assert all(hasattr(import_module(module), name) for name in names.split(", ")), (module, names)
    for link in re.findall(r"\]\(([\w./-]+)\)", text):
        assert (document.parent / link).exists(), link


def functions_of(file: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@documents
def test_tests_are_there(document):
    file = ""  # `::test_name` alone is of the file named before
    for own, name in re.findall(r"\b(test_\w+\.py)?::(test_\w+)", document.read_text(encoding="utf-8")):
        file = own or file
        assert name in functions_of(file), f"{file}::{name}"


KNOWN = {command.__name__.rpartition(".")[2] for command in COMMANDS}


def commands_in(document: Path) -> set[str]:
    text = document.read_text(encoding="utf-8")
    return set(re.findall(r"-(?:m|-module) road_ds\b[ `]*([.\w]*)", text)) - {""}


@documents
def test_commands_are_there(document):
    assert commands_in(document) <= KNOWN


def test_the_readme_has_every_command():
    assert commands_in(ROOT / "README.md") == KNOWN


def test_reliability_names_tests():
    assert len(re.findall(r"::test_", (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8"))) > 50


def tree_of_readme() -> set[str]:
    """The paths of the README's tree, of which each line begins with a name or several."""
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree\n")[2]
    found, folders = set(), []
    for line in re.findall(r"^    (?:  ){0,3}\w[\w./, ]*", text.partition("\n|")[0], re.MULTILINE):
        depth = (len(line) - len(line.lstrip()) - 4) // 2
        names = re.match(r"\s*((?:[\w.]+/?(?:, )?)+)", line)
        assert names, line
        for name in names[1].split(", "):
            path = "".join([*folders[:depth], name])
            if name.endswith("/"):
                folders[depth:] = [name]
            found.add(path)
    return found


def test_the_tree_has_every_file_and_no_other():
    tree = tree_of_readme()
    for path in tree:
        assert (ROOT / path).exists(), path
    skipped = ("__init__.py", ".pyc")
    inside = {name for name in all_files() if name.startswith("road_ds/") and not name.endswith(skipped)}
    assert {name for name in inside if not name.startswith("road_ds/data/sample_data/")} <= tree


def names_of_the_package() -> set[str]:
    """Classes, functions and names at the top of a module of road_ds, and what classes have: `Task.encode`."""
    found = set()
    for path in (ROOT / "road_ds").rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                found |= {node.name}
                for inner in node.body:
                    if isinstance(inner, ast.FunctionDef):
                        found.add(f"{node.name}.{inner.name}")
                    elif isinstance(inner, ast.AnnAssign) and isinstance(inner.target, ast.Name):
                        found.add(f"{node.name}.{inner.target.id}")
            elif isinstance(node, ast.Assign):
                found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def test_the_architecture_names_classes_that_there_are():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([A-Z]\w*(?:\.\w+)?)`", text))
    assert len(named) > 30 and named <= names_of_the_package(), named - names_of_the_package()
    for name, path in re.findall(r"`(\w+)` in `([\w/]+\.py)`", text):
        file = next(ROOT.glob(path), ROOT / "road_ds" / path)
        assert re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")), f"{name} in {path}"
