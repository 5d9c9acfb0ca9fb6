"""ONNX graphs of exported heads: the same logits whatever rows and tokens, and what is said where there can be none."""

import numpy as np
import pytest
import torch
from runs import error_of
from test_export import TASKS, fresh
from transformers import AutoModelForMultipleChoice

from road_ds.common.errors import RoadError
from road_ds.models import graph
from road_ds.models.export import export
from road_ds.models.graph import batch, write_graph
from road_ds.models.predictor import Predictor
from road_ds.tasks.registry import task_from

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra packages of `[onnx]` are not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder with one head and an encoder beside it."""
    run = tmp_path_factory.mktemp("run")
    model, tokenizer = fresh("electra", {"qa": TASKS["qa"]})
    export(model, model.state_dict(), tokenizer, run / "model", shared=True)
    return run


def test_a_graph_says_what_its_model_says(folder, command, monkeypatch):
    """At sizes that it was not made from; one that says otherwise is not kept."""
    code, out, err = command("export", folder, "--onnx")
    path = folder / "model" / "qa" / "model.onnx"
    assert (code, out) == (0, f"{path}\n"), err
    assert not list(path.parent.glob(".staged*"))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    model = Predictor.load(str(path.parent)).model
    for rows, tokens in ((1, 1), (5, 29), (4, 100)):
        ids, mask, types = batch(rows, tokens, model.config.vocab_size, 3)
        assert rows == 1 or not mask.all(), "rows of several lengths"
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        with torch.no_grad():
            expected = model(**given)
        found = session.run(["start_logits", "end_logits"], {key: value.numpy() for key, value in given.items()})
        for name, logits in zip(("start_logits", "end_logits"), found, strict=True):
            assert np.allclose(logits, expected[name].numpy(), atol=1e-5), name
    before = path.read_bytes()
    monkeypatch.setattr(graph, "_trace", lambda answering, example, inputs, place: other(place, before))
    with pytest.raises(RoadError, match=r"qa: the graph's start_logits differ from the model's by .* on 2 x 11 tokens"):
        monkeypatch.setattr(graph, "CLOSE", 0.0)
        write_graph(path.parent)
    assert path.read_bytes() == before


def test_a_graph_of_choices_reads_those_of_a_question(tmp_path):
    model, tokenizer = fresh("electra", {"choice": task_from({"type": "multiple_choice", "max_length": 32}, "choice")})
    export(model, model.state_dict(), tokenizer, tmp_path)
    session = onnxruntime.InferenceSession(str(write_graph(tmp_path / "choice")), providers=["CPUExecutionProvider"])
    plain = AutoModelForMultipleChoice.from_pretrained(tmp_path / "choice").eval()
    for choices in (["In Oslo .", "The doctor .", "Ada found it ."], ["The old mill .", "No ."]):
        given = tokenizer(["Where is it ?"] * len(choices), choices, return_tensors="pt", padding=True)
        with torch.no_grad():
            expected = plain(**{name: tensor[None] for name, tensor in given.items()}).logits
        (found,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in given.items()})
        assert found.shape == (1, len(choices)) and np.allclose(found, expected.numpy(), atol=1e-5)


def other(place, data) -> None:
    place.write_bytes(data)


def test_what_the_exporter_cannot_do_is_one_line(folder, monkeypatch):
    def fails(*_, **__):
        raise RuntimeError("no such operator\nand much more")

    monkeypatch.setattr(torch.onnx, "export", fails)
    with pytest.raises(RoadError, match=r"model/qa: torch's exporter makes no graph of it: no such operator$"):
        write_graph(folder / "model" / "qa")


def test_a_model_of_another_shape_is_one_line(folder, monkeypatch):
    monkeypatch.setattr(graph, "batch", lambda *_: [torch.zeros(1, 2, 3, 4, dtype=torch.long)] * 3)
    with pytest.raises(RoadError, match="model/qa: no graph is made of a model that does not read rows x tokens: "):
        write_graph(folder / "model" / "qa")


def test_without_the_extra_packages_nothing_is_exported(folder, command, monkeypatch):
    monkeypatch.setattr(graph, "NEEDED", ("onnx", "onnx_of_tomorrow", "numpy"))
    said = "error: --onnx needs onnx_of_tomorrow: pip install -c constraints.txt -e '.[onnx]'"
    assert error_of(command("export", folder, "--onnx")) == said
