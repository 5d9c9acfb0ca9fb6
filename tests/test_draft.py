"""A first configuration from files: what is seen in them, what is written, and that it trains."""

import gzip
import json

import pytest
from datasets import Dataset, DatasetDict
from forked import run_forked
from runs import ROOT, TINY_ELECTRA, error_of

from road_ds.common.errors import RoadError
from road_ds.config.file import load_config
from road_ds.data.draft import data_sets_of, draft

SAMPLE = ROOT / "road_ds" / "data" / "sample_data"
TINY = {"architecture": "electra", "tokenizer": "sample:tokenizer", "config": TINY_ELECTRA}


def jsonl(*rows) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def drafted(tmp_path, monkeypatch):
    """The draft over files of this content, by name."""
    monkeypatch.chdir(tmp_path)

    def drafted(files: dict[str, str], **blocks) -> dict:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(content)
        found = data_sets_of(files)
        for name, block in blocks.items():
            found[name] |= block
        return draft({"road": {"datasets": found}})[0]

    return drafted


def many(*labels, **more) -> str:
    return jsonl(*({"text": f"text {n}", "label": label, **more} for n, label in enumerate(labels * 4)))


def asked(count: int, long: str = "here") -> str:
    """Questions with two choices, the last one with so many."""
    keys = "ABCDE"
    return jsonl(*(
        {"question": "Where?", "answerKey": keys[n % 2], "choices": {"text": ["there", long, "no"][: own], "label": [*keys[: own]]}}
        for n, own in enumerate((2, 2, count))
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("content", "task"),
    [
        (many("no", "yes", "maybe"), {"type": "classification", "labels": ["maybe", "no", "yes"]}),
        (many(10, 9, 1), {"type": "classification", "labels": ["1", "9", "10"]}),
        (many(True, False), {"type": "classification", "labels": ["false", "true"]}),
        (many(1.5, 2.0, 0.25), {"type": "regression"}),
        (many("4.500", "2.000", "0.3"), {"type": "regression"}),
        (many(0.0, 1.0), {"type": "classification", "labels": ["0.0", "1.0"]}),
        (many(["b", "a"], ["c"], []), {"type": "multi_label", "labels": ["a", "b", "c"]}),
        (jsonl(*({"tokens": ["In", "Rouen"], "tags": ["O", "B-LOC"]} for _ in range(4))), {"type": "token_classification", "labels": ["B-LOC", "O"]}),
        (asked(3), {"type": "multiple_choice"}),
        (asked(3, long="word " * 150), {"type": "multiple_choice", "max_length": 256}),
        (many("no", "yes", text="word " * 150), {"type": "classification", "labels": ["no", "yes"], "max_length": 256}),
    ],
)  # fmt: skip
def test_the_task_that_rows_teach(drafted, content, task):
    assert drafted({"rows.jsonl": content})["road"]["tasks"] == {"rows": task}


def test_questions_and_text_are_known_by_their_files(drafted):
    answers = {"text": ["Rouen"], "answer_start": [3]}
    road = drafted({
        "faq.jsonl": jsonl(*({"question": "Where?", "context": "In Rouen.", "answers": answers} for _ in range(9))),
        "books.txt": "one\ntwo\n\nthree\n",
    })["road"]  # fmt: skip
    assert road["tasks"] == {"faq": {"type": "span_qa"}, "books": {"type": "replaced_tokens"}} and road["passes"] == 2


def test_parts_of_a_data_set_are_put_together_by_their_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = [
        "nli.train.jsonl",
        "nli.dev.jsonl.gz",
        "sst/train.tsv",
        "sst/validation.tsv",
        "my reviews.csv",
        "training_days.tsv",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert data_sets_of(names) == {
        "nli": {"train": names[0], "dev": names[1]},
        "sst": {"train": names[2], "dev": names[3]},
        "my_reviews": {"train": names[4], "dev": 0.1},
        "days": {"train": names[5], "dev": 0.1},
    }


def test_choices_are_counted_for_the_user(drafted):
    drafted({"few.jsonl": asked(2), "more.jsonl": asked(3)})
    said = draft({"road": {"datasets": data_sets_of(["few.jsonl", "more.jsonl"])}})[1]
    assert [line[3] for line in said] == ["questions with 2 choices", "questions with 2 to 3 choices"]


def test_a_saved_folder_is_a_data_set_of_its_splits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = Dataset.from_dict({"text": ["a", "b", "c"], "label": ["x", "y", "x"]})
    DatasetDict({"test": rows, "validation": rows, "train": rows}).save_to_disk("several")
    DatasetDict({"left": rows, "right": rows}).save_to_disk("odd")
    rows.save_to_disk("one")
    several = {"format": "disk", "path": "several", "train": "train", "dev": "validation"}
    one = {"format": "disk", "path": "one", "train": "train", "dev": 0.1}
    assert data_sets_of(["several", "one"]) == {"several": several, "one": one}
    made, said = draft({"road": {"datasets": {"several": several}}})
    assert made["road"]["tasks"]["several"]["labels"] == ["x", "y"] and said[0][1] == "6", "rows of both parts"
    with pytest.raises(RoadError, match="odd: has the splits 'left', 'right', none of which is the train part"):
        data_sets_of(["odd"])
    with pytest.raises(RoadError, match=r"one\.dev\.tsv: 0\.1 is the dev part of one already"):
        (tmp_path / "one.dev.tsv").touch()
        data_sets_of(["one", "one.dev.tsv"])


def test_labels_of_the_dev_part_count_too_and_settings_stay(drafted):
    files = {"a.train.jsonl": many("no", "yes"), "a.dev.jsonl": many("maybe")}
    assert drafted(files)["road"]["tasks"]["a"]["labels"] == ["maybe", "no", "yes"]
    other = many("no", "yes", stars=3.5).replace('"label"', '"other"')
    assert drafted({"b.jsonl": other}, b={"columns": {"label": "stars"}})["road"]["datasets"]["b"]["columns"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.jsonl": jsonl({"text": "t", "mood": "m"})}, "a.jsonl: 1 row of 1 without a label: add --set road.datasets.a.columns.label=COLUMN"),
        ({"a.jsonl": jsonl(*({"text": "t", "label": f"l{n}"} for n in range(9)))}, "9 different labels in 9 rows ('l0', 'l1', 'l2' ...): neither classes nor fractions"),
        ({"a.jsonl": jsonl({"body": "t", "label": "m"})}, "a.jsonl:1: no column with a well-known name for text; set columns.text_a to one of"),
        ({"a.dev.jsonl": many("x")}, "a.dev.jsonl: by its name the dev part of a: give its train part too"),
        ({"a.train.jsonl": many("x"), "a.train.tsv": ""}, "a.train.tsv: a.train.jsonl is the train part of a already"),
        ({"a.xlsx": ""}, "file suffix '.xlsx' is unknown"),
    ],
)  # fmt: skip
def test_what_rows_do_not_say(drafted, files, message):
    with pytest.raises(RoadError) as caught:
        drafted(files)
    assert message in str(caught.value)


def test_it_is_written_planned_and_trains_as_it_stands(tmp_path, cache, command):
    rows = [SAMPLE / name for name in ("inference.train.jsonl", "inference.dev.jsonl", "people.train.json")]
    given = {"road.model": TINY, "road.steps": 2, "road.output": str(tmp_path / "run"), "road.cache": str(cache)}
    sets = [word for key, value in given.items() for word in ("--set", f"{key}={json.dumps(value)}")]
    sets += ["--set", "road.datasets.people.max_rows=60", "--set", "road.tasks.people={\"type\": \"span_qa\", \"max_length\": 128, \"doc_stride\": 64}"]  # fmt: skip
    new = tmp_path / "new.json"
    code, out, err = command("check", "--write", new, *sets, *rows)
    assert code == 0, err
    assert (
        "pairs; 3 labels: contradiction 3" in out
        and f"Written: {new}." in out
        and "2 steps of 2 passes x 16 rows" in out
    )
    config, ds = load_config(new)
    assert config.datasets["inference"].dev == str(rows[1]) and config.datasets["people"].dev == 0.1
    assert config.tasks["inference"] == {"type": "classification", "labels": ["contradiction", "entailment", "neutral"]}
    assert ds["train_batch_size"] == 32 and config.epochs is None
    result = run_forked(ROOT / "road_ds" / "train.py", "--deepspeed_config", new)
    assert result.returncode == 0 and (tmp_path / "run" / "results.json").exists(), result.stderr[-3000:]
    before = new.read_text()
    assert f"--write {new}: is there already" in error_of(command("check", "--write", new, *rows))
    assert new.read_text() == before
    assert "one configuration at a time; --write NEW makes one" in error_of(command("check", new, rows[0]))
    assert "none.tsv: does not exist: expected a file with rows" in error_of(command("check", "--write", tmp_path / "b", "none.tsv"))  # fmt: skip


def test_a_zipped_file_is_read_too(tmp_path):
    (tmp_path / "a.train.jsonl.gz").write_bytes(gzip.compress(many("no", "yes").encode()))
    made, said = draft({"road": {"datasets": data_sets_of([str(tmp_path / "a.train.jsonl.gz")])}})
    assert made["road"]["tasks"]["a"]["labels"] == ["no", "yes"] and said[0][:3] == ("a", "8", "classification")
