"""Fingerprints of files and seals of JSON objects: any change is seen, and said in words."""

import json

import pytest

from road_ds.common.digest import change, fingerprint, sealed, unsealed


def test_what_has_changed_about_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some bytes")
    written = fingerprint(path)
    assert change(path, written) == ""
    path.write_bytes(b"same bytes")
    assert change(path, written) == "the file's bytes have changed (sha256)"
    assert change(path, written, hashed=False) == ""
    path.write_bytes(b"less")
    assert change(path, written) == "the file has 4 bytes, expected 10"
    path.unlink()
    assert change(path, written) == "the file is missing"


VALUE = {"step": 10, "names": ["ä", '"'], "score": 0.1, "by": {"b": None, "a": True}}


def test_a_sealed_object_comes_back_and_any_changed_bit_is_seen(tmp_path):
    path = tmp_path / "file.json"
    path.write_text(json.dumps(sealed(VALUE), indent=2, ensure_ascii=False), encoding="utf-8")
    whole = path.read_bytes()
    assert unsealed(path) == VALUE
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(ValueError):
            unsealed(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "1", json.dumps(VALUE), "[" * 10**5])
def test_what_was_never_sealed_is_refused(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(ValueError):
        unsealed(tmp_path / "file.json")


def test_a_sealed_file_that_is_not_there_or_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="the file is missing"):
        unsealed(tmp_path / "file.json")
    with pytest.raises(ValueError, match="the file cannot be read: Is a directory"):
        unsealed(tmp_path)
