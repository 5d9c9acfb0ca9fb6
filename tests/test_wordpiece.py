"""A tokenizer made from one's own text: the same bytes every time, and a model starts with it."""

import json

import pytest
from runs import TINY_ELECTRA, error_of, run_python, tiny_config
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from road_ds.common.hub import sample_path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")


def sentences() -> list[str]:
    return [json.loads(line)["premise"] for line in sample_path("inference.train.jsonl").read_text().splitlines()[:800]]


@pytest.fixture
def text(tmp_path) -> str:
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("\n\n".join(sentences()))
    (tmp_path / "text" / "b.jsonl").write_text(json.dumps({"text": "Søren naïvely 中文 met Zoë. " * 3}) + "\n")
    return str(tmp_path / "text")


def made(folder) -> dict[str, bytes]:
    assert sorted(path.name for path in folder.iterdir()) == list(FILES)
    return {name: (folder / name).read_bytes() for name in FILES}


def test_the_same_text_gives_the_same_bytes(tmp_path, text, command):
    options = ("--text", text, "--vocab_size", "200", "--output")
    code, out, err = command("tokenizer", *options, tmp_path / "one")
    assert code == 0, err
    assert out.startswith(f"{tmp_path / 'one'}: 200 pieces\n") and '"architecture": "electra"' in out
    done = run_python("-m", "road_ds", "tokenizer", *options, str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert made(tmp_path / "one") == made(tmp_path / "two")


@pytest.mark.parametrize("cased", [False, True])
def test_transformers_reads_it_as_it_was_made(tmp_path, text, command, cased):
    command("tokenizer", "--text", text, "--vocab_size", "400", "--output", tmp_path / "own", *["--cased"] * cased)
    own, read = (
        Tokenizer.from_file(str(tmp_path / "own" / "tokenizer.json")),
        AutoTokenizer.from_pretrained(tmp_path / "own"),
    )
    assert read.is_fast and read.convert_ids_to_tokens(range(5)) == SPECIAL
    assert [read.pad_token, read.unk_token, read.cls_token, read.sep_token, read.mask_token] == SPECIAL
    vocabulary = (tmp_path / "own" / "vocab.txt").read_text().split("\n")[:-1]
    assert read.convert_ids_to_tokens(range(len(read))) == vocabulary and len(set(vocabulary)) == len(vocabulary) <= 400
    for line in [*sentences()[:50], "Søren naïvely 中文 met Zoë [MASK].", "unheard wording"]:
        ids = read(line)["input_ids"]
        assert ids == own.encode(line).ids and read.unk_token_id not in ids
    assert ("##." in vocabulary, "##中" in vocabulary, "##e" in vocabulary) == (False, False, True)
    assert ("Z" in vocabulary, "ë" in vocabulary) == (cased, cased)
    pair = read("Zoë", "sang")
    assert pair["token_type_ids"] == [0] * (pair["input_ids"].index(3) + 1) + [1] * (
        len(pair["input_ids"]) - pair["input_ids"].index(3) - 1
    )
    words = [piece for piece in vocabulary if len(piece) > 3 and piece.isalpha()]
    assert {"keeps", "plays"} <= set(words), "frequent words are pieces"


def test_a_model_starts_with_it(tmp_path, text, command, config_file):
    command("tokenizer", "--text", text, "--vocab_size", "500", "--output", tmp_path / "own")
    config = tiny_config(model={"architecture": "electra", "tokenizer": str(tmp_path / "own"), "config": TINY_ELECTRA})
    code, out, err = command("check", config_file(config))
    assert code == 0 and "parameters in the encoder" in out, err


def test_rows_of_any_columns_are_text(tmp_path, command):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"body": line, "label": None}) + "\n" for line in sentences()))
    options = ("--vocab_size", "200", "--output", tmp_path / "own")
    assert "no column with a well-known name" in error_of(command("tokenizer", "--text", rows, *options))
    assert command("tokenizer", "--text", rows, *options, "--set", "columns.text_a=body")[0] == 0


def test_fewer_pieces_than_asked_for_are_told(tmp_path, command):
    (tmp_path / "a.txt").write_text("one two one two\n")
    code, out, _ = command(
        "tokenizer", "--text", tmp_path / "a.txt", "--vocab_size", "1000", "--output", tmp_path / "own"
    )
    assert code == 0 and " pieces (not 1,000: the text has no more that occur twice)\n" in out
    assert len(AutoTokenizer.from_pretrained(tmp_path / "own")) < 50


def test_what_makes_no_tokenizer_is_named(tmp_path, text, command):
    def error(*more, source=text, size="300") -> str:
        return error_of(
            command("tokenizer", "--text", source, "--vocab_size", size, "--output", tmp_path / "own", *more)
        )

    assert "--vocab_size 20: leaves room for 5 of" in error(size="20")
    (tmp_path / "empty").mkdir()
    assert "the folder holds no files" in error(source=tmp_path / "empty")
    (tmp_path / "a.txt").write_bytes(b"\x7fELF\x02\x01\x01\0")
    assert "a.txt:1: holds NUL bytes; expected text in UTF-8, not a binary file" in error(source=tmp_path / "a.txt")
    assert not (tmp_path / "own").exists() and not [p for p in tmp_path.iterdir() if p.name.startswith(".")]
    (tmp_path / "own").mkdir()
    assert error() == f"error: --output {tmp_path / 'own'}: is there already: give another folder"
