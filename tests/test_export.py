"""An exported folder computes what the trained model computed, for every architecture."""

import copy
import os
import re
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer

from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path, trained_heads
from road_ds.config.road import ModelSpec
from road_ds.data.batch import collate
from road_ds.data.readers import Answer, Example
from road_ds.models.build import build_model
from road_ds.models.card import Card
from road_ds.models.configuration import check_lengths, load_tokenizer
from road_ds.models.export import export, read_task
from road_ds.models.predictor import Predictor
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.registry import task_from

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ARCHITECTURES = {
    "electra": {**SMALL, "embedding_size": 16},
    "bert": SMALL,
    "roberta": {**SMALL, "max_position_embeddings": 130},
    "albert": {**SMALL, "embedding_size": 16},
    "deberta-v2": {**SMALL, "relative_attention": True, "position_buckets": 8, "pos_att_type": ["p2c", "c2p"], "norm_rel_ebd": "layer_norm", "share_att_key": True},
    "modernbert": {**SMALL, "global_attn_every_n_layers": 2, "local_attention": 16},
}  # fmt: skip
TASKS = {
    "qa": task_from({"type": "span_qa", "max_length": 64, "doc_stride": 16, "max_question_length": 16}, "qa"),
    "nli": task_from({"type": "classification", "labels": ["yes", "no", "maybe"]}, "nli"),
    "rating": task_from({"type": "regression", "max_length": 64}, "rating"),
}
TEXTS = [
    ("Ada lives in Oslo .", "Where does Ada live ?"),
    ("The mill is old .", "Zoë keeps a cat and a dog in the town ."),
]
EXAMPLES = [Example(str(i), a, b, None, (), f"row {i}") for i, (a, b) in enumerate(TEXTS)]


def fresh(architecture: str, tasks=TASKS, seed=1):
    spec = ModelSpec(architecture=architecture, tokenizer="sample:tokenizer", config=ARCHITECTURES[architecture])
    tokenizer = load_tokenizer(spec)
    model = build_model(spec, tasks, tokenizer, dropout=0.1, seed=seed)
    with torch.no_grad():
        for parameter in model.parameters():  # nothing left at its initial value, biases and norms included
            parameter += 0.05 * torch.randn_like(parameter)
    return model.eval(), tokenizer


def logits(model, head, tokenizer) -> np.ndarray:
    source = MemorySet.encode("rows", EXAMPLES, TASKS[head], tokenizer)
    batch = collate(source, range(len(source)), tokenizer.pad_token_id)
    with torch.no_grad():
        return model(batch, head).logits.numpy()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_exported_folder_gives_the_same_logits(architecture, tmp_path):
    model, tokenizer = fresh(architecture)
    export(model, model.state_dict(), tokenizer, tmp_path, Card("card"))
    for head, task in TASKS.items():
        folder = tmp_path / head
        loaded = Predictor.load(str(folder))
        for parameter in loaded.model.parameters():
            # weights mapped from a file lie elsewhere in a cache line, which changes the last bit of a dot product
            parameter.data = parameter.data.clone()
        assert np.array_equal(logits(loaded, head, loaded.tokenizer), logits(model, head, tokenizer))
        assert loaded.task == task and type(loaded.model).__name__ in loaded.model.config.architectures
        plain = task.model.from_pretrained(folder)  # as any user of transformers would
        assert {k: v.sum() for k, v in plain.state_dict().items()} == {
            k: v.sum() for k, v in loaded.model.state_dict().items()
        }
        assert not list(folder.glob("*.bin")) and (folder / "README.md").read_text().count("\ncard\n") == 1
    assert AutoConfig.from_pretrained(tmp_path / "nli").id2label == {0: "yes", 1: "no", 2: "maybe"}


def test_every_head_trains_the_same_encoder():
    model, tokenizer = fresh("bert")
    encoders = [name for name, _ in model.named_modules() if name.endswith("word_embeddings")]
    assert encoders == ["encoder.embeddings.word_embeddings"]
    model.train()
    source = MemorySet.encode("rows", EXAMPLES, TASKS["qa"], tokenizer)
    model(collate(source, [0], 0), "qa").logits.square().sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert without == [], "idle heads and the pooler must take part, with gradient 0"
    assert float(model.heads["nli"]["classifier"].weight.grad.abs().max()) == 0
    assert float(model.encoder.pooler.dense.weight.grad.abs().max()) == 0


@pytest.mark.parametrize(("parts", "value"), [(slice(None), 1e38), (slice(-1, None), 3e38)], ids=["inside", "in a sum"])
@pytest.mark.parametrize("architecture", ["electra", "bert"])
def test_an_idle_head_that_overflows_leaves_the_others_alone(architecture, parts, value):
    """In half precision: on its own rows a head may overflow, on another data set's it must not."""
    model, tokenizer = fresh(architecture)
    source = MemorySet.encode("rows", EXAMPLES, TASKS["qa"], tokenizer)
    batch = collate(source, range(len(source)), tokenizer.pad_token_id)
    with torch.no_grad():
        for parameter in [*model.heads["nli"].parameters()][parts]:
            parameter.fill_(value)
    loss = model.train()(batch, "qa").logits.sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(not p.grad.any() for head in ("nli", "rating") for p in model.heads[head].parameters())


def test_training_mode_reaches_the_heads():
    """Dropout in a head must be on in training and off in evaluation."""
    model, tokenizer = fresh("electra")
    assert np.array_equal(logits(model, "nli", tokenizer), logits(model, "nli", tokenizer))
    model.train()
    assert not np.array_equal(logits(model, "nli", tokenizer), logits(model, "nli", tokenizer))
    model.eval()
    assert np.array_equal(logits(model, "nli", tokenizer), logits(model, "nli", tokenizer))


def exported(tmp_path, architecture="electra"):
    model, tokenizer = fresh(architecture)
    export(model, model.state_dict(), tokenizer, tmp_path)
    return model, tokenizer


def test_a_folder_goes_on_with_its_own_head(tmp_path):
    model, tokenizer = exported(tmp_path)
    again = build_model(
        ModelSpec(name=str(tmp_path / "nli")), {"nli": TASKS["nli"]}, tokenizer, dropout=None, seed=9
    ).eval()
    assert np.array_equal(logits(again, "nli", tokenizer), logits(model, "nli", tokenizer))


def test_labels_travel_by_name(tmp_path):
    """The same head under another label order: its rows are permuted, each label keeps its logit."""
    model, tokenizer = exported(tmp_path)
    other = {"nli": TASKS["nli"].model_copy(update={"labels": ["maybe", "yes", "no"]})}
    again = build_model(ModelSpec(name=str(tmp_path / "nli")), other, tokenizer, dropout=None, seed=9).eval()
    assert np.array_equal(logits(again, "nli", tokenizer)[:, [1, 2, 0]], logits(model, "nli", tokenizer))


def test_a_head_with_other_labels_starts_fresh(tmp_path):
    """Three labels of another meaning must not inherit a head of three labels."""
    model, tokenizer = exported(tmp_path)
    other = {"nli": TASKS["nli"].model_copy(update={"labels": ["good", "bad", "mixed"]})}
    again = build_model(ModelSpec(name=str(tmp_path / "nli")), other, tokenizer, dropout=None, seed=9)
    assert torch.equal(again.encoder.embeddings.word_embeddings.weight, model.encoder.embeddings.word_embeddings.weight)
    assert not torch.equal(
        again.heads["nli"]["classifier"].out_proj.weight, model.heads["nli"]["classifier"].out_proj.weight
    )


@pytest.mark.parametrize("architecture", ["bert", "electra"])
def test_an_encoder_moves_from_a_span_model_to_other_heads(architecture, tmp_path):
    model, tokenizer = exported(tmp_path, architecture)
    again = build_model(ModelSpec(name=str(tmp_path / "qa")), TASKS, tokenizer, dropout=None, seed=9).eval()
    assert np.array_equal(logits(again, "qa", tokenizer), logits(model, "qa", tokenizer))


@pytest.mark.parametrize(("architecture", "settings", "message"), [
    ("electra", {"hidden_size": 130}, "cannot compute with these settings: mat1 and mat2 shapes"),
    ("bert", {"hidden_size": 130}, "gives no model for span_qa: .*not a multiple"),
    ("gpt2", {}, "gives no model for|cannot compute"),
    ("elektra", {}, "not known to transformers; did you mean 'electra'"),
    ("electra", {"hiden_size": 8}, "electra has no such setting; did you mean 'hidden_size'"),
])  # fmt: skip
def test_settings_that_give_no_model_are_named(architecture, settings, message):
    spec = ModelSpec(architecture=architecture, tokenizer="sample:tokenizer", config=settings)
    with pytest.raises(RoadError, match=message):
        build_model(spec, TASKS, load_tokenizer(spec), dropout=None, seed=0)


def test_rows_longer_than_the_positions_are_refused():
    config = copy.deepcopy(AutoConfig.for_model("roberta"))
    config.max_position_embeddings, config.pad_token_id = 66, 1
    check_lengths(config, {"qa": TASKS["qa"]})
    config.max_position_embeddings = 65
    with pytest.raises(RoadError, match=r"max_length 64 is above the encoder's 63 positions"):
        check_lengths(config, {"qa": TASKS["qa"]})


def test_tasks_of_folders_from_elsewhere(tmp_path):
    exported(tmp_path)
    for head in TASKS:
        (tmp_path / head / "road_task.json").unlink()
    assert read_task(tmp_path / "qa").type == "span_qa"
    assert read_task(tmp_path / "nli").labels == ["yes", "no", "maybe"]
    assert read_task(tmp_path / "rating").type == "regression"
    with pytest.raises(RoadError, match=r"no config\.json"):
        read_task(tmp_path)


def test_answers_lie_in_the_context(tmp_path):
    exported(tmp_path)
    question = Example("q", "Where ?", "Ada lives in Oslo 🎈 and Zoë in Łódź .", None, (Answer("Oslo", 13),), "row")
    answered = Predictor.load(str(tmp_path / "qa")).predict([question])[0]
    assert answered.text and question.text_b[answered.start : answered.end] == answered.text
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "qa").backend_tokenizer.to_str()
        == AutoTokenizer.from_pretrained(sample_path("tokenizer")).backend_tokenizer.to_str()
    )


def headed(folder) -> set[str]:
    """The cards of the heads that stand in a folder."""
    return {
        re.search(r"^_(old|new|now)$", (folder / head / "README.md").read_text(), re.M)[0]
        for head in TASKS
        if (folder / head).exists()
    }


@pytest.mark.parametrize("kill", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_heads_of_two_exports_never_stand_side_by_side(tmp_path, monkeypatch, kill):
    """Whichever of its moves an export does not live to make; and the next one mends it."""
    model, tokenizer = fresh("bert")
    replace = os.replace
    for moves in range(2 * len(TASKS)):
        folder = tmp_path / str(moves)
        export(model, model.state_dict(), tokenizer, folder, Card("_old"))
        made = []

        def stop(source, target, moves=moves, made=made):
            if ".staged" in str(source) or ".replaced" in str(target):
                if len(made) == moves:
                    raise kill
                made.append(target)
            replace(source, target)

        monkeypatch.setattr("road_ds.models.export.os.replace", stop)
        with pytest.raises((KeyboardInterrupt, RoadError), match=None if isinstance(kill, type) else "No space left"):
            export(model, model.state_dict(), tokenizer, folder, Card("_new"))
        monkeypatch.undo()
        assert len(headed(folder)) <= 1, "old and new"
        if not isinstance(kill, type):
            assert headed(folder) == {"_old"} and sorted(p.name for p in folder.iterdir()) == sorted(TASKS)
    export(model, model.state_dict(), tokenizer, folder, Card("_new"))
    assert headed(folder) == {"_new"} and sorted(p.name for p in folder.iterdir()) == sorted(TASKS)


def test_a_kill_while_the_replaced_heads_are_removed_leaves_the_new_ones(tmp_path, monkeypatch):
    model, tokenizer = fresh("bert")
    export(model, model.state_dict(), tokenizer, tmp_path, Card("_old"))
    remove = shutil.rmtree

    def killed(path, **options):
        if any((path / head).exists() for head in TASKS) and path.name != ".staged":
            (path / next(iter(TASKS)) / "road_task.json").unlink()
            raise KeyboardInterrupt
        remove(path, **options)

    monkeypatch.setattr("road_ds.models.export.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        export(model, model.state_dict(), tokenizer, tmp_path, Card("_new"))
    monkeypatch.undo()
    assert headed(tmp_path) == {"_new"}
    export(model, model.state_dict(), tokenizer, tmp_path, Card("_now"))
    assert headed(tmp_path) == {"_now"} and sorted(p.name for p in tmp_path.iterdir()) == sorted(TASKS)


def test_a_full_disk_is_named_whatever_the_library_raises(tmp_path, monkeypatch):
    model, tokenizer = fresh("bert")

    def full(*_):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(RoadError, match="the models cannot be written: No space left on device"):
        export(model, model.state_dict(), tokenizer, tmp_path)
    assert not list(tmp_path.iterdir())


def test_an_export_replaces_exported_models_only(tmp_path):
    (tmp_path / "qa").mkdir()
    (tmp_path / "qa" / "rows.jsonl").write_text("mine")
    model, tokenizer = fresh("bert")
    with pytest.raises(RoadError, match=r"qa: exists and is no exported model \(road_task\.json is missing\)"):
        export(model, model.state_dict(), tokenizer, tmp_path, Card("card"))
    assert [p.name for p in tmp_path.iterdir()] == ["qa"] and (tmp_path / "qa" / "rows.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "tokenizer.json", "road_task.json", "road_files.json"]
)
def test_a_file_that_changed_since_the_export_is_named(tmp_path, capsys, file):
    """By whoever reads the weights: a prediction, and a run that starts from them. It is the user's, so it is read."""
    model, tokenizer = fresh("electra", {"nli": TASKS["nli"]})
    (folder,) = export(model, model.state_dict(), tokenizer, tmp_path)
    (folder / "README.md").write_text("mine")

    def read() -> str:
        capsys.readouterr()
        Predictor.load(str(folder))
        spec = ModelSpec(name=str(folder))
        build_model(spec, {"nli": TASKS["nli"]}, load_tokenizer(spec), dropout=0.1, seed=1)
        return capsys.readouterr().err

    assert read() == ""
    data = (folder / file).read_bytes()
    changed = [data[:-1] + bytes([data[-1] ^ 1]) if file.endswith("tensors") else data + b"\n "]
    if file == "road_files.json":
        changed.append(data.replace(b"size", b"sizf", 1))
    for bytes_now in changed:
        (folder / file).write_bytes(bytes_now)
        said = read()
        assert said.count(f"{file}: ") == 2 and said.count("warning: ") == 2
    (folder / "road_files.json").unlink()
    assert read() == "", "any other model folder"


def size(folder) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_heads_that_share_an_encoder_are_loaded_as_any_other(architecture, tmp_path, capsys):
    """By transformers too: each head's logits are the whole folder's, and the encoder is there once."""
    model, tokenizer = fresh(architecture)
    whole = {path.name: path for path in export(model, model.state_dict(), tokenizer, tmp_path / "whole")}
    heads = export(model, model.state_dict(), tokenizer, tmp_path / "run" / "model", shared=True)
    assert sorted(path.name for path in (tmp_path / "run" / "model").iterdir()) == sorted(["encoder", *TASKS])
    assert size(tmp_path / "run") < 1.2 * size(whole["nli"])
    for head in heads:
        task, name = TASKS[head.name], head.name
        assert np.array_equal(logits(loaded(head), name, tokenizer), logits(loaded(whole[name]), name, tokenizer))
        plain = task.model.from_pretrained(head).state_dict()
        expected = task.model.from_pretrained(whole[name]).state_dict()
        assert plain.keys() == expected.keys() and all(torch.equal(plain[key], expected[key]) for key in plain)
    encoder = AutoModel.from_pretrained(tmp_path / "run" / "model" / "encoder").state_dict()
    assert all(torch.equal(encoder[key], value) for key, value in model.encoder.state_dict().items())
    again = build_model(ModelSpec(name=str(tmp_path / "run")), TASKS, tokenizer, dropout=0.1, seed=2)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in again.state_dict().items())
    assert "warning: " not in capsys.readouterr().err


def loaded(folder) -> Predictor:
    found = Predictor.load(str(folder))
    for parameter in found.model.parameters():
        parameter.data = parameter.data.clone()
    return found


def test_a_shared_encoder_is_never_another_runs(tmp_path, capsys):
    model, tokenizer = fresh("bert")
    export(model, model.state_dict(), tokenizer, tmp_path, shared=True)
    one, _ = fresh("bert", {"nli": TASKS["nli"]}, seed=2)
    with pytest.raises(
        RoadError, match=r"qa: reads its encoder from .*encoder, which would be another one: give another"
    ):
        export(one, one.state_dict(), tokenizer, tmp_path, shared=True)
    export(one, one.state_dict(), tokenizer, tmp_path)
    assert (tmp_path / "encoder").exists(), "other heads read it"
    export(model, model.state_dict(), tokenizer, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(TASKS), "nobody reads it"
    export(model, model.state_dict(), tokenizer, tmp_path, shared=True)
    weights = tmp_path / "encoder" / "model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    capsys.readouterr()
    Predictor.load(str(tmp_path / "nli"))
    assert "encoder/model.safetensors: has changed" in capsys.readouterr().err
    weights.unlink()
    with pytest.raises(RoadError, match=r"nli: the weights cannot be loaded: .*encoder/model\.safetensors"):
        Predictor.load(str(tmp_path / "nli"))
    shutil.rmtree(tmp_path / "encoder")
    (tmp_path / "encoder").mkdir()
    with pytest.raises(RoadError, match="encoder: exists and is no exported encoder: give another folder"):
        export(model, model.state_dict(), tokenizer, tmp_path, shared=True)
    named, _ = fresh("bert", {"encoder": TASKS["nli"]})
    with pytest.raises(RoadError, match="encoder: is a head's folder, where the shared encoder's would be"):
        export(named, named.state_dict(), tokenizer, tmp_path, shared=True)
    export(named, named.state_dict(), tokenizer, tmp_path / "run" / "model")
    assert [*trained_heads(str(tmp_path / "run"))] == ["encoder"]
