"""Documents packed into sequences: nothing lost, nothing mixed, and the same whatever they are read with."""

import json
import random
from itertools import chain
from typing import ClassVar, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import error_of, tiny_config
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from road_ds.common.digest import text_sha256
from road_ds.common.errors import RoadError
from road_ds.common.hub import sample_path
from road_ds.config.road import DatasetSpec
from road_ds.data import arrow, features
from road_ds.data.features import load_features
from road_ds.data.readers import Example
from road_ds.tasks import registry, sequences
from road_ds.tasks.base import Task
from road_ds.tasks.sequences import LEAST, Frame, Words
from road_ds.tasks.text import TextTask

TEXT = "the old mill is painted red and sells honey to a doctor of many boats in spring not very dull"
WORDS = TEXT.split()
LENGTH = 64


class Packed(TextTask):
    """The rows of pretraining, without what is learned from them."""

    type: Literal["packed"] = "packed"
    headline: ClassVar[str] = "none"
    row_metric: ClassVar[str] = "none"
    truncates: ClassVar[bool] = False
    supervised: ClassVar[bool] = False

    def head_settings(self):
        return {"num_labels": 2}

    def labelled(self, example):
        return True

    def encode(self, examples, tokenizer, first=0):
        return sequences.sequences(examples, tokenizer, self.max_length, first)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(sample_path("tokenizer"))


@pytest.fixture(scope="module")
def byte_level():
    """A tokenizer as RoBERTa's: words know the space before them, and pairs have two separators between."""
    marks = ["<s>", "<pad>", "</s>", "<mask>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate([*marks, *letters])}
    made = Tokenizer(models.BPE(vocabulary, []))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=made, cls_token="<s>", sep_token="</s>", pad_token="<pad>", mask_token="<mask>"
    )


def document(text: str, number: int = 0) -> Example:
    return Example(f"d-{number}", text, None, None, None, f"d.txt:{number}")


def made_up(
    count: int, seed: int = 0, lines: tuple[int, int] = (1, 30), words: tuple[int, int] = (1, 14)
) -> list[Example]:
    draw = random.Random(seed)
    return [
        document(
            "\n".join(" ".join(draw.choices(WORDS, k=draw.randint(*words))) for _ in range(draw.randint(*lines))), i
        )
        for i in range(count)
    ]


def parts(feature, tokenizer) -> list[list[int]]:
    """The segments of a sequence, once its special tokens and types have been found in their places."""
    ids = feature.input_ids.tolist()
    assert ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id
    ends = [i for i, token in enumerate(ids) if token == tokenizer.sep_token_id]
    assert len(ends) in (1, 2) and tokenizer.cls_token_id not in ids[1:]
    assert feature.token_type_ids.tolist() == [0] * (ends[0] + 1) + [1] * (len(ids) - ends[0] - 1)
    assert len(feature.labels) == 0
    return [ids[1 : ends[0]], *([ids[ends[0] + 1 : -1]] if len(ends) == 2 else [])]


def pack(examples, tokenizer, max_length=LENGTH, first=0):
    return list(sequences.sequences(examples, tokenizer, max_length, first))


def test_every_token_stands_in_one_sequence_in_order(tokenizer):
    examples = made_up(300)
    packed = pack(examples, tokenizer, first=7)
    assert [f.example for f in packed] == sorted(f.example for f in packed)
    for number, example in enumerate(examples, 7):
        found = list(chain(*(chain(*parts(f, tokenizer)) for f in packed if f.example == number)))
        wanted = tokenizer(example.text_a.replace("\n", " "), add_special_tokens=False, verbose=False)["input_ids"]
        assert found == wanted[: len(found)] and len(wanted) - len(found) < LEAST
    assert max(len(f.input_ids) for f in packed) == LENGTH


def test_shares_are_the_published_ones(tokenizer):
    """10 % have one segment, 5 % a random shorter length; the rest is full and ends its first segment near the half."""
    examples = made_up(40, lines=(800, 800), words=(1, 10))
    packed = pack(examples, tokenizer)
    ends = {f.example: i for i, f in enumerate(packed)}
    inner = [
        f for i, f in enumerate(packed) if i not in ends.values()
    ]  # a document's last may be short for lack of text
    assert len(inner) > 3000
    lone = np.mean([len(parts(f, tokenizer)) == 1 for f in inner])
    shorter = np.mean([len(f.input_ids) < LENGTH for f in inner])
    assert abs(lone - 0.1) < 4 * (0.1 * 0.9 / len(inner)) ** 0.5
    assert abs(shorter - 0.05) < 4 * (0.05 * 0.95 / len(inner)) ** 0.5
    assert min(len(f.input_ids) for f in inner) < 16
    halves = [
        len(parts(f, tokenizer)[0]) for f in inner if len(f.input_ids) == LENGTH and len(parts(f, tokenizer)) == 2
    ]
    line = max(len(ids) for example in examples[:2] for ids in tokenizer(example.text_a.split("\n"))["input_ids"]) - 2
    assert abs(np.mean(halves) - (LENGTH - 3) / 2) < 1.5
    assert max(abs(half - (LENGTH - 3) / 2) for half in halves) <= line < LENGTH / 2


def test_segments_end_where_lines_end(tokenizer):
    example = document("\n".join(" ".join(WORDS[i % 8 : i % 8 + 5]) for i in range(400)))
    lines = np.cumsum([5] * 400)
    at, cut = 0, 0
    for feature in pack([example], tokenizer):
        found = parts(feature, tokenizer)
        if len(found) == 2:
            assert at + len(found[0]) in lines
            cut += 1
        at += sum(map(len, found))
    assert cut > 20


def test_a_line_longer_than_a_sequence_is_cut_at_the_half(tokenizer):
    packed = pack([document(" ".join(WORDS * 200))], tokenizer)
    halves = {
        len(parts(f, tokenizer)[0]) for f in packed[:-1] if len(f.input_ids) == LENGTH and len(parts(f, tokenizer)) == 2
    }
    assert halves == {(LENGTH - 3) // 2} and sum(len(parts(f, tokenizer)) == 1 for f in packed) < len(packed) / 2


def test_short_documents_are_left_out_and_never_merged(tokenizer):
    examples = [document("red"), document("the old mill is painted red"), document("red and dull"), document("\n \n")]
    (only,) = pack(examples, tokenizer)
    assert only.example == 1 and only.input_ids.tolist() == tokenizer("the old mill is painted red")["input_ids"]


def test_two_lines_are_the_tokenizers_own_pair(tokenizer, byte_level):
    for own in (tokenizer, byte_level):
        frame = Frame.of(own)
        a, b = "the old mill", "is red"
        ids = [own(text, add_special_tokens=False)["input_ids"] for text in (a, b)]
        pair, lone = own(a, b, return_token_type_ids=True), own(a, return_token_type_ids=True)
        made = frame.feature(np.array(ids[0], np.int32), np.array(ids[1], np.int32), 0)
        alone = frame.feature(np.array(ids[0], np.int32), np.empty(0, np.int32), 0)
        for feature, wanted in ((made, pair), (alone, lone)):
            assert feature.input_ids.tolist() == wanted["input_ids"]
            assert feature.token_type_ids.tolist() == wanted["token_type_ids"]
        assert frame.special(2) == own.num_special_tokens_to_add(True)
        assert frame.special(1) == own.num_special_tokens_to_add(False)


def test_a_document_is_packed_the_same_alone_and_among_others(tokenizer, monkeypatch):
    def as_lists(packed, first=0):
        return [(f.input_ids.tolist(), f.token_type_ids.tolist(), f.example - first) for f in packed]

    examples = made_up(60)
    whole = as_lists(pack(examples, tokenizer))
    alone = [
        (ids, types, number)
        for number, example in enumerate(examples)
        for ids, types, _ in as_lists(pack([example], tokenizer))
    ]
    monkeypatch.setattr(sequences, "AT_ONCE", 300)
    monkeypatch.setattr(sequences, "KNOWN", 10)
    assert alone == whole == as_lists(pack(examples, tokenizer, first=5), 5)
    # of any process, machine and version: what was packed once must not be packed otherwise under the same key
    assert text_sha256(repr(whole)) == "afb133f6211e151ced2bf0307c778c75ef36b91448825a345803e4afab6c6df5"


@given(st.lists(st.text(st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(" \t\x1c\xa0é中[MASK]")))))
@settings(max_examples=200, deadline=None)
def test_words_are_tokenized_as_in_their_lines(tokenizer, lines):
    words = Words(tokenizer)
    assert words._alone
    wanted = tokenizer(lines, add_special_tokens=False, verbose=False)["input_ids"] if lines else []
    lines += ["a [MASK] b[SEP]c the red"]
    wanted += [tokenizer(lines[-1], add_special_tokens=False)["input_ids"]]
    assert [np.frombuffer(ids, np.int32).tolist() for ids in words(lines)] == wanted


def test_lines_are_tokenized_whole_where_spaces_are_no_borders(tokenizer, byte_level):
    lines = ["the old mill", " is red"]
    assert [np.frombuffer(ids, np.int32).tolist() for ids in Words(byte_level)(lines)] == [
        byte_level(line, add_special_tokens=False)["input_ids"] for line in lines
    ]
    spaced = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    spaced.add_tokens(["old mill"])
    (ids,) = Words(spaced)(["the old mill"])
    assert np.frombuffer(ids, np.int32).tolist()[-1] == len(tokenizer)


def test_truncation_of_an_earlier_call_cuts_nothing(tokenizer):
    tokenizer(["the old mill is painted red"], truncation=True, max_length=4, padding="max_length")
    (ids,) = Words(tokenizer)([TEXT])
    assert np.frombuffer(ids, np.int32).tolist() == tokenizer(TEXT, add_special_tokens=False)["input_ids"]


def test_what_cannot_be_packed_is_named(tokenizer):
    bare = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    bare.mask_token = None
    with pytest.raises(RoadError, match=r"tokenizer: the tokenizer has no mask token"):
        pack([document("the old mill")], bare)
    with pytest.raises(RoadError, match=r"d\.txt:3: two texts, where a document is one: set columns\.text_b to null"):
        pack([Example("d", "one", "two", None, None, "d.txt:3")], tokenizer)


# ------------------------------------------------------------------------------------------------ as a data set's rows


def write(path, examples) -> DatasetSpec:
    path.write_text("\n\n".join(example.text_a for example in examples))
    return DatasetSpec(task="text", train=str(path), dev=0.1)


def test_text_is_cached_as_other_rows_are(tmp_path, tokenizer, monkeypatch):
    examples = made_up(1200, lines=(1, 6))
    spec = write(tmp_path / "a.txt", examples)
    task = Packed(type="packed", max_length=LENGTH)

    def load(part, cache="cache"):
        return load_features("text", part, spec, task, tokenizer, tmp_path / cache)

    train, dev = load("train"), load("dev")
    assert (train.manifest.examples, dev.manifest.examples) == (1080, 120) and train.pairs is False
    every = {e.text_a for part in (train, dev) for e in part.examples()}
    assert every == {e.text_a for e in examples}
    wanted = pack(list(train.examples()), tokenizer)
    assert [f.input_ids.tolist() for f in wanted] == [train[i].input_ids.tolist() for i in range(len(train))]
    assert train.lengths.tolist() == [len(f.input_ids) for f in wanted] and train[len(train) - 1].example == 1079
    for module in (arrow, features):  # a text so large that few rows are held at once
        monkeypatch.setattr(module, "SIZE", 2000)
    small = load("train", "small")
    assert [small[i].input_ids.tolist() for i in range(len(small))] == [f.input_ids.tolist() for f in wanted]
    assert [e for e in small.examples()] == list(train.examples())


def test_labelled_rows_are_text_too(tmp_path, tokenizer):
    """Nothing but the text is looked at: neither labels that a file has nor answers."""
    rows = [{"text": f"{TEXT} {i}", "label": None if i % 2 else "x", "answers": "none"} for i in range(20)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    spec = DatasetSpec(task="text", train=str(tmp_path / "a.jsonl"), dev=0.2)
    task = Packed(type="packed", max_length=LENGTH)
    parts = [load_features("text", part, spec, task, tokenizer, tmp_path / "cache") for part in ("train", "dev")]
    assert [(p.manifest.examples, len(p)) for p in parts] == [(16, 16), (4, 4)]
    assert parts[0].example(0).label is None and parts[0].example(0).answers is None


@pytest.fixture
def checked(config_file, command, monkeypatch):
    """What `check` says of a file or folder of text."""
    monkeypatch.setitem(registry.TASKS, "packed", Packed)

    def checked(source, **more):
        config = tiny_config()
        tasks = {"text": {"type": "packed", "max_length": LENGTH}}
        spec = {"task": "text", "train": str(source), "dev": 0.1, **more}
        config["road"] |= {"tasks": tasks, "datasets": {"text": spec}}
        return command("check", config_file(config))

    return checked


def test_check_tells_sequences_tokens_and_epochs(tmp_path, checked):
    (tmp_path / "rows").mkdir()
    write(tmp_path / "rows" / "a.txt", made_up(400))
    code, out, err = checked(tmp_path / "rows")
    assert code == 0, err
    head, _, row = (line.split() for line in out.splitlines()[:3])
    assert row[:2] == ["text", "text"] and row[2] == "360" and int(row[3].replace(",", "")) > 400
    assert "epochs" in head and LENGTH / 2 < float(row[4]) <= LENGTH
    assert "cut off" not in out, "sequences are full on purpose"


def test_check_names_what_is_no_text(tmp_path, checked):
    (tmp_path / "empty").mkdir()
    assert "empty: the folder holds no files" in error_of(checked(tmp_path / "empty"))
    (tmp_path / "a.txt").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert "a.txt:1: byte 0x89" in error_of(checked(tmp_path / "a.txt"))
    (tmp_path / "b.txt").write_bytes(b"word " * 200_000)
    assert "b.txt:1: a line of more than 524,288 characters" in error_of(checked(tmp_path / "b.txt"))


def test_tasks_say_whether_they_cut_rows_and_read_labels():
    assert Task.truncates and Task.supervised and not registry.SpanQA.truncates
