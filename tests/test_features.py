"""The feature cache: keyed by content, whole or absent, the same on every rank."""

import json
import math
import re
import shutil
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import train_test_split
from transformers import AutoTokenizer

from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.config.road import Columns, DatasetSpec
from road_ds.data import features
from road_ds.data.batch import IGNORED, PAD_MULTIPLE, Feature, collate
from road_ds.data.features import load_features
from road_ds.data.overlap import shared_texts
from road_ds.data.sources import _side, read_part
from road_ds.data.tokenizer import tokenizer_hash
from road_ds.tasks.registry import task_from

NLI = task_from({"type": "classification", "labels": ["yes", "no"], "max_length": 24}, "nli")
RATING = task_from({"type": "regression", "max_length": 24}, "rating")


@pytest.fixture
def tokenizer():
    return AutoTokenizer.from_pretrained(sample_path("tokenizer"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return DatasetSpec(task="nli", train=str(path))


ROWS = [
    {"premise": f"Ada has {i} cats", "hypothesis": "a cat " * (i % 5), "label": "no" if i % 3 else "yes"}
    for i in range(1, 60)
]
ROWS = [row | {"hypothesis": row["hypothesis"] or "none"} for row in ROWS]


def test_the_cache_is_keyed_by_content(tmp_path, tokenizer):
    def folder(task=NLI, **changes):
        spec = write(tmp_path / "rows.jsonl", ROWS).model_copy(update=changes)
        return load_features("rows", "train", spec, task, tokenizer, tmp_path / "cache").folder

    first = folder()
    written = (first / "manifest.json").stat().st_mtime_ns
    assert folder() == first and (first / "manifest.json").stat().st_mtime_ns == written, "the second time is a hit"
    assert folder(max_rows=10) != first
    assert folder(task=NLI.model_copy(update={"max_length": 16})) != first
    assert folder(task=NLI.model_copy(update={"labels": ["no", "yes"]})) != first
    (tmp_path / "rows.jsonl").write_text("")
    changed = write(tmp_path / "rows.jsonl", ROWS[:-1])
    assert load_features("rows", "train", changed, NLI, tokenizer, tmp_path / "cache").folder != first


def test_use_does_not_change_a_tokenizer_fingerprint(tokenizer):
    """A process that encodes and one that finds the cache filled must agree on the key."""
    fresh = tokenizer_hash(tokenizer)
    tokenizer(["some text"], ["and more"], truncation=True, max_length=8, padding=True)
    assert tokenizer_hash(tokenizer) == fresh
    tokenizer.add_tokens(["newword"])
    assert tokenizer_hash(tokenizer) != fresh


def test_what_comes_back_is_what_was_encoded(tmp_path, tokenizer):
    source = load_features("rows", "train", write(tmp_path / "rows.jsonl", ROWS), NLI, tokenizer, tmp_path / "cache")
    assert len(source) == len(ROWS) and source.lengths.max() <= 24
    for i, row in enumerate(ROWS):
        plain = tokenizer(row["premise"], row["hypothesis"], truncation=True, max_length=24)
        feature = source[i]
        assert feature.input_ids.tolist() == plain["input_ids"] and source.lengths[i] == len(plain["input_ids"])
        assert feature.token_type_ids.tolist() == plain["token_type_ids"]
        assert NLI.labels[int(feature.labels[0])] == row["label"] == source.example(i).label
        assert (source.example(i).text_a, source.example(i).text_b) == (row["premise"], row["hypothesis"])


def test_more_rows_than_a_chunk(tmp_path, tokenizer):
    rows = [{"text": f"row {i}", "label": i / 7} for i in range(2345)]
    spec = write(tmp_path / "rows.jsonl", rows)
    source = load_features("rows", "train", spec, RATING, tokenizer, tmp_path / "cache")
    for i in (0, 999, 1000, 2344):
        assert source.example(i).text_a == f"row {i}"
        assert float(source[i].labels[0]) == pytest.approx(i / 7)


def test_batches_are_padded_and_masked(tmp_path, tokenizer):
    source = load_features("rows", "train", write(tmp_path / "rows.jsonl", ROWS), NLI, tokenizer, tmp_path / "cache")
    rows = [4, 9, 1]
    batch = collate(source, rows, pad_id=0)
    assert batch.input_ids.shape[1] % PAD_MULTIPLE == 0 and batch.input_ids.shape[0] == 3
    for i, row in enumerate(rows):
        ids = source[row].input_ids
        assert batch.input_ids[i, : len(ids)].tolist() == ids.tolist()
        assert (
            not batch.input_ids[i, len(ids) :].any() and batch.attention_mask[i].sum() == len(ids) == batch.lengths[i]
        )
    assert batch.labels.tolist() == [int(source[row].labels[0]) for row in rows]


def test_a_held_out_share_is_the_same_every_time_and_keeps_the_labels(tmp_path, tokenizer):
    spec = write(tmp_path / "rows.jsonl", ROWS).model_copy(update={"dev": 0.25})
    train, dev = (read_part("rows", part, spec).examples for part in ("train", "dev"))
    assert {e.id for e in train}.isdisjoint(e.id for e in dev) and len(train) + len(dev) == len(ROWS)
    assert len(dev) == 15 and sum(e.label == "yes" for e in dev) == 5
    assert [e.id for e in read_part("rows", "dev", spec).examples] == [e.id for e in dev]
    cached = load_features("rows", "dev", spec, NLI, tokenizer, tmp_path / "cache")
    assert [e.id for e in cached.examples()] == [e.id for e in dev]


@pytest.mark.parametrize(
    ("labels", "share"),
    [
        ([f"l{i % 12}" for i in range(96)], 0.1),  # fewer held-out rows than labels
        (["a"] * 50 + ["b"] * 49 + ["c"], 0.1),
        (["a"] * 50 + ["b"] * 49 + [f"c{i}" for i in range(7)], 0.05),
        (["a", "b"] * 10, 0.01),
        (["a"] * 20 + [0.5] * 20 + [None] * 20, 0.2),
        ([i / 7 for i in range(20)], 0.3),
        ([None] * 20, 0.2),
        ([True] * 19 + [False], 0.2),
    ],
)
def test_a_share_is_held_out_of_any_labels(labels, share):
    """Every label that has room keeps its share to a row, and nothing fails."""
    held = _side("rows", labels, share, "dev")
    assert (held != _side("rows", labels, share, "train")).all()
    assert held.sum() == math.ceil(share * len(labels))
    for label in ("a", "b") if held.sum() > 3 else ():
        of = np.array([other == label for other in labels])
        assert abs(held[of].sum() - share * of.sum()) <= 1


@given(
    st.lists(
        st.one_of(st.none(), st.booleans(), st.sampled_from("abcdefgh"), st.sampled_from([0.5, 2.0, 10.0])),
        min_size=2,
        max_size=120,
    ),
    st.floats(0.01, 0.9),
)
@settings(max_examples=100, deadline=None)
def test_a_share_is_held_out_of_generated_labels(labels, share):
    if (held := math.ceil(share * len(labels))) < len(labels):
        assert _side("rows", labels, share, "dev").sum() == held


@pytest.mark.parametrize("labels", [["b", "a", "a"] * 20, [10.0, 2.0, 0.5] * 20, [True, False, False] * 20])
def test_a_share_that_can_be_stratified_stays_what_it_was(labels):
    """The rows that an earlier version held out are held out still: a model must not meet its training rows again."""
    _, dev = train_test_split(range(len(labels)), test_size=0.25, random_state=0, stratify=labels)
    assert np.flatnonzero(_side("rows", labels, 0.25, "dev")).tolist() == sorted(dev)


def test_a_share_of_rows_whose_label_column_is_not_known_says_so(tmp_path, tokenizer):
    rows = [{"text": f"row {i}", "opinion": i % 2} for i in range(20)]
    spec = write(tmp_path / "rows.jsonl", rows).model_copy(update={"dev": 0.2})
    with pytest.raises(RoadError, match=r"rows\.jsonl:\d+: the row has no label that .* check its columns"):
        load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")


def test_only_rows_that_are_scored_need_ids_of_their_own(tmp_path, tokenizer):
    rows = [{"id": "same", "text": f"row {i}", "label": "yes"} for i in range(3)]
    spec = write(tmp_path / "rows.jsonl", rows).model_copy(update={"dev": str(tmp_path / "rows.jsonl")})
    assert len(load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")) == 3
    with pytest.raises(RoadError, match=r"rows\.jsonl:2: id 'same' also stands at rows\.jsonl:1; .* or to null"):
        load_features("rows", "dev", spec, NLI, tokenizer, tmp_path / "cache")
    numbered = spec.model_copy(update={"columns": Columns(id=None)})
    source = load_features("rows", "dev", numbered, NLI, tokenizer, tmp_path / "cache")
    assert [e.id for e in source.examples()] == ["rows-0", "rows-1", "rows-2"]


@pytest.mark.parametrize("label_map", [{"0": "no", "1": "yes"}, {"0.0": "no", "false": "no", "1": "yes", "1.0": "yes"}])
@pytest.mark.parametrize("labels", [[0, 1], [0.0, 1.0], [False, True], ["0", "1"]])
def test_labels_are_renamed_however_they_are_written(tmp_path, label_map, labels):
    spec = write(tmp_path / "rows.jsonl", [{"text": "a", "label": label} for label in labels])
    names = {**label_map, "0": "no"}
    found = read_part("rows", "train", spec.model_copy(update={"label_map": names})).examples
    assert [e.label for e in found] == ["no", "yes"]


def test_columns_go_on_top_of_those_of_the_catalog(tmp_path):
    """`columns.id: null` numbers the rows of a known data set, and leaves its texts and its label where they are."""
    (tmp_path / "train.tsv").write_text("index\tquestion\tsentence\tlabel\n7\tq\ts\tentailment\n")
    spec = DatasetSpec(task="t", catalog="qnli", train="train", path=str(tmp_path), columns=Columns(id=None))
    (example,) = read_part("qnli", "train", spec).examples
    assert (example.id, example.text_a, example.text_b, example.label) == ("train-0", "q", "s", "entailment")
    (example,) = read_part("qnli", "train", spec, scored=False).examples
    assert (example.text_a, example.text_b, example.label) == ("q", "s", None)


def test_arrow_labels_are_renamed(tmp_path):
    datasets = pytest.importorskip("datasets")
    for number, labels in enumerate([[0.0, 1.0], [False, True], [0, 1]]):
        folder = tmp_path / str(number)
        datasets.Dataset.from_dict({"text": ["a", "b"], "label": labels}).save_to_disk(folder)
        spec = DatasetSpec(task="t", format="disk", path=str(folder), train="train", label_map={"0": "no", "1": "yes"})
        assert [e.label for e in read_part("rows", "train", spec).examples] == ["no", "yes"]


@pytest.mark.parametrize("label", ["", None, -1, "-", []])
def test_rows_that_are_not_scored_need_no_labels(tmp_path, label):
    path = tmp_path / "rows.jsonl"
    write(path, [{"text": "a", "label": "yes"}, {"text": "b", "label": label}, {"text": "c"}])
    spec = DatasetSpec(task="t", dev=str(path), drop_labels=["-"])
    found = read_part("rows", "dev", spec, scored=False).examples
    assert [(e.text_a, e.label) for e in found] == [("a", None), ("b", None), ("c", None)]
    with pytest.raises(RoadError, match=r"labels decide on a share of rows; give a file"):
        read_part("rows", "dev", DatasetSpec(task="t", train=str(path), dev=0.5), scored=False)


def test_labels_are_renamed_and_refused_by_name(tmp_path, tokenizer):
    spec = write(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": "yess"}])
    renamed = spec.model_copy(update={"label_map": {"1": "no", "yess": "yes"}})
    source = load_features("rows", "train", renamed, NLI, tokenizer, tmp_path / "cache")
    assert [int(source[i].labels[0]) for i in range(2)] == [1, 0]
    half = spec.model_copy(update={"label_map": {"1": "no"}})
    with pytest.raises(RoadError, match=r"rows\.jsonl:2: label 'yess' is none of .*did you mean 'yes'"):
        load_features("rows", "train", half, NLI, tokenizer, tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache" / "features").iterdir() if p.name.startswith(".")], (
        "no half cache is left"
    )


def test_rows_without_labels_train_nothing(tmp_path, tokenizer):
    spec = write(tmp_path / "rows.jsonl", [{"text": "a"}])
    with pytest.raises(RoadError, match=r"rows\.jsonl:1: the row has no label"):
        load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")
    example = read_part("rows", "train", spec).examples[0]
    assert NLI.label(example) == IGNORED and np.isnan(RATING.label(example))


FILES = ["examples.arrow", "features.arrow", "lengths.npy", "manifest.json"]


def everything(source) -> list:
    """All that a run reads of a feature set."""
    cells = [
        [np.asarray(getattr(source[i], field.name)).tolist() for field in fields(Feature)] for i in range(len(source))
    ]
    return [source.manifest, source.lengths.tolist(), cells, list(source.examples())]


def damaged(path, damage, generator):
    """Changes a file in one place."""
    data = bytearray(path.read_bytes())
    if damage == "deleted":
        return path.unlink()
    if damage == "flipped":
        data[generator.integers(len(data))] ^= 1 << generator.integers(8)
    path.write_bytes(data[:-3] if damage == "cut" else data)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(("damage", "times"), [("flipped", 25), ("cut", 1), ("deleted", 1)])
def test_a_damaged_cache_is_named_and_made_again(tmp_path, tokenizer, capsys, file, damage, times):
    """Wherever the bit lies: in a label, an offset, a length, the header, the key that results.json is to show."""
    generator = np.random.default_rng(0)
    spec = write(tmp_path / "rows.jsonl", ROWS)

    def load():
        return load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")

    first = load()
    truth, folder = everything(first), first.folder
    del first
    assert "warning" not in capsys.readouterr().err
    for _ in range(times):
        damaged(folder / file, damage, generator)
        again = load()
        fault = r"(has changed since it was saved|has \d+ bytes, expected|is missing|does not end with its own hash)"
        assert re.search(rf"warning: .*/{file}: {fault}.*: the cached rows are encoded again", capsys.readouterr().err)
        assert everything(again) == truth
        assert everything(load()) == truth and "warning" not in capsys.readouterr().err, "now it is whole"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_cache_that_may_not_be_read_is_left_as_it_is(tmp_path, tokenizer, monkeypatch):
    """It may be whole, and another user's."""
    spec = write(tmp_path / "rows.jsonl", ROWS)
    folder = load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache").folder
    before = (folder / "manifest.json").stat().st_ino

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("road_ds.common.sealed.file_sha256", refuse)
    with pytest.raises(RoadError, match=r"examples\.arrow: cannot be read: give this user the right to read it"):
        load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")
    assert (folder / "manifest.json").stat().st_ino == before


def test_a_whole_cache_of_other_rows_is_not_taken(tmp_path, tokenizer, capsys):
    spec = write(tmp_path / "rows.jsonl", ROWS)
    folder = load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache").folder
    manifest = (folder / "manifest.json").read_bytes()
    other = load_features("other", "train", spec.model_copy(update={"max_rows": 9}), NLI, tokenizer, tmp_path / "cache")
    shutil.rmtree(folder)
    shutil.copytree(other.folder, folder)  # whole, but of other rows
    again = load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")
    assert "manifest.json: is of other rows or settings: the cached rows" in capsys.readouterr().err
    assert (folder / "manifest.json").read_bytes() == manifest and len(again) == len(ROWS)


def test_hashes_are_compared_once_per_host(tmp_path, tokenizer):
    """The other processes of a host look at the sizes alone: the first has read the same files."""
    spec = write(tmp_path / "rows.jsonl", ROWS)

    def load(verify):
        return load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache", verify=verify)

    path = load(True).folder / "features.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    load(False)
    assert path.read_bytes() == data
    load(True)
    assert path.read_bytes() != data


@pytest.mark.parametrize("by_rows", [False, True])
def test_rows_that_change_while_they_are_encoded_are_not_cached(tmp_path, tokenizer, monkeypatch, by_rows):
    """Else the features of the new rows would be kept under the key of the old ones."""
    spec = write(tmp_path / "rows.jsonl", ROWS)
    monkeypatch.setattr(features.Source, "by_rows", by_rows)
    encode = features._encode

    def late(*arguments, **settings):
        write(tmp_path / "rows.jsonl", [row | {"label": "yes"} for row in ROWS])
        encode(*arguments, **settings)

    monkeypatch.setattr(features, "_encode", late)
    with pytest.raises(RoadError, match=r"rows\.jsonl: changed while it was read: start again"):
        load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")
    assert not list((tmp_path / "cache" / "features").glob("*/manifest.json"))


def test_rows_of_one_text_and_other_choices_are_not_the_same(tmp_path, tokenizer):
    rows = [{"question": "Who?", "choices": ["Ada", end], "label": 0} for end in ("Ola", "Ida", "Ola")]
    parts = [write(tmp_path / f"{i}.jsonl", part) for i, part in enumerate((rows[:1], rows[1:]))]
    task = task_from({"type": "multiple_choice", "max_length": 16}, "choice")
    train, dev = (load_features("rows", "train", spec, task, tokenizer, tmp_path / "cache") for spec in parts)
    assert shared_texts(train, dev) == [1]
