"""Multiple choice: from SWAG's and ARC's files to a student of two teachers, against plain PyTorch, question by question."""

import json
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import error_of, records, tiny_config
from safetensors.torch import load_file
from test_export import ARCHITECTURES, TASKS, fresh
from torch.nn import functional as F
from transformers import AutoModelForMultipleChoice, AutoTokenizer

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.common.ranks import Ranks
from road_ds.config.file import load_config
from road_ds.config.road import DatasetSpec
from road_ds.data.batch import Batch
from road_ds.data.batches import Padding, assemble
from road_ds.data.choices import Choice
from road_ds.data.features import load_features
from road_ds.data.passes import Passes, plan
from road_ds.data.readers import Example, read
from road_ds.data.rows import Rows
from road_ds.distillation.teach import teach
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import TASK_FILE, export, read_task
from road_ds.models.predictor import Predictor
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.registry import heads, task_from

TASK = task_from({"type": "multiple_choice", "max_length": 32}, "task")
SWAG = """,video-id,fold-ind,startphrase,sent1,sent2,gold-source,ending0,ending1,ending2,ending3,label
0,v,1,The mill is old. She,The mill is old.,She,gold,"sees a letter, then Ada.",turns.,walks to Oslo.,finds the doctor.,2
1,v,2,Ada lives in Oslo. He,Ada lives in Oslo.,He,gold,turns.,sees a mill.,is old.,finds a letter.,0
"""
ARC = [
    {"id": "q1", "answerKey": "C", "question": {"stem": "Where is the mill?", "choices": [
        {"text": "In Oslo .", "label": "A"}, {"text": "Old .", "label": "B"}, {"text": "The doctor .", "label": "C"}]}},
    {"id": "q2", "answerKey": "1", "question": {"stem": "Who found a letter?", "choices": [
        {"text": "Ada .", "label": "1"}, {"text": "A mill , the old one .", "label": "2"}]}},
]  # fmt: skip


def jsonl(rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def seen(file: Path, **settings) -> list:
    found = read(str(file), DatasetSpec(task="t", train=str(file), **settings)).examples
    return [(e.text_a, e.text_b, e.label, [(c.key, c.text) for c in e.choices]) for e in found]


def test_swags_file_is_read_as_it_comes(tmp_path):
    (tmp_path / "train.csv").write_text(SWAG)
    first, second = seen(tmp_path / "train.csv")
    endings = ["sees a letter, then Ada.", "turns.", "walks to Oslo.", "finds the doctor."]
    assert first == ("The mill is old.", "She", "2", [(str(i), text) for i, text in enumerate(endings)])
    assert second[2] == "0"


def test_arcs_files_and_the_rows_of_datasets_are_read_alike(tmp_path):
    (tmp_path / "arc.jsonl").write_text(jsonl(ARC))
    flat = [
        {
            "id": row["id"], "question": row["question"]["stem"], "answerKey": row["answerKey"],
            "choices": {name: [c[name] for c in row["question"]["choices"]] for name in ("text", "label")},
        }
        for row in ARC
    ]  # fmt: skip
    (tmp_path / "flat.jsonl").write_text(jsonl(flat))
    expected = [
        ("Where is the mill?", None, "C", [("A", "In Oslo ."), ("B", "Old ."), ("C", "The doctor .")]),
        ("Who found a letter?", None, "1", [("1", "Ada ."), ("2", "A mill , the old one .")]),
    ]
    assert seen(tmp_path / "arc.jsonl", shape="arc") == seen(tmp_path / "flat.jsonl") == expected
    assert seen(tmp_path / "flat.jsonl", shape="arc") == expected


def test_columns_name_choices_where_they_are_not_well_known(tmp_path):
    (tmp_path / "rows.jsonl").write_text(jsonl([{"goal": "Ada", "sol1": "a", "sol2": "b", "label": 1}]))
    columns = {"text_a": "goal", "choices": ["sol1", "sol2"]}
    assert seen(tmp_path / "rows.jsonl", columns=columns) == [("Ada", None, "1", [("0", "a"), ("1", "b")])]
    (tmp_path / "rows.jsonl").write_text(jsonl([{"ctx": "Ada", "endings": ["a", "b", "c"], "label": "2"}]))
    assert seen(tmp_path / "rows.jsonl")[0][3] == [("0", "a"), ("1", "b"), ("2", "c")]


@pytest.mark.parametrize(("row", "said"), [
    ({"question": "q", "choices": ["a", "b"], "label": 2}, r"rows.jsonl:1: label '2' is none of the row's choices \(0, 1\)"),
    ({"question": "q", "choices": ["a"], "label": 0}, r"choices are \['a'\]; expected two or more"),
    ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "A"]}, "label": "A"}, "each with a label of its own"),
    ({"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "label": "A"}, "each with a label of its own"),
    ({"question": "q", "choices": ["a", ""], "label": 0}, "choice '' is no text"),
    ({"text": "q", "choices": "a, b", "label": 0}, "the row has no choices"),
    ({"question": "q", "choices": [1, 2], "label": 0}, "choice 1 is no text"),
    ({"text": "q", "label": 0}, r"the row has no choices .*set columns.choices"),
    ({"question": "q", "choices": ["a", "b"]}, r"the row has no label .*set columns.label"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_named(row, said, tmp_path):
    (tmp_path / "rows.jsonl").write_text(jsonl([row]))
    spec = DatasetSpec(task="t", train=str(tmp_path / "rows.jsonl"))
    with pytest.raises(RoadError, match=said):
        load_features("rows", "train", spec, TASK, sample_tokenizer(), tmp_path / "cache")


def sample_tokenizer():
    return AutoTokenizer.from_pretrained(sample_path("tokenizer"))


def questions(counts=(3, 2, 4), label: str | None = "1") -> list[Example]:
    words = ["Ada .", "the old mill of Oslo .", "a letter", "the doctor found it ."]
    return [
        Example(str(n), "Where is it ?", "He" if n % 2 else None, label, None, "row", tuple(Choice(str(i), words[(n + i) % 4]) for i in range(count)))
        for n, count in enumerate(counts)
    ]  # fmt: skip


def test_a_feature_holds_a_question_and_comes_back_from_the_cache(tmp_path):
    (tmp_path / "rows.csv").write_text(SWAG)
    tokenizer = sample_tokenizer()
    source = load_features(
        "rows", "train", DatasetSpec(task="t", train=str(tmp_path / "rows.csv")), TASK, tokenizer, tmp_path
    )
    assert len(source) == 2 and source.sequences[:, 1].tolist() == [4, 4]
    example, feature = source.example(0), source[0]
    assert example.choices[1] == Choice("1", "turns.") and feature.labels.tolist() == [2]
    parts = [ids.tolist() for ids, _ in feature.parts()]
    assert parts == [tokenizer("The mill is old.", f"She {c.text}")["input_ids"] for c in example.choices]
    assert source.sequences[0, 0] == max(map(len, parts)) and source.lengths[0] == sum(map(len, parts))


@pytest.mark.parametrize("architecture", ["electra", "bert", "roberta", "deberta-v2", "modernbert"])
def test_an_exported_head_gives_the_same_logits_to_transformers(architecture, tmp_path):
    assert architecture in ARCHITECTURES
    model, tokenizer = fresh(architecture, {"choice": TASK, "nli": TASKS["nli"]})
    export(model, model.state_dict(), tokenizer, tmp_path)
    plain = AutoModelForMultipleChoice.from_pretrained(tmp_path / "choice").eval()
    examples = questions()
    source = MemorySet.encode("rows", examples, TASK, tokenizer)
    padding = Padding("grouped", tokenizer.pad_token_id, {"rows": 32})
    with torch.no_grad():
        found = model(padding.collate(source, np.arange(3)), "choice")
        for row, example in enumerate(examples):
            second = [" ".join(filter(None, (example.text_b, choice.text))) for choice in example.choices]
            inputs = tokenizer([example.text_a] * len(second), second, return_tensors="pt", padding=True)
            expected = plain(**{name: tensor[None] for name, tensor in inputs.items()}).logits[0]
            assert int(found.lengths[row]) == len(second)
            assert torch.allclose(found.logits[row, : len(second)], expected, atol=1e-5)
            said = Predictor.load(str(tmp_path / "choice")).predict([example])[0]
            assert list(said.probabilities.values()) == pytest.approx(expected.softmax(0).tolist(), abs=1e-5)
            assert said.text == example.choices[int(expected.argmax())].text
    (tmp_path / "choice" / TASK_FILE).unlink()
    assert read_task(tmp_path / "choice").type == "multiple_choice"


def test_packing_and_padding_keep_the_choices_of_a_question_together():
    model, tokenizer = fresh("electra", {"choice": TASK})
    source = MemorySet.encode("rows", questions((3, 2, 4, 2)), TASK, tokenizer)
    rows, limits = np.array([3, 0, 2, 1]), {"rows": 32}
    assert model.use_packing() == ""
    found = {}
    for mode in ("free", "grouped", "fixed"):
        padding = Padding(mode, tokenizer.pad_token_id, limits)
        batch = padding.collate(source, rows)
        lengths = np.array([len(source[row].input_ids) for row in rows])[None]
        parts = [source[row].sequences for row in rows]
        shapes = np.array([[(max(own), len(own)) for own in parts]])
        computed = padding.computed("rows", lengths, shapes)
        assert computed == (sum(batch.tokens) if mode == "free" else batch.input_ids.numel())
        assert batch.sequences == (2, 3, 4, 2) and len(batch.input_ids) == 11 and len(set(batch.keys())) == 11
        with torch.no_grad():
            found[mode] = model(batch, "choice")
    for mode in ("grouped", "fixed"):
        for row, count in enumerate((2, 3, 4, 2)):
            assert torch.allclose(found[mode].logits[row, :count], found["free"].logits[row, :count], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> Path:
    """Questions with two to four choices, the right one of which has the question's last word in it."""
    words, lines = ["mill", "doctor", "letter", "old"], []
    for n in range(64):
        count, word = 2 + n % 3, words[n % 4]
        right = n // 3 % count
        texts = [f"the {word} ." if i == right else f"a {words[(n + 1 + i) % 4]}" for i in range(count)]
        texts = [text if i == right or word not in text else "Ada" for i, text in enumerate(texts)]
        keys = [*"ABCD"][:count]
        lines.append(
            {
                "id": str(n),
                "question": f"Where is the {word}",
                "choices": {"text": texts, "label": keys},
                "answerKey": keys[right],
            }
        )
    file = tmp_path_factory.mktemp("choices") / "rows.jsonl"
    file.write_text(jsonl(lines))
    return file


def choice_config(rows: Path, cache: Path, **road) -> dict:
    tasks = {"choice": {"type": "multiple_choice", "max_length": 32}}
    datasets = {"asked": {"task": "choice", "train": str(rows), "dev": 0.25}}
    config = tiny_config(tasks=tasks, datasets=datasets, passes=1, cache=str(cache), **road)
    return {**config, "train_micro_batch_size_per_gpu": 12}


@pytest.fixture(scope="module")
def teachers(rows, cache) -> list[str]:
    for seed, steps, rate in ((0, 60, 3e-3), (1, 1, 1e-6)):
        config = choice_config(rows, cache, steps=steps, seed=seed, output=str(rows.parent / f"t{seed}"))
        config["optimizer"] = {"type": "AdamW", "params": {"lr": rate}}
        (rows.parent / f"t{seed}.json").write_text(json.dumps(config))
        assert train.main(["--deepspeed_config", str(rows.parent / f"t{seed}.json")]) == 0
    return [str(rows.parent / f"t{seed}") for seed in (0, 1)]


def test_a_run_learns_and_is_asked(teachers, rows, command):
    found = json.loads((Path(teachers[0]) / "results.json").read_text())["scores"]["asked"]
    assert found["headline"] == "accuracy" and found["scores"]["accuracy"] > found["baseline"]["accuracy"] + 20
    code, out, _ = command("predict", f"{teachers[0]}/model/choice", "--file", rows)
    first = json.loads(out.splitlines()[0])
    assert code == 0 and first["choice"] in ("A", "B") and {"A", "B", "text", "id"} <= first.keys()
    said = error_of(command("predict", f"{teachers[0]}/model/choice", "--text", "Where is it"))
    assert "--text: the question has no choices: expected rows of a file" in said
    code, out, _ = command("evaluate", f"{teachers[0]}/model/choice", "--data", rows)
    assert code == 0 and "accuracy" in out


def test_its_pages_show_questions_and_scores(teachers, tmp_path, command):
    """report.html of a run, and compare's page of two."""
    scores = [json.loads((Path(one) / "results.json").read_text())["scores"]["asked"]["scores"] for one in teachers]
    report = (Path(teachers[0]) / "report.html").read_text()
    assert "multiple_choice, head choice" in report and "Where is the mill" in report and "A: the mill ." in report
    code, out, err = command("compare", *teachers, "--html", tmp_path / "page.html")
    assert code == 0 and "asked" in out, err
    page = (tmp_path / "page.html").read_text()
    assert "scores and curves of asked" in page and "ignoring the text" in page
    assert all(f"{of['accuracy']:.2f}" in page for of in scores)


@pytest.mark.parametrize(("name", "source"), [("kd", "online"), ("weighted_kd", "cached")])
def test_the_first_step_of_a_student_is_that_of_plain_pytorch(name, source, teachers, rows, tmp_path, cache):
    block = {"objective": name, "source": source, "temperature": 3.0, "weight": 0.6, "dtype": "float32"}
    block |= {"teachers": {"asked": teachers}, "cache": str(tmp_path / "targets")}
    config = choice_config(rows, cache, steps=1, seed=5, distill=block, output=str(tmp_path / "run"), log_every=1)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(config))
    if source == "cached":
        teach(str(file), [])
    assert train.main(["--deepspeed_config", str(file)]) == 0
    line = next(line for line in records(tmp_path / "run") if "loss" in line)

    road, _ = load_config(file)
    tokenizer, tasks = load_tokenizer(road.model), heads(road)
    given = Rows.load(road.datasets, tasks.by_dataset(), tokenizer, cache).train["asked"]
    passes, _ = plan(road, config["train_batch_size"], {"asked": given.lengths})
    initial = build_model(road.model, tasks, tokenizer, dropout=0.0, seed=5)
    export(initial, initial.state_dict(), tokenizer, tmp_path / "initial")
    student = AutoModelForMultipleChoice.from_pretrained(tmp_path / "initial" / "choice")
    asked = [AutoModelForMultipleChoice.from_pretrained(f"{one}/model/choice").eval() for one in teachers]
    losses, disagreed = [], 0
    for row in passes.draw(0)[0].rows:
        example = given.example(given[row].example)
        keys = [choice.key for choice in example.choices]
        texts = [choice.text for choice in example.choices]
        inputs = tokenizer([example.text_a] * len(texts), texts, return_tensors="pt", padding=True)
        inputs = {key: value[None] for key, value in inputs.items()}
        own, label = student(**inputs).logits[0], keys.index(example.label)
        with torch.no_grad():
            theirs = torch.stack([one(**inputs).logits[0] for one in asked])
        right = theirs.argmax(1) == label
        target = theirs.mean(0)
        if name == "weighted_kd" and right.sum() == 1:
            target = torch.stack([t * (1.25 if r else 0.75) for t, r in zip(theirs, right, strict=True)]).mean(0)
            disagreed += 1
        soft = F.kl_div((own / 3).log_softmax(0), (target / 3).softmax(0), reduction="sum")
        losses.append(0.4 * F.cross_entropy(own[None], torch.tensor([label])) + 0.6 * 9 * soft)
    loss = torch.stack(losses).mean()
    loss.backward()
    norm = torch.stack([p.grad.norm() for p in student.parameters() if p.grad is not None]).norm()
    assert name == "kd" or disagreed, "teachers that agree prove nothing"
    assert line["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert line["grad_norm"] == pytest.approx(norm.item(), rel=1e-4)


def test_check_plans_it_and_says_what_is_not_there(teachers, rows, tmp_path, cache, command):
    config = choice_config(rows, cache, steps=1, output=str(tmp_path / "run"))
    (tmp_path / "run.json").write_text(json.dumps(config))
    code, out, _ = command("check", tmp_path / "run.json")
    assert code == 0 and "asked" in out
    block = {"objective": "kd", "teachers": {"asked": teachers}, "layers": {"method": "pkd"}}
    config["road"]["distill"] = block
    (tmp_path / "run.json").write_text(json.dumps(config))
    said = error_of(command("check", tmp_path / "run.json"))
    assert "road.distill.layers: is not there for multiple_choice (asked): leave it out" in said


def test_questions_are_dealt_whole_to_ranks_and_micro_batches(rows, cache):
    """Each question once, with the choices that it has beside it."""
    source = load_features("asked", "train", DatasetSpec(task="t", train=str(rows)), TASK, sample_tokenizer(), cache)
    passes = Passes({"asked": source.lengths}, np.ones(1), passes=1, rows=24, seed=0, window=0)
    for mode in ("free", "grouped"):
        padding, found = Padding(mode, 0, {"asked": 32}), []
        for rank in range(2):
            ranks = Ranks(rank=rank, world_size=2, local_rank=0, device=torch.device("cpu"), control=None)
            ((taken, batches),) = assemble(passes, {"asked": source}, padding, ranks, 3, range(1))
            assert len(batches) == 4 and {len(batch.labels) for batch in batches} == {3}
            found += [
                (keys, label)
                for batch in batches
                for keys, label in zip(whole(batch), batch.labels.tolist(), strict=True)
            ]
        features = [source[row] for row in taken[0].rows]
        assert sorted(found) == sorted(([p.tolist() for p, _ in f.parts()], int(f.labels[0])) for f in features)


def whole(batch: Batch) -> list[list[list[int]]]:
    """The token ids of a batch, by question and choice."""
    mask = batch.attention_mask
    if mask is None or batch.input_ids.dim() == 1:
        sequences = [part.tolist() for part in batch.input_ids.split([*batch.tokens])]
    else:
        sequences = [ids[kept.bool()].tolist() for ids, kept in zip(batch.input_ids, mask, strict=True)]
    bounds = [0, *accumulate(batch.sequences)]
    return [sequences[begin:end] for begin, end in pairwise(bounds)]


def test_two_ranks_and_small_micro_batches_learn_what_one_learns(teachers, rows, config_file, tmp_path, cache):
    """Weighted KD over three steps: the same losses and weights, packed or padded, from soft targets on disk or asked for."""
    block = {"objective": "weighted_kd", "temperature": 3.0, "weight": 0.6, "dtype": "float32"}
    block |= {"teachers": {"asked": teachers}, "cache": str(tmp_path / "targets")}
    found = {}
    for name, source, padding, micro, ranks in [
        ("whole", "cached", "free", 24, 1), ("small", "online", "grouped", 1, 1), ("both", "cached", "free", 3, 2),
    ]:  # fmt: skip
        config = choice_config(rows, cache, steps=3, distill={**block, "source": source}, padding=padding, log_every=1)
        config |= {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": 2 if ranks == 2 else 0}}
        path = config_file(config, name)
        if not found:
            teach(str(path), [])
        if ranks == 1:
            assert train.main(["--deepspeed_config", str(path)]) == 0
        else:
            done = run_forked("road_ds/train.py", "--deepspeed_config", path, ranks=2)
            assert done.returncode == 0, done.stderr[-3000:]
        losses = [line["loss"] for line in records(tmp_path / name) if "loss" in line]
        found[name] = losses, load_file(tmp_path / name / "model" / "choice" / "model.safetensors")
    losses, weights = found["whole"]
    assert len(losses) == 3 and losses[0] != losses[2]
    for name in ("small", "both"):
        assert found[name][0] == pytest.approx(losses, abs=1e-5)
        for key, value in weights.items():
            assert float((found[name][1][key] - value).abs().max()) < 1e-6, f"{name}: {key}"
