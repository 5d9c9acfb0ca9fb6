"""Text without columns, and folders: every document once and in order, whatever file it stands in."""

import gzip
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from road_ds.common.errors import RoadError
from road_ds.config.road import DatasetSpec
from road_ds.data import formats
from road_ds.data.readers import read
from road_ds.data.sources import read_part


def spec(**more) -> DatasetSpec:
    return DatasetSpec(task="t", **more)


def save(path, content: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return str(path)


def texts(source, **more) -> list[tuple[str, str, str]]:
    return [(e.id, e.where, e.text_a) for e in read(str(source), spec(**more)).examples]


TEXT = "\ufeff\n One line.\r\nAnother, é.  \n \t \n\n\nNext document.\n"


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz"])
def test_blank_lines_part_documents(tmp_path, name):
    file = save(tmp_path / name, TEXT)
    stem = name.removesuffix(".gz") if name.endswith(".gz") else "a"
    assert texts(file) == [
        (f"{stem}-0", f"{name}:2", "One line.\nAnother, é."),
        (f"{stem}-1", f"{name}:7", "Next document."),
    ]
    assert [text for *_, text in texts(file, format="document")] == ["One line.\nAnother, é.\nNext document."]


@given(st.lists(st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1), min_size=1))
@settings(max_examples=50, deadline=None)
def test_documents_read_back_equal(tmp_path_factory, documents):
    wanted = [[line.strip() for line in lines if line.strip()] for lines in documents]
    file = save(tmp_path_factory.mktemp("t") / "a.txt", "\n\n".join("\n".join(lines) for lines in wanted if lines))
    if any(wanted):
        assert [text.split("\n") for *_, text in texts(file)] == [lines for lines in wanted if lines]


def test_a_folder_stands_for_its_files(tmp_path):
    save(tmp_path / "b.txt", "second\n\nthird\n")
    save(tmp_path / "a" / "z.jsonl.gz", json.dumps({"text": "first\nof two lines", "url": "x"}))
    save(tmp_path / ".git" / "no.txt", "hidden")
    save(tmp_path / ".DS_Store", b"\x00")
    wanted = [
        ("a/z.jsonl.gz-0", "a/z.jsonl.gz:1", "first\nof two lines"),
        ("b.txt-0", "b.txt:1", "second"),
        ("b.txt-1", "b.txt:3", "third"),
    ]
    assert texts(tmp_path) == wanted
    assert texts(tmp_path, max_rows=2) == wanted[:2]
    save(tmp_path / "b.jsonl", json.dumps({"text": "first\nof two lines"}))
    assert [id for id, *_ in texts(tmp_path, drop_duplicates=True)] == ["a/z.jsonl.gz-0", "b.txt-0", "b.txt-1"]
    held = spec(train=str(tmp_path), dev=0.25)
    train, dev = (read_part("rows", part, held).examples for part in ("train", "dev"))
    assert len(train) == 3 and len(dev) == 1 and not {e.id for e in train} & {e.id for e in dev}


def test_a_file_may_be_one_document(tmp_path):
    for name in ("one", "two"):
        save(tmp_path / name, f"{name}\n\nand more\n")
    assert texts(tmp_path, format="document") == [
        ("one-0", "one:1", "one\nand more"),
        ("two-0", "two:1", "two\nand more"),
    ]


def test_a_document_without_an_end_comes_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "DOCUMENT", 20)
    file = save(tmp_path / "a.txt", "".join(f"line number {i}\n" for i in range(5)) + "\nlast\n")
    parts = ["line number 0\nline number 1", "line number 2\nline number 3", "line number 4", "last"]
    assert [text for *_, text in texts(file)] == parts


MEGABYTE = b"word " * 200_000
FAULTS = {
    "binary": ("a.txt", b"\x89PNG\r\n\x1a\n\0\0", {}, r"a\.txt:1: byte 0x89 in .* is not UTF-8"),
    "gzip without its suffix": ("a.txt", gzip.compress(b"text"), {}, r"a\.txt:1: (byte 0x8B|holds NUL)"),
    "no gzip": ("a.txt.gz", None, {}, r"a\.txt\.gz: not a whole gzip file"),
    "UTF-16": ("a.txt", "words".encode("utf-16-le"), {}, r"a\.txt:1: holds NUL bytes; expected text in UTF-8"),
    "a line of a megabyte": ("a.txt", b"short\n" + MEGABYTE, {}, r"a\.txt:2: a line of more than 524,288 characters"),
    "a megabyte as a document": ("a", MEGABYTE, {"format": "document"}, r"a:1: a line of more than 524,288"),
    "blank lines": ("a.txt", b"\n \n", {}, r"a\.txt: the data set is empty"),
    "a folder of other files": ("in/a.pdf", b"x", {}, r"a\.pdf: file suffix '\.pdf' is unknown; .*, or move the file out"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "more", "message"), FAULTS.values(), ids=FAULTS)
def test_what_is_no_text_is_named(tmp_path, name, content, more, message):
    path = tmp_path / name
    if content is None:
        path.write_bytes(b"plain")
    else:
        save(path, content)
    with pytest.raises(RoadError, match=message):
        read(str(path.parent if "/" in name else path), spec(**more))


def test_a_bad_line_costs_its_document_alone(tmp_path):
    file = save(tmp_path / "a.txt", b"one\n\ntwo\n\xff\nmore of two\n\xff\n\nthree\n")
    reading = read(file, spec(skip_bad=1))
    assert [(e.id, e.text_a) for e in reading.examples] == [("a-0", "one"), ("a-2", "three")]
    assert [message.split(": ")[0] for message in reading.skipped] == [f"{file}:4"]


def test_folders_that_cannot_be_read_whole_are_refused(tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RoadError, match=r"empty: the folder holds no files"):
        read(str(tmp_path / "empty"), spec())
    save(tmp_path / "rows" / "a.txt", "text")
    (tmp_path / "rows" / "more").symlink_to(tmp_path / "empty")
    with pytest.raises(RoadError, match=r"more: is a link to a folder, which is not followed"):
        read(str(tmp_path / "rows"), spec())
    (tmp_path / "rows" / "more").unlink()
    save(tmp_path / "rows" / "shut" / "b.txt", "text")
    scandir = os.scandir

    def denied(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(RoadError, match=r"shut: cannot be read: Permission denied"):
        read(str(tmp_path / "rows"), spec())
