"""The layout is the architecture: a room imports only from the rooms before it, a file only from the rows above its own."""

import ast
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent / "road_ds"

# A room may import what stands before it; inside a room a file imports only from rows above its own.
ROOMS = {
    "common": [
        {"digest", "errors", "exports", "heartbeat", "processes"},
        {"log", "noise", "plots", "ranks", "strict_json"},
        {"pages", "sealed"},
        {"hub"},
    ],
    "config": [
        {"fit", "trainer_words"},
        {"deepspeed_keys"},
        {"settings"},
        {"catalog", "road"},
        {"file"},
    ],
    "data": [
        {"arrow", "masking", "packing", "passes", "publishers", "tokenizer", "wordpiece", "words"},
        {"batch", "conll", "labels"},
        {"choices", "formats"},
        {"batches", "columns", "files"},
        {"readers"},
        {"negatives"},
        {"sources"},
        {"draft", "features"},
        {"overlap", "rows"},
    ],
    "tasks": [
        {"entities", "label_sets", "metrics", "outputs", "spans"},
        {"base", "sequences"},
        {"evaluation", "labels", "span_qa", "text"},
        {"classification", "multi_label", "multiple_choice", "regression", "replaced_tokens", "token_classification"},
        {"findings", "registry"},
        {"inferred"},
    ],
    "models": [
        {"card", "exchange", "pretrained", "states"},
        {"apex", "configuration", "dropout", "linear"},
        {"attention", "generator"},
        {"multi_task"},
        {"build", "export", "masked_lm"},
        {"predictor"},
        {"ensemble", "graph"},
    ],
    "distillation": [
        {"adversarial", "freelb", "layers.base", "layers.maps", "neighbours", "schedule", "search", "soft_targets"},
        {"layers.alp", "layers.ckd", "layers.hidden", "layers.pkd"},
        {"layers.tinybert"},
        {"layers.registry"},
        {"objective"},
        {"annealing", "average", "disagreement", "guard", "intermediate", "kd", "minimax", "smoothing"},
        {"lesson", "teachers"},
        {"registry"},
        {"retrieve"},
        {"teach"},
    ],
    "engine": [
        {
            "adamw",
            "checkpoint",
            "cosines",
            "curves",
            "forwards",
            "memory",
            "optim",
            "preemption",
            "run_folder",
            "settled",
            "speed",
            "surroundings",
            "update",
        },
        {"internals", "meter", "micro_batch", "resume", "weights"},
        {"finished", "plan", "report", "selection", "start"},
        {"generator", "milestones", "results"},
        {"parts"},
    ],
    "loop": [{""}],
    "train": [{""}],
    "recipes": [
        {"difference", "glue", "inputs", "launcher", "recipe"},
        {"comparison", "stages"},
        {"page", "sweep"},
        {"study"},
        {"trials"},
        {"findings"},
    ],
    "commands": [
        {"arguments", "rows"},
        {
            "check",
            "compare",
            "datasets",
            "evaluate",
            "export",
            "launch",
            "neighbours",
            "predict",
            "push",
            "python",
            "score",
            "teach",
            "tokenizer",
        },
        {"recipe", "sweep"},
    ],
    "__main__": [{""}],
}
LEVEL = {
    ".".join(filter(None, (room, name))): (order, row)
    for order, (room, rows) in enumerate(ROOMS.items())
    for row, names in enumerate(rows)
    for name in names
}


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


def test_files_import_only_from_rooms_before_and_rows_above():
    for path in ROOT.rglob("*.py"):
        name = module_name(path)
        if path.stem == "__init__" or path.parent.name == "sample_data":
            continue
        assert name in LEVEL, f"{path} has no place: give it one in ROOMS"
        for other in imported_modules(path):
            assert LEVEL[other] < LEVEL[name], f"{name} must not import {other}"


def test_every_place_is_a_file():
    assert set(LEVEL) <= {module_name(path) for path in ROOT.rglob("*.py")}


def test_a_visitor_sees_at_most_twelve_entries():
    entries = {path.name for path in ROOT.iterdir()} - {"__init__.py", "__pycache__"}
    assert len(entries) <= 12, sorted(entries)


def test_every_room_says_what_lives_there():
    for room in ROOMS:
        if (ROOT / room).is_dir():
            text = ast.get_docstring(ast.parse((ROOT / room / "__init__.py").read_text(encoding="utf-8"))) or ""
            assert "imports" in text, f"{room}/__init__.py: says what lives there and what it imports"


def test_every_public_name_of_a_room_is_there():
    for room in ROOMS:
        if (ROOT / room).is_dir() and room != "commands":  # nothing is made of these
            package = import_module(f"road_ds.{room}")
            assert package.__all__ and all(getattr(package, name) is not None for name in package.__all__)
            with pytest.raises(AttributeError, match="has no attribute 'other'"):
                _ = package.other


def length(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    said = function.body[0] if ast.get_docstring(function) is not None else None
    return function.end_lineno - function.lineno + 1 - (said.end_lineno - said.lineno + 1 if said else 0)


def test_files_and_functions_can_be_read_at_once():
    for folder in (ROOT, ROOT.parent / "kernels", ROOT.parent / "benchmarks"):
        for path in folder.rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            if path.parent.name == "sample_data":
                continue
            assert text.count("\n") <= 400, path
            functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef)]
            for function in functions if folder == ROOT else ():
                assert length(function) <= 60, f"{path}: {function.name}"


def test_kernels_know_nothing_of_road_ds():
    for path in (ROOT.parent / "kernels").rglob("*.py"):
        assert not imported_modules(path), path
    assert not (ROOT.parent / "kernels" / "__init__.py").exists(), (
        "it would shadow the package that transformers imports"
    )
