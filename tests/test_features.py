"""The feature cache: keyed by content, whole or absent, the same on every rank."""

import json
import re
import shutil
from dataclasses import fields

import numpy as np
import pytest
from transformers import AutoTokenizer

from road_ds.config import DatasetSpec
from road_ds.data import features
from road_ds.data.features import IGNORED, PAD_MULTIPLE, Feature, collate, load_features, read_part, tokenizer_hash
from road_ds.errors import RoadError
from road_ds.hub import sample_path
from road_ds.tasks import task_from

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


def test_labels_are_renamed_and_refused_by_name(tmp_path, tokenizer):
    spec = write(tmp_path / "rows.jsonl", [{"text": "a", "label": 1}, {"text": "b", "label": "ye"}])
    renamed = spec.model_copy(update={"label_map": {"1": "no", "ye": "yes"}})
    source = load_features("rows", "train", renamed, NLI, tokenizer, tmp_path / "cache")
    assert [int(source[i].labels[0]) for i in range(2)] == [1, 0]
    half = spec.model_copy(update={"label_map": {"1": "no"}})
    with pytest.raises(RoadError, match=r"rows\.jsonl:2: label 'ye' is none of .*did you mean 'yes'"):
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
        assert re.search(
            rf"warning: .*/{file}: the cached file is damaged \(.*: its rows are encoded again", capsys.readouterr().err
        )
        assert everything(again) == truth
        assert everything(load()) == truth and "warning" not in capsys.readouterr().err, "now it is whole"
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, f"{folder.name}.lock"}


def test_a_whole_cache_of_other_rows_is_not_taken(tmp_path, tokenizer, capsys):
    spec = write(tmp_path / "rows.jsonl", ROWS)
    folder = load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache").folder
    manifest = json.loads((folder / "manifest.json").read_text())
    other = load_features("other", "train", spec.model_copy(update={"max_rows": 9}), NLI, tokenizer, tmp_path / "cache")
    shutil.rmtree(folder)
    shutil.copytree(other.folder, folder)  # whole, but of other rows
    again = load_features("rows", "train", spec, NLI, tokenizer, tmp_path / "cache")
    assert "manifest.json: the cached file is damaged (it is of other rows" in capsys.readouterr().err
    assert again.manifest == {key: value for key, value in manifest.items() if key != "seal"} and len(again) == len(
        ROWS
    )


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
