"""Files, manifests and folders hold against any change: it is seen, and said in words."""

import json
import os
import shutil
from pathlib import Path

import pytest

from road_ds.common import sealed
from road_ds.common.errors import RoadError
from road_ds.common.sealed import (
    MANIFEST,
    Damaged,
    Fingerprint,
    Manifest,
    check,
    commit,
    read_manifest,
    seal,
    verify,
    with_seal,
    write_manifest,
)


class Facts(Manifest):
    """What the folders of these tests say of themselves."""

    run: str
    step: int


def written(folder: Path, text: str = "words", **facts) -> Path:
    """A sealed folder with one file in a folder of its own."""
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)
    seal(folder, Facts, {"run": "a", "step": 10, **facts})
    return folder


def flips(path: Path):
    """Each bit of a file changed in turn."""
    whole = path.read_bytes()
    with path.open("r+b", buffering=0) as file:  # in place: disks take their time to empty a file and write it anew

        def write(place: int, byte: int) -> None:
            file.seek(place)
            file.write(bytes([byte]))

        for bit in range(8 * len(whole)):
            byte = whole[bit // 8]
            write(bit // 8, byte ^ 1 << bit % 8)
            yield bit
            write(bit // 8, byte)


def test_what_has_changed_about_a_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"some bytes")
    then = Fingerprint.of(path)
    check(path, then)
    path.write_bytes(b"same bytes")
    with pytest.raises(Damaged, match=rf"^{path}: has changed since it was saved \(sha256 differs\)$"):
        check(path, then)
    check(path, then, hashed=False)
    path.write_bytes(b"less")
    with pytest.raises(Damaged, match=rf"^{path}: has 4 bytes, expected 10$"):
        check(path, then)
    path.unlink()
    with pytest.raises(Damaged, match=rf"^{path}: is missing$"):
        check(path, then)


class Words(Manifest):
    """Facts of every kind of value."""

    names: list[str]
    score: float
    by: dict[str, bool | None]


WORDS = {"files": {}, "names": ["ä", '"', ',\n  "seal": "'], "score": 1e-05, "by": {"b": None, "a": True}}


def test_a_manifest_comes_back_and_any_changed_bit_is_seen(tmp_path):
    path = tmp_path / "file.json"
    write_manifest(path, Words(**WORDS))
    assert read_manifest(path, Words).model_dump() == WORDS
    assert json.loads(path.read_text()).keys() == {*WORDS, "seal"}
    for _ in flips(path):
        with pytest.raises(Damaged, match=str(path)):
            read_manifest(path, Words)


@pytest.mark.parametrize("text", ["", "[]", "{}", "1", json.dumps(WORDS), "[" * 10**5])
def test_what_was_never_sealed_is_refused(tmp_path, text):
    (tmp_path / "file.json").write_text(text)
    with pytest.raises(Damaged, match=r"file\.json: does not end with its own hash"):
        read_manifest(tmp_path / "file.json", Words)


def test_a_manifest_that_is_not_there_or_cannot_be_read(tmp_path):
    with pytest.raises(Damaged, match=r"file\.json: is missing"):
        read_manifest(tmp_path / "file.json", Words)
    with pytest.raises(Damaged, match=f"{tmp_path}: cannot be read: Is a directory"):
        read_manifest(tmp_path, Words)


def resealed(folder: Path, change) -> None:
    """The manifest changed by someone who computes its hash anew."""
    facts = json.loads((folder / MANIFEST).read_text())
    change(facts)
    facts.pop("seal")
    (folder / MANIFEST).write_bytes(with_seal(facts))


def test_what_was_sealed_comes_back(tmp_path):
    folder = written(tmp_path / "a")
    found = verify(folder, Facts)
    assert (found.run, found.step, list(found.files)) == ("a", 10, ["inner/file"])


@pytest.mark.parametrize("name", ["inner/file", MANIFEST])
def test_every_bit_of_every_file_counts(tmp_path, name):
    for _ in flips(written(tmp_path / "a") / name):
        with pytest.raises(Damaged, match=str(tmp_path)):
            verify(tmp_path / "a", Facts)


def test_one_bit_of_the_step_is_seen(tmp_path):
    path = written(tmp_path / "a") / MANIFEST
    path.write_text(path.read_text().replace('"step": 10', '"step": 14'))
    with pytest.raises(Damaged, match=r"manifest\.json: has changed since it was saved \(sha256 differs\)"):
        verify(tmp_path / "a", Facts)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda facts: facts.pop("step"), "step: Field required"),
        (lambda facts: facts.update(step="ten"), "step: Input should be a valid integer"),
        (lambda facts: facts.update(files=[]), "files: Input should be an object"),
        (lambda facts: facts["files"].update({"../out": {"size": 0, "sha256": ""}}), "names a file outside its folder"),
        (lambda facts: facts["files"].update({"none": {"size": 0, "sha256": ""}}), "none: is missing"),
        (lambda facts: facts["files"].clear(), "inner/file: is not in the manifest"),
    ],
)
def test_a_manifest_that_somebody_wrote(tmp_path, change, message):
    resealed(written(tmp_path / "a"), change)
    with pytest.raises(Damaged, match=message):
        verify(tmp_path / "a", Facts)


def test_a_manifest_of_before_is_refused_in_one_sentence(tmp_path):
    path = written(tmp_path / "a") / MANIFEST
    facts = json.loads(path.read_text())
    facts.pop("seal")
    path.write_text(json.dumps(facts, indent=1))
    with pytest.raises(
        Damaged,
        match=r"json: does not end with its own hash: .* of road_ds before 2026-11-27$",
    ):
        verify(tmp_path / "a", Facts)


@pytest.mark.parametrize(
    ("owner", "name", "file"), [(Path, "read_bytes", "manifest.json"), (sealed, "file_sha256", "inner/file")]
)
def test_what_may_not_be_read_is_not_damaged(tmp_path, monkeypatch, owner, name, file):
    """Damaged ones are renamed; this one may be whole."""
    folder = written(tmp_path / "a")

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(owner, name, refuse)
    with pytest.raises(RoadError, match=f"{file}: cannot be read: give this user the right") as caught:
        verify(folder, Facts)
    assert not isinstance(caught.value, Damaged)


@pytest.mark.parametrize("moves", [0, 1])
def test_a_kill_while_a_folder_is_replaced_leaves_one_that_counts(tmp_path, monkeypatch, moves):
    """Also where only one is kept."""
    final, replace = tmp_path / "step-00000002", os.replace
    commit(written(tmp_path / "one", "one"), final)
    done = []

    def kill(source, target):
        if len(done) == moves:
            raise KeyboardInterrupt
        done.append(target)
        replace(source, target)

    monkeypatch.setattr(sealed.os, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        commit(written(tmp_path / "two", "two"), final)
    monkeypatch.undo()
    (left,) = tmp_path.glob("step-*")
    assert verify(left, Facts) and (left / "inner" / "file").read_text() == "one"
    shutil.rmtree(tmp_path / "two")
    commit(written(tmp_path / "two", "two"), final)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"] and (final / "inner" / "file").read_text() == "two"
