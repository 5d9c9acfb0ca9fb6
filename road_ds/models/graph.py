"""A trained head as an ONNX graph, held against the model that it was made from."""

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from road_ds.common.errors import RoadError, first_line
from road_ds.models.configuration import uses_token_types
from road_ds.models.predictor import Predictor
from road_ds.tasks.base import Task

FILE = "model.onnx"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
CLOSE = 1e-4  # of the largest logit, at least of 1: how far graph and model may be apart
LARGE = 2**30  # bytes of weights, which then lie in a file of their own beside the graph


class Answering(nn.Module):
    """A task's model that gives its logits alone, in a row; names: theirs."""

    def __init__(self, model: nn.Module, task: Task, example: Sequence[torch.Tensor]):
        super().__init__()
        self.model, self.task = model, task
        self.names = [name for name in self.answered(*example) if name.endswith("logits")]

    def answered(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> Any:
        types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        return self.model(**self.task.inputs({"input_ids": input_ids, "attention_mask": attention_mask, **types}))

    def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> tuple[torch.Tensor, ...]:
        answered = self.answered(input_ids, attention_mask, token_type_ids)
        return tuple(answered[name] for name in self.names)


def write_graph(folder: Path) -> Path:
    """Writes an exported head's model.onnx into its folder, in float32: rows and tokens of any number; its path.

    Of multiple choice the rows are one question's choices. RoadError where the extra packages are missing, the exporter cannot,
    or the graph's logits are not the model's.
    """
    refuse_lacking()
    predictor = Predictor.load(str(folder))
    model = predictor.model.float().cpu()
    inputs = ["input_ids", "attention_mask"]
    inputs += ["token_type_ids"] * uses_token_types(model.config, predictor.tokenizer)
    longest = min(predictor.task.max_length, getattr(model.config, "max_position_embeddings", 10**6))
    rows = [batch(*size, model.config.vocab_size, len(inputs)) for size in ((2, 11), (1, 3), (3, 17), (2, longest))]
    try:
        with torch.no_grad():
            answering = Answering(model, predictor.task, rows[0]).eval()
    except Exception as error:  # a model that reads something else
        raise RoadError(
            f"{folder}: no graph is made of a model that does not read rows x tokens: {first_line(error)}"
        ) from None
    staged = folder / ".staged"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir()
    try:
        _trace(answering, rows[0], inputs, staged / FILE)
        for example in rows:
            _compare(answering, staged / FILE, dict(zip(inputs, example, strict=True)), folder)
        for file in staged.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return folder / FILE


def refuse_lacking() -> None:
    """RoadError where the packages that graphs need are not installed."""
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        raise RoadError(f"--onnx needs {', '.join(lacking)}: pip install -c constraints.txt -e '.[onnx]'")


def batch(rows: int, tokens: int, vocabulary: int, inputs: int) -> list[torch.Tensor]:
    """Rows of random ids, the last of which is shorter than the others: ids, attention mask, token types if asked."""
    random = torch.Generator().manual_seed(tokens)
    ids = torch.randint(1, vocabulary, (rows, tokens), generator=random)
    mask = torch.ones_like(ids)
    if rows > 1:
        mask[-1, tokens - tokens // 3 :] = 0
    types = torch.zeros_like(ids)
    types[:, tokens // 2 :] = 1
    return [ids, mask, types][:inputs]


def _trace(answering: Answering, example: list[torch.Tensor], inputs: list[str], path: Path) -> None:
    """Writes the graph of a model; the two first axes of its inputs may have any length."""
    free = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    size = sum(p.numel() * p.element_size() for p in answering.parameters())
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                answering, tuple(example), dynamo=True, dynamic_shapes=(free,) * len(example),
                input_names=inputs, output_names=answering.names, verbose=False,
            )  # fmt: skip
            assert program is not None
            program.save(str(path), external_data=size > LARGE)
    except OSError:
        raise
    except Exception as error:  # what an architecture holds that the exporter does not know fails in its own ways
        raise RoadError(f"{path.parent.parent}: torch's exporter makes no graph of it: {first_line(error)}") from None


def _compare(answering: Answering, path: Path, given: dict[str, torch.Tensor], folder: Path) -> None:
    """RoadError where the graph's logits of these inputs are not the model's."""
    import onnxruntime

    with torch.no_grad():
        expected = answering(*given.values())
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(answering.names, {name: value.numpy() for name, value in given.items()})
    for name, value, other in zip(answering.names, expected, found, strict=True):
        wanted = value.numpy()
        apart = float(np.abs(wanted - other).max()) / max(1.0, float(np.abs(wanted).max()))
        if wanted.shape != other.shape or not apart <= CLOSE:
            rows, tokens = given["input_ids"].shape
            raise RoadError(
                f"{folder}: the graph's {name} differ from the model's by {apart:.1e} on {rows} x {tokens} tokens: it is not kept"
            )
