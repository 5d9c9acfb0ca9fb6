"""The layout is the architecture: a file imports only from the rows above its own."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "road_ds"

LAYERS = [
    {"errors", "exchange", "adamw", "heartbeat", "launch", "trainer_words"},
    {"digest", "strict_json", "deepspeed_keys", "data.catalog", "fused", "dropout", "linear", "internals"},
    {"config", "log", "metrics", "packing", "preemption", "ranks", "sealed", "surroundings", "tokenizer", "pretrained"},
    {"hub", "data.publishers"},
    {"data.formats"},
    {"data.readers"},
    {"data.negatives"},
    {"data.features", "data.passes"},
    {"data.batches", "spans", "objectives", "optim", "soft_targets"},
    {"tasks", "guard", "run_folder"},
    {"model"},
    {"checkpoint", "evaluation", "meter", "cosines"},
    {"export", "loop", "speed"},
    {"predictor", "selection"},
    {"teachers", "ensemble"},
    {"train", "teach"},
    {"check", "glue"},
    {"recipes.recipe", "recipes.inputs", "recipes.launcher", "recipes.difference"},
    {"recipes.stages", "recipes.comparison"},
    {"recipes.page"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(path: Path) -> set[str]:
    """The modules of road_ds that a file imports, each without the name of the package."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("road_ds"):
            module = (node.module or "").removeprefix("road_ds").removeprefix(".")
            inside = {".".join(filter(None, (module, alias.name))) for alias in node.names}
            found |= {module} if module in LEVEL else inside
        elif isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("road_ds.") for alias in node.names if alias.name.startswith("road_ds.")}
    return found


def test_files_import_only_from_layers_above():
    for path in ROOT.rglob("*.py"):
        name = module_name(path)
        if path.stem == "__init__" or path.parent.name == "sample_data":
            continue
        assert name in LEVEL, f"{path} has no layer: place it in LAYERS"
        for other in imported_modules(path):
            assert LEVEL[other] < LEVEL[name], f"{name} must not import {other}"


def test_every_layer_is_a_file():
    assert set(LEVEL) <= {module_name(path) for path in ROOT.rglob("*.py")}


def test_kernels_know_nothing_of_road_ds():
    for path in (ROOT.parent / "kernels").rglob("*.py"):
        assert not imported_modules(path), path
    assert not (ROOT.parent / "kernels" / "__init__.py").exists(), (
        "it would shadow the package that transformers imports"
    )
