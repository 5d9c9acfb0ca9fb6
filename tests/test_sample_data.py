"""The embedded sample is what its script writes, sound in every row, and its dev rows are new."""

import csv
import filecmp
import importlib.util
import json
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer

FOLDER = Path(__file__).resolve().parent.parent / "road_ds" / "data" / "sample_data"
SPAN_QA = ("places", "people")
CLASSIFICATION = {
    "inference": {"entailment", "neutral", "contradiction"},
    "reviews": {"1", "2", "3", "4", "5"},
    "paraphrase": {"yes", "no"},
}


def load_script():
    spec = importlib.util.spec_from_file_location("sample_data_make", FOLDER / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def questions(name: str, split: str) -> list[tuple[str, dict]]:
    """(context, question with its answers) of every question."""
    document = json.loads((FOLDER / f"{name}.{split}.json").read_text(encoding="utf-8"))
    return [(page["context"], qa) for entry in document["data"] for page in entry["paragraphs"] for qa in page["qas"]]


def rows(name: str, split: str) -> list[tuple[str, ...]]:
    """The texts of every row, its label last."""
    (path,) = FOLDER.glob(f"{name}.{split}.*")
    with path.open(encoding="utf-8", newline="") as lines:
        if path.suffix == ".jsonl":
            return [tuple(json.loads(line).values()) for line in lines]
        return [tuple(row) for row in csv.reader(lines, delimiter="\t" if path.suffix == ".tsv" else ",")][1:]


def texts(name: str, split: str) -> list[tuple[str, ...]]:
    """What a model reads of every row."""
    if name in SPAN_QA:
        return [(qa["question"], context) for context, qa in questions(name, split)]
    return [row[:-1] for row in rows(name, split)]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(FOLDER / "tokenizer")


def test_script_writes_the_same_bytes(tmp_path):
    load_script().main(tmp_path)
    made = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    kept = sorted(
        path.relative_to(FOLDER)
        for path in FOLDER.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".md", ".pyc"}
    )
    assert made == kept
    assert filecmp.cmpfiles(FOLDER, tmp_path, made, shallow=False)[0] == made


def test_folder_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 3_000_000


@pytest.mark.parametrize("split", ["train", "dev"])
@pytest.mark.parametrize("name", SPAN_QA)
def test_answers_are_where_they_say(name, split):
    asked = questions(name, split)
    assert len({qa["id"] for _, qa in asked}) == len(asked)
    for context, qa in asked:
        assert qa["is_impossible"] == (not qa["answers"])
        for answer in qa["answers"]:
            start = answer["answer_start"]
            assert context[start : start + len(answer["text"])] == answer["text"]
    without = sum(qa["is_impossible"] for _, qa in asked) / len(asked)
    assert 0.28 < without < 0.40
    assert any(not context.isascii() for context, _ in asked)
    assert any(ord(letter) > 0xFFFF for context, _ in asked for letter in context)


@pytest.mark.parametrize("name", CLASSIFICATION)
def test_labels_are_the_declared_ones(name):
    for split, count in (("train", 3000), ("dev", 200)):
        labels = [row[-1] for row in rows(name, split)]
        assert len(labels) == count
        assert set(labels) == CLASSIFICATION[name]
        assert max(labels.count(label) for label in set(labels)) / count < 0.6


@pytest.mark.parametrize("name", [*SPAN_QA, *CLASSIFICATION])
def test_dev_rows_are_new(name):
    train, dev = texts(name, "train"), texts(name, "dev")
    assert len(set(train)) == len(train)
    assert len(set(dev)) == len(dev)
    assert not set(train) & set(dev)


@pytest.mark.parametrize("name", SPAN_QA)
def test_dev_asks_about_unknown_names(name):
    def titles(split):
        return {entry["title"] for entry in json.loads((FOLDER / f"{name}.{split}.json").read_text("utf-8"))["data"]}

    assert not titles("train") & titles("dev")
    assert not {context for context, _ in questions(name, "train")} & {context for context, _ in questions(name, "dev")}


def test_hypothesis_alone_says_nothing():
    """The commonest label of each hypothesis, learnt from train rows, is hardly better than chance on dev rows."""
    seen: dict[str, list[str]] = {}
    for _, hypothesis, label in rows("inference", "train"):
        seen.setdefault(hypothesis.partition(" ")[2], []).append(label)
    right = 0
    for _, hypothesis, label in rows("inference", "dev"):
        labels = seen.get(hypothesis.partition(" ")[2], ["entailment"])
        right += max(sorted(set(labels)), key=labels.count) == label
    assert right / 200 < 0.45


def test_tokenizer_is_fast_and_knows_the_rows(tokenizer):
    assert tokenizer.is_fast
    assert len(tokenizer) <= 1500
    assert tokenizer.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocabulary = (FOLDER / "tokenizer" / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    assert tokenizer.convert_ids_to_tokens(range(len(tokenizer))) == vocabulary
    for name in (*SPAN_QA, *CLASSIFICATION):
        for split in ("train", "dev"):
            for encoded in tokenizer([" ".join(row) for row in texts(name, split)])["input_ids"]:
                assert tokenizer.unk_token_id not in encoded


def test_tokenizer_spells_unseen_words(tokenizer):
    assert tokenizer.tokenize("Zyzzyva") == ["z", *(f"##{letter}" for letter in "yzzyva")]
    pair = tokenizer("Who?", "Zoë 🎈 sang", return_offsets_mapping=True)
    assert pair["token_type_ids"] == [0, 0, 0, 0, *[1] * (len(pair["input_ids"]) - 4)]
    assert ("Zoë 🎈 sang"[slice(*pair["offset_mapping"][5])]) == "🎈"


@pytest.mark.parametrize("name", SPAN_QA)
def test_some_contexts_need_windows(name, tokenizer):
    for split in ("train", "dev"):
        lengths = [len(encoded) for encoded in tokenizer([list(row) for row in texts(name, split)])["input_ids"]]
        assert any(length > 128 for length in lengths)
        assert sum(length > 128 for length in lengths) / len(lengths) < 0.1


# ------------------------------------------------------------------------------------------------------------ text


def documents(split: str) -> list[list[str]]:
    content = (FOLDER / f"text.{split}.txt").read_text(encoding="utf-8")
    return [document.split("\n") for document in content.removesuffix("\n").split("\n\n")]


def test_text_is_small_new_and_of_known_words(tokenizer):
    train, dev = documents("train"), documents("dev")
    assert (len(train), len(dev)) == (1350, 80)
    assert sum((FOLDER / f"text.{split}.txt").stat().st_size for split in ("train", "dev")) < 300_000
    assert len({tuple(document) for document in train + dev}) == len(train + dev), "no document stands there twice"
    ids = [token for document in train + dev for line in tokenizer(document)["input_ids"] for token in line[1:-1]]
    assert tokenizer.unk_token_id not in ids
    spelled = [
        token for token in ids if token > 40 and len(tokenizer.convert_ids_to_tokens(token).removeprefix("##")) == 1
    ]
    assert len(spelled) < 0.06 * len(ids), "words of the rows are pieces"


def test_no_text_and_no_fact_of_a_dev_row_stands_in_the_text():
    make = load_script()
    lines = [line for split in ("train", "dev") for document in documents(split) for line in document]
    whole = "\n".join(lines)
    dev = [row for name in (*SPAN_QA, *CLASSIFICATION, "inference_towns") for row in texts(name, "dev")]
    assert len(dev) == 6 * 200
    assert not [part for row in dev for part in row if part in whole]
    held = make.World("any", "dev")
    assert not [name for name in (*held.people, *held.towns) if name in whole]
    last_names = {*make.LAST_NAMES}
    for first in held.first_names:  # only a part of others' names
        assert {rest.split()[0].rstrip(".!,'") for rest in re.split(rf"\b{first}\b", whole)[1:]} <= last_names, first
    sentences = {f"{sentence.rstrip('.')}." for row in dev for part in row for sentence in part.split(". ")}
    about = [s for s in sentences if any(name in s for name in (*held.people, *held.towns, *held.first_names))]
    assert len(about) > 600 and not set(about) & set(lines)
