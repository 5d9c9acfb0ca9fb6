"""Tags of words: from CoNLL columns, lists and rows of datasets to a student of two teachers, against plain PyTorch."""

import json
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tags
import torch
from forked import run_forked
from runs import error_of, records, tiny_config
from safetensors.torch import load_file
from tags import LABELS
from test_export import ARCHITECTURES, fresh
from torch.nn import functional as F
from transformers import AutoModelForTokenClassification, AutoTokenizer, pipeline

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.config.file import load_config
from road_ds.config.road import DatasetSpec
from road_ds.data.batch import IGNORED, collate
from road_ds.data.features import load_features
from road_ds.data.passes import plan
from road_ds.data.readers import Example, read
from road_ds.data.rows import Rows
from road_ds.data.sources import read_part
from road_ds.data.words import joined, word_places
from road_ds.distillation.teach import teach
from road_ds.models.build import build_model
from road_ds.models.card import Card
from road_ds.models.configuration import load_tokenizer
from road_ds.models.ensemble import Ensemble
from road_ds.models.export import TASK_FILE, export, read_task
from road_ds.models.predictor import Predictor
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.registry import heads, task_from
from road_ds.tasks.token_classification import first_tokens

TASK = task_from({"type": "token_classification", "labels": LABELS}, "task")
EU = ("EU rejects", ("B-PER", "O"))
ROWS = [EU, ("Peter", ("B-PER",))]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(sample_path("tokenizer"))


# -------------------------------------------------------------------------------------------------------- rows


def given(folder: Path, name: str, text: str | bytes, **settings) -> list:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    spec = DatasetSpec(task="t", train=str(folder / name), **settings)
    return [(e.text_a, e.label) for e in read_part("given", "train", spec).examples]


@pytest.mark.parametrize(
    ("text", "settings"),
    [
        ("-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-PER\nrejects VBZ B-VP O\n\nPeter NNP B-NP B-PER\n", {}),
        ("-DOCSTART- O\nEU B-PER\nrejects O\n-DOCSTART- O\nPeter B-PER", {}),  # no blank line there, none at the end
        ("EU\tNNP\tB-PER\r\nrejects\tVBZ\tO\r\n\r\n\r\n\t\r\nPeter\tNNP\tB-PER\r\n\r\n", {}),
        ("\ufeffEU \tB-PER\nrejects  \t O \n \n\nPeter\tB-PER", {}),
        ("# sent_id = 1\n# text = EU\nEU B-PER\nrejects O\n\n# sent_id = 2\nPeter B-PER\n", {}),
        ("0 B-PER EU x\n1 O rejects x\n\n0 B-PER Peter x\n", {"columns": {"text_a": 2, "label": 1}}),
    ],
)
def test_columns_of_words_and_tags(text, settings, tmp_path):
    assert given(tmp_path, "rows.conll", text, **settings) == ROWS
    assert given(tmp_path, "eng.train", text, format="conll", **settings) == ROWS


def test_a_word_may_be_a_hash_or_hold_a_space(tmp_path):
    assert given(tmp_path, "a.conll", "# O\nb O\n\n#\tO\nNew York\tB-PER\n") == [
        ("# b", ("O", "O")),
        ("# New\u00a0York", ("O", "B-PER")),
    ]
    assert given(tmp_path, "b.conll", "alone\n\nwords\n", columns={"label": None}) == [("alone", None), ("words", None)]


def test_the_words_of_universal_dependencies_are_syntactic_words(tmp_path):
    """Comments without "=", a word that stands for two, one that is not written, a space inside a word."""
    lines = [
        "# newdoc", "# sent_id = a-1", "1-2\tdu\t_\t_\t_\t_\t_\t_\t_\t_", "1\tde\tde\tADP\tE\t_\t3\tcase\t_\t_",
        "2\tle\tle\tDET\tD\t_\t3\tdet\t_\t_", "2.1\tvu\tvoir\tVERB\t_\t_\t_\t_\t0:root\t_",
        "3\t10 000\t10 000\tNUM\tN\t_\t0\troot\t_\tSpaceAfter=No", "", "# newpar", "1\t#\t#\tSYM\tS\t_\t0\troot\t_\t_", "",
    ]  # fmt: skip
    text = "\n".join(lines) + "\n"
    first, second = "de le 10\u00a0000", "#"
    assert given(tmp_path, "a.conllu", text) == [(first, ("ADP", "DET", "NUM")), (second, ("SYM",))]
    assert given(tmp_path, "a.ud", text, format="conllu", columns={"label": 4}) == [(first, ("E", "D", "N")), (second, ("S",))]  # fmt: skip


@pytest.mark.parametrize("names", [("tokens", "tags"), ("words", "labels"), ("tokens", "ner_tags")])
def test_lists_of_words_and_tags(names, tmp_path):
    rows = [dict(zip(names, (text.split(), list(own)), strict=True)) for text, own in ROWS]
    text = "".join(json.dumps({"id": str(i), **row}) + "\n" for i, row in enumerate(rows))
    assert given(tmp_path, "rows.jsonl", text) == ROWS
    numbers = '{"tokens": ["EU", "rejects"], "ner_tags": [1, 0]}\n{"tokens": ["Peter"], "ner_tags": [1]}\n'
    assert given(tmp_path, "numbers.jsonl", numbers, label_map={"0": "O", "1": "B-PER"}) == ROWS
    cells = "text\ttags\nEU rejects\tB-PER O\nPeter\tB-PER\n"
    assert given(tmp_path, "cells.tsv", cells, label_separator=" ") == ROWS


def test_rows_of_a_hugging_face_data_set(tmp_path):
    from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

    features = Features({"tokens": List(Value("string")), "ner_tags": List(ClassLabel(names=LABELS)), "id": Value("string")})  # fmt: skip
    rows = {"tokens": [["EU", "rejects"], ["Peter"]], "ner_tags": [[1, 0], [1]], "id": ["x", "y"]}
    DatasetDict({"train": Dataset.from_dict(rows, features=features)}).save_to_disk(str(tmp_path / "saved"))
    found = read("train", DatasetSpec(task="t", format="disk", path=str(tmp_path / "saved"), train="train")).examples
    assert [(e.id, e.text_a, e.label) for e in found] == [("x", *ROWS[0]), ("y", *ROWS[1])]


@pytest.mark.parametrize(("name", "text", "settings", "said"), [
    ("r.conll", "EU B-PER\nrejects\n", {}, r"r.conll:2: found 1 column \('rejects'\), expected 2 as in the first line"),
    ("r.conll", "EU NN B-PER\n\nhe is O\nbad line O O\n", {}, r"r.conll:4: found 4 columns .*expected 3"),
    ("r.conll", "EU\tB-PER\nrejects\t\tO\n", {}, r"r.conll:2: found 3 columns"),
    ("r.conll", "EU\t\tO\n", {}, r"r.conll:1: column 1 is empty; expected a value in each column"),
    ("r.conll", "EU\nrejects\n", {}, r"r.conll:1: the row has no tags that the task .*set columns.label"),
    ("r.conll", "EU B-PER\n\nhe B-PERS\n", {}, r"r.conll:3: label 'B-PERS' is none of the task's labels"),
    ("r.conll", b"EU B-PER\ncaf\xe9 O\n", {}, r"r.conll:2: byte 0xE9 in .* is not UTF-8"),
    ("r.conll", "\n\n", {}, r"r.conll: the data set is empty"),
    ("r.conllu", "EU B-PER\n", {}, r"r.conllu:1: found 2 columns, expected the ten of CoNLL-U, parted by tabs"),
    ("r.conllu", "1\tEU\t_\tB-PER\n2\tEU\n", {}, r"r.conllu:2: found 2 columns"),
    ("r.jsonl", '{"tokens": ["a", "b"], "tags": ["O"]}', {}, r"r.jsonl:1: 1 tag for 2 words .*expected one for each word"),
    ("r.jsonl", '{"text": "a b", "tokens": ["a", "b", "c"], "tags": ["O", "O", "O"]}', {}, r"r.jsonl:1: 3 tags for 2 words .*set columns.text_a"),
    ("r.jsonl", '{"tokens": ["a", "b"]}', {}, r"r.jsonl:1: the row has no tags that the task"),
    ("r.jsonl", '{"tokens": ["a", 1], "tags": ["O", "O"]}', {}, r"r.jsonl:1: column 'tokens' .*expected text, or a list of words"),
    ("r.jsonl", '{"tokens": [], "tags": []}', {}, r"r.jsonl:1: column 'tokens' .*is empty"),
    ("r.jsonl", '{"tokens": ["a"], "tags": [null]}', {}, r"r.jsonl:1: label is None"),
    ("r.jsonl", '{"text": "a b", "tags": "O O"}', {}, r"r.jsonl:1: tags are 'O O'; expected a list .*set label_separator"),
    ("r.jsonl", '{"text_a": "a", "text_b": "b", "tags": ["O"]}', {}, r"r.jsonl:1: two texts, .*set columns.text_b to null"),
])  # fmt: skip
def test_rows_that_do_not_fit_are_named(name, text, settings, said, tmp_path, tokenizer):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    spec = DatasetSpec(task="t", train=str(tmp_path / name), **settings)
    with pytest.raises(RoadError, match=said):
        load_features("rows", "train", spec, TASK, tokenizer, tmp_path / "cache")


# ------------------------------------------------------------------------------------------------ words, tokens

PIECES = [
    "Nora",
    "Granger",
    "unmistakeably",
    "1991",
    "Ω",
    "naïve",
    "😀",
    "\u200b",
    "\u00a0",
    "don't",
    "x-y",
    "#",
    "中文",
]


def byte_level():
    """A tokenizer that takes the space before a word into it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["Nora Granger met unmistakeably"] * 9, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=special))  # fmt: skip
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", cls_token="<s>", eos_token="</s>", sep_token="</s>", pad_token="<pad>"
    )


@pytest.mark.parametrize("kind", ["wordpiece", "byte-level"])
def test_a_words_tag_lies_on_its_first_token(kind, tokenizer):
    """As transformers counts words where it is given a list; a word that is no token has none."""
    own, generator, spaced = tokenizer if kind == "wordpiece" else byte_level(), random.Random(0), 0
    for _ in range(100):
        words = generator.choices(PIECES, k=generator.randrange(1, 9))
        text = joined(words)
        places = word_places(text)
        assert [text[a:b] for a, b in places] == words
        encoded = own(text, return_offsets_mapping=True)
        found = first_tokens(places, np.array(encoded["offset_mapping"]))
        if kind == "wordpiece":
            numbers = own(words, is_split_into_words=True).word_ids()
            assert found.tolist() == [numbers.index(i) if i in numbers else -1 for i in range(len(words))]
        else:
            offsets = encoded["offset_mapping"]
            starts = [next(i for i, (start, end) in enumerate(offsets) if end > a and start < b) for a, b in places]
            assert found.tolist() == starts
            spaced += sum(offsets[i][0] < a for i, (a, _) in zip(starts, places, strict=True))
    assert spaced or kind == "wordpiece", "a token with the space before its word is the word's"


def test_lists_keep_their_number_of_words():
    assert joined(["a", "1 000", "", "b\tc"]) == "a 1\u00a0000 \u00a0 b\u00a0c"
    for words in (["a", "1 000", "", "b"], [""], ["\u200b"]):
        assert len(word_places(joined(words))) == len(words)
    assert word_places("  Ada \t lives\n") == [(2, 5), (8, 13)] and word_places(" ") == [(0, 1)]


LONG = Example("1", "Nora Granger \u200b met unmistakeably Ada", None, ("B-PER", "I-PER", "B-FOOD", "O", "O", "B-PER"), None, "row")  # fmt: skip


def test_words_that_were_not_read_count_as_O_and_are_counted(tokenizer):
    """Those cut off, and those that are no token: no row of logits, neither learned from nor told."""
    whole, cut = (TASK.model_copy(update={"max_length": n}) for n in (32, 8))
    (feature,) = whole.encode([LONG], tokenizer)
    assert [LABELS[label] for label in feature.labels] == ["B-PER", "I-PER", "O", "O", "B-PER"]
    assert feature.words[2] == -1 and (np.delete(feature.words, 2) > 0).all()
    (feature,) = cut.encode([LONG], tokenizer)
    assert len(feature.input_ids) == 8 and feature.words[-1] == -1
    read = int((feature.words >= 0).sum())
    assert 0 < read < 5 and len(feature.labels) == read
    logits = np.eye(len(LABELS))[feature.labels]  # right about all that is read
    (said,) = cut.predict([LONG], [feature], [logits])
    assert said.tags[:2] == ["B-PER", "I-PER"] and said.tags[2] is None and said.tags[-1] is None
    scores = cut.score([LONG], [said])
    assert scores["unread"] == 6 - read and scores["accuracy"] == pytest.approx(100 * 4 / 6)
    assert (scores["precision"], scores["recall"]) == (100, pytest.approx(100 / 3))
    assert cut.row_scores([LONG], [said]) == [pytest.approx(4 / 6)]
    (said,) = whole.predict([LONG], list(whole.encode([LONG], tokenizer)), [np.eye(5)[[1, 2, 0, 0, 1]]])
    assert whole.score([LONG], [said])["unread"] == 1
    assert "unread" not in whole.baseline([LONG])
    pos = task_from({"type": "token_classification", "labels": ["NN", "VB"]}, "pos")
    example = Example("1", "a \u200b", None, ("NN", "NN"), None, "row")
    said = pos.predict([example], list(pos.encode([example], tokenizer)), [np.array([[1.0, 0.0]])])
    assert pos.headline == "accuracy" and pos.score([example], said) == {"accuracy": 50, "unread": 1}
    assert TASK.headline == "f1" and pos.baseline([example]) == {"accuracy": 100}


def test_rows_without_tags_and_rows_of_which_no_word_is_read(tokenizer):
    source = MemorySet.encode("rows", [Example(str(i), text, None, None, None, "row") for i, text in enumerate(["\u200b", "Ada met"])], TASK, tokenizer)  # fmt: skip
    assert [f.labels.tolist() for f in source.features] == [[], [IGNORED] * 2] and source.rows.tolist() == [0, 2]
    said = TASK.predict(
        [Example("0", "\u200b", None, None, None, "row")], source.features[:1], [np.zeros((0, len(LABELS)))]
    )
    assert TASK.describe(said[0]) == {"words": ["\u200b"], "tags": [None], "spans": []}


# ------------------------------------------------------------------------------------------------------ models


@pytest.mark.parametrize("architecture", ["electra", "modernbert"])
def test_an_exported_head_is_a_token_classification_model_of_transformers(architecture, tmp_path):
    assert architecture in ARCHITECTURES
    model, tokenizer = fresh(architecture, {"ner": TASK})
    export(model, model.state_dict(), tokenizer, tmp_path, Card())
    folder, text = tmp_path / "ner", "Nora Granger met Ada , and unmistakeably the boss ."
    example = Example("1", text, None, None, None, "row")
    predictor = Predictor.load(str(folder))
    (said,) = predictor.predict([example])
    plain = AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert list(plain.config.id2label.values()) == LABELS
    with torch.no_grad():
        expected = plain(**tokenizer(text, return_tensors="pt")).logits[0]
        source = MemorySet.encode("rows", [example] * 2, TASK, tokenizer)
        found = model(collate(source, [0, 1], tokenizer.pad_token_id), "ner").logits.view(2, -1, len(LABELS))
    words = source[0].words
    assert torch.allclose(found[0], expected[words], atol=1e-5) and torch.equal(found[0], found[1])
    assert said.tags == [LABELS[i] for i in expected[words].argmax(1)]
    ask = pipeline("token-classification", model=str(folder), tokenizer=str(folder), aggregation_strategy="first", device="cpu")  # fmt: skip
    groups = [(g["entity_group"], g["start"], g["end"]) for g in ask(text) if g["entity_group"] != "O"]
    assert groups == [(s["label"], s["start"], s["end"]) for s in TASK.describe(said)["spans"]]
    (folder / TASK_FILE).unlink()
    assert read_task(folder).type == "token_classification" and read_task(folder).labels == LABELS


# -------------------------------------------------------------------------------------------------------- runs


def config_of(folder: Path, cache: Path, labels=LABELS, **road) -> dict:
    task = {"ner": {"type": "token_classification", "labels": labels, "max_length": 24}}
    train, dev = (str(folder / name) for name in ("eng.train", "eng.testa"))
    datasets = {"news": {"task": "ner", "format": "conll", "train": train, "dev": dev}}
    return tiny_config(tasks=task, datasets=datasets, passes=1, cache=str(cache), **road)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory, cache) -> list[str]:
    """Three runs on the sentences, two of them short, the second with its labels in another order."""
    folder = tmp_path_factory.mktemp("ner")
    tags.write(folder)
    for number, (labels, steps) in enumerate(((LABELS, 60), (LABELS[::-1], 10), (LABELS, 5))):
        config = config_of(folder, cache, labels, steps=steps, seed=number, output=str(folder / f"t{number}"))  # fmt: skip
        config["optimizer"] = {"type": "AdamW", "params": {"lr": 3e-3}}
        (folder / f"t{number}.json").write_text(json.dumps(config))
        assert train.main(["--deepspeed_config", str(folder / f"t{number}.json")]) == 0
    return [str(folder / f"t{number}") for number in range(3)]


def test_a_run_on_a_conll_file_learns_tags_and_reports_them(teachers, command):
    folder = Path(teachers[0])
    found = json.loads((folder / "results.json").read_text())["scores"]["news"]
    assert found["headline"] == "f1" and found["rows"] == 20 and found["baseline"]["f1"] == 0
    assert found["scores"]["f1"] > 60 and found["scores"]["accuracy"] > found["baseline"]["accuracy"] + 10
    lines = [json.loads(line) for line in (folder / "predictions" / "news.jsonl").read_text().splitlines()]
    assert len(lines) == 20 and all(len(p["prediction"]["words"]) == len(p["prediction"]["tags"]) for p in lines)
    code, out, _ = command("evaluate", teachers[0], "--data", folder.parent / "eng.testa", "--set", "format=conll", "--json")  # fmt: skip
    assert code == 0 and json.loads(out)["scores"] == pytest.approx(found["scores"])
    text = "The boss of Nora Granger is Ada ."
    code, out, _ = command("predict", teachers[0], "--text", text, "--csv")
    assert code == 0 and out.splitlines()[0] == "id,words,tags,spans"
    (folder.parent / "two.jsonl").write_text(json.dumps({"tokens": text.split()}) + "\n")
    code, out, _ = command("predict", teachers[0], "--file", folder.parent / "two.jsonl")
    said = json.loads(out)
    assert code == 0 and said["words"] == text.split() and {"label": "PER", "text": "Nora Granger", "start": 12, "end": 24} in said["spans"]  # fmt: skip


def test_check_counts_words_that_are_not_read(teachers, config_file, command, cache, tokenizer):
    config = config_of(Path(teachers[0]).parent, cache)
    config["road"]["tasks"]["ner"]["max_length"] = 8
    rows = [[word for word, _ in row] for row in tags.sentences(60)]
    read = [len(set(tokenizer(row, is_split_into_words=True, truncation=True, max_length=8).word_ids()) - {None}) for row in rows]  # fmt: skip
    cut = [len(row) - count for row, count in zip(rows, read, strict=True) if count < len(row)]
    code, out, _ = command("check", config_file(config))
    assert code == 0 and f"news train: {sum(cut)} words of {len(cut)} rows not read (behind max_length" in out
    assert "news dev: " in out


def plain_step(config_path: Path, folder: Path, teachers: list[str], weight: float, temperature: float, wrong: float):
    """The weights and losses of a plain loop: row by row, every word a row of the loss."""
    config, ds = load_config(config_path)
    tokenizer, tasks = load_tokenizer(config.model), heads(config)
    rows = Rows.load(config.datasets, tasks.by_dataset(), tokenizer, config.cache).train["news"]
    passes, steps = plan(config, ds["train_batch_size"], {"news": rows.lengths})
    initial = build_model(config.model, tasks, tokenizer, dropout=0.0, seed=config.seed)
    export(initial, initial.state_dict(), tokenizer, folder, Card())
    model = AutoModelForTokenClassification.from_pretrained(folder / "ner").train()
    asked = [AutoModelForTokenClassification.from_pretrained(f"{t}/model/ner").eval() for t in teachers]

    def words_of(model, row: int) -> torch.Tensor:
        example = rows.example(rows[row].example)
        encoded = tokenizer(example.text_a.split(), is_split_into_words=True, truncation=True, max_length=24, return_tensors="pt")  # fmt: skip
        numbers = encoded.word_ids()
        first = [numbers.index(i) for i in range(len(example.label)) if i in numbers]
        order = [model.config.label2id[label] for label in LABELS]
        return model(**encoded).logits[0, first][:, order]

    losses = []
    for step in range(steps):
        (taken,) = passes.draw(step)
        logits = torch.cat([words_of(model, row) for row in taken.rows])
        labels = [rows.example(rows[row].example).label for row in taken.rows]
        counts = [len(words_of(model, row)) for row in taken.rows]
        labels = torch.tensor([LABELS.index(tag) for own, n in zip(labels, counts, strict=True) for tag in own[:n]])
        with torch.no_grad():
            theirs = torch.stack([torch.cat([words_of(t, row) for row in taken.rows]) for t in asked])
        right = theirs.argmax(-1) == labels
        mistakes = (~right).sum(0)
        assert step or {0, 1, 2} == set(mistakes.tolist()), "all cases of Algorithm 2 are there"
        lifted = torch.where(right, (2 - wrong * mistakes) / (2 - mistakes).clamp(min=1), wrong)
        target = (torch.where(mistakes == 2, torch.ones(()), lifted)[..., None] * theirs).mean(0) / temperature
        soft = F.kl_div((logits / temperature).log_softmax(1), target.softmax(1), reduction="batchmean")
        total = (1 - weight) * F.cross_entropy(logits, labels) + weight * temperature**2 * soft
        gradients = torch.autograd.grad(total, list(model.parameters()))
        norm = torch.stack([g.norm() for g in gradients]).norm()
        with torch.no_grad():
            for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                parameter -= 0.1 * min(1.0, 1.0 / (float(norm) + 1e-6)) * gradient
        losses.append(total.item())
    return model.state_dict(), losses


def test_weighted_kd_of_words_is_that_of_plain_pytorch(teachers, config_file, tmp_path, cache):
    """On one process and on two, cached and online, packed and padded, whatever the micro-batch: the mean is over the words of a pass."""
    block = {"objective": "weighted_kd", "temperature": 3.0, "weight": 0.6, "wrong_scale": 0.5, "dtype": "float32"}
    block |= {"teachers": {"news": teachers[1:]}, "cache": str(tmp_path / "targets")}
    folder = Path(teachers[0]).parent
    expected = None
    for name, source, padding, micro, ranks in [
        ("a", "cached", "free", 24, 1), ("b", "cached", "grouped", 2, 1), ("c", "online", "free", 4, 1), ("d", "cached", "free", 4, 2),
    ]:  # fmt: skip
        config = config_of(folder, cache, steps=3, distill={**block, "source": source}, padding=padding, log_every=1)
        config |= {"train_micro_batch_size_per_gpu": micro, "zero_optimization": {"stage": 2 if ranks == 2 else 0}}
        path = config_file(config, name)
        if expected is None:
            teach(str(path), [])
            expected, losses = plain_step(path, tmp_path / "initial", teachers[1:], 0.6, 3.0, 0.5)
        if ranks == 1:
            assert train.main(["--deepspeed_config", str(path)]) == 0
        else:
            done = run_forked("road_ds/train.py", "--deepspeed_config", path, ranks=2)
            assert done.returncode == 0, done.stderr[-3000:]
        lines = [line for line in records(tmp_path / name) if "loss" in line]
        assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
        line = lines[0]
        assert line["loss"] == pytest.approx(0.4 * line["hard/news"] + 0.6 * 9 * line["soft/news"], rel=1e-5)
        found = load_file(tmp_path / name / "model" / "ner" / "model.safetensors")
        for key, value in expected.items():
            assert float((found[key] - value).abs().max()) < 1e-6, f"{name}: {key}"


def test_a_teacher_with_another_tokenizer_teaches_the_words_it_reads(tokenizer):
    """Word by word; a student's word that it does not read is an error that names the row."""
    other = byte_level()
    own, theirs = (next(TASK.encode([LONG], t)) for t in (tokenizer, other))
    logits = np.arange(len(theirs.labels))[:, None].repeat(2, 1)
    assert TASK.aligned(own, theirs, logits)[:, 0].tolist() == [0, 1, 3, 4, 5], (
        "the third word is a token for one of the two"
    )
    for length, word in ((32, 3), (10, 6)):  # no token to it; behind the end
        example = LONG if length == 32 else replace(LONG, text_a=LONG.text_a.replace("\u200b", "is"))
        cut = TASK.model_copy(update={"max_length": length})
        own, theirs = (next(cut.encode([example], t)) for t in (tokenizer, other))
        with pytest.raises(
            RoadError, match=rf"no token for the word {word}, which is read here .*raise the task's max"
        ):
            cut.aligned(theirs, own, np.zeros((len(own.labels), 2)))


def test_an_ensemble_matches_words_and_labels(teachers):
    examples = [Example(str(i), " ".join(w for w, _ in row), None, None, None, "row") for i, row in enumerate(tags.sentences(5))]  # fmt: skip
    ensemble = Ensemble.of([f"{name}/model/ner" for name in teachers[:2]])
    _, mean = ensemble.logits(examples)
    alone = [Predictor.load(f"{name}/model/ner").logits(examples)[1] for name in teachers[:2]]
    for both, first, second in zip(mean, *alone, strict=True):
        assert np.allclose(both, (first + second[:, ::-1]) / 2, atol=1e-5)


def test_soft_targets_of_other_words_are_refused(teachers, config_file, tmp_path, cache, capsys):
    block = {"objective": "kd", "teachers": {"news": teachers[:1]}, "cache": str(tmp_path / "targets")}
    config = config_of(Path(teachers[0]).parent, cache, steps=1, distill=block)
    teach(str(config_file(config, "a")), [])
    config["road"]["tasks"]["ner"]["max_length"] = 20
    config["road"]["output"] = str(tmp_path / "b")
    assert train.main(["--deepspeed_config", str(config_file(config, "b"))]) == 2
    assert (
        "were made from another lengths ({'max_length': 24} there, {'max_length': 20} now)" in capsys.readouterr().err
    )


def test_a_word_for_it_from_elsewhere_leads_to_the_task(config_file, teachers, cache, command):
    config = config_of(Path(teachers[0]).parent, cache)
    config["road"]["tasks"]["ner"]["type"] = "ner"
    assert "here it is token_classification" in error_of(command("check", config_file(config)))


def test_generated_rows_behind_a_batch_have_its_words(tokenizer):
    """Row by row the same places, so that halves of the logits are what was written and what was generated."""
    source = MemorySet.encode("rows", [Example(str(i), text, None, None, None, "row") for i, text in enumerate(["Ada met", "the boss met Nora Granger"])], TASK, tokenizer)  # fmt: skip
    batch = collate(source, [0, 1], 0)
    both = batch.joined(replace(batch, input_ids=batch.input_ids + 1))
    logits = torch.randn(4, batch.input_ids.shape[1], len(LABELS))
    first, second = TASK.outputs(Answered(logits), both).halves()
    assert torch.equal(first.logits, TASK.outputs(Answered(logits[:2]), batch).logits) and len(first.logits) == 7
    assert torch.equal(second.logits, TASK.outputs(Answered(logits[2:]), batch).logits)


class Answered:
    def __init__(self, logits):
        self.logits = logits


@pytest.mark.parametrize(("name", "files"), [
    ("conll2003", ["eng.train", "eng.testa"]), ("conll2003", ["train.txt", "valid.txt"]), ("wnut_17", ["wnut17train.conll", "emerging.dev.conll"]),
])  # fmt: skip
def test_data_sets_by_name_from_their_publishers_files(name, files, tmp_path):
    for number, file in enumerate(files):
        (tmp_path / file).write_text("EU\tB-location\nrejects\tO\n\n" * (number + 1) if name == "wnut_17" else tags.conll(tags.sentences(number + 1)))  # fmt: skip
    for number, part in enumerate(("train", "dev")):
        spec = DatasetSpec(task="t", catalog=name, train="train", dev="dev", path=str(tmp_path))
        found = read_part(name, part, spec).examples
        assert len(found) == number + 1 and all(len(e.label) == len(e.text_a.split()) for e in found)
