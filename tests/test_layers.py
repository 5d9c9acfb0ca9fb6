"""The layout is the architecture: a file imports only from the rows above its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "road_ds"

LAYERS = [
    {"errors"},
    {"strict_json", "deepspeed_keys", "catalog", "fused"},
    {"config", "log", "metrics", "packing", "preemption", "ranks", "surroundings"},
    {"hub", "publishers"},
    {"formats"},
    {"readers"},
    {"negatives"},
    {"features", "passes"},
    {"batches", "spans", "objectives", "optim", "soft_targets", "recipe", "launcher", "bootstrap"},
    {"tasks", "guard", "comparison"},
    {"model", "page"},
    {"checkpoint", "evaluation", "meter", "cosines"},
    {"export", "loop", "speed"},
    {"predictor", "selection"},
    {"teachers", "ensemble"},
    {"train", "teach"},
    {"check", "glue", "inputs"},
    {"stages"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("road_ds"):
            tail = (node.module or "").split(".")[1:]
            found |= {tail[0]} if tail else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("road_ds.")}
    return found


def test_files_import_only_from_layers_above():
    for path in ROOT.glob("*.py"):
        if path.stem == "__init__":
            continue
        assert path.stem in LEVEL, f"{path.name} has no layer: place it in LAYERS"
        for name in imported_modules(path):
            assert LEVEL[name] < LEVEL[path.stem] or name == path.stem, f"{path.name} must not import {name}.py"


def test_kernels_know_nothing_of_road_ds():
    for path in (ROOT.parent / "kernels").rglob("*.py"):
        assert not imported_modules(path), path
    assert not (ROOT.parent / "kernels" / "__init__.py").exists(), (
        "it would shadow the package that transformers imports"
    )
