"""A sealed folder holds against any change, its manifest included."""

import json
import os
import shutil
from pathlib import Path

import pytest

from road_ds.common import sealed
from road_ds.common.digest import file_sha256
from road_ds.common.errors import RoadError
from road_ds.common.sealed import DIGEST, MANIFEST, Damaged, Manifest, commit, seal, verify


def written(folder: Path, text: str = "words", **facts) -> Path:
    """A sealed folder with one file in a folder of its own."""
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "file").write_text(text)
    seal(folder, {"run": "a", "step": 10, **facts})
    return folder


def resealed(folder: Path, change) -> None:
    """The manifest changed by someone who computes its hash anew."""
    facts = json.loads((folder / MANIFEST).read_text())
    change(facts)
    (folder / MANIFEST).write_text(json.dumps(facts))
    (folder / DIGEST).write_text(f"{file_sha256(folder / MANIFEST)}  {MANIFEST}\n")


def test_what_was_sealed_comes_back(tmp_path):
    folder = written(tmp_path / "a")
    found = verify(folder, Manifest)
    assert (found.run, found.step, list(found.files)) == ("a", 10, ["inner/file"])
    assert os.system(f"cd {folder} && sha256sum --check --status {DIGEST}") == 0


@pytest.mark.parametrize("name", ["inner/file", MANIFEST, DIGEST])
def test_every_bit_of_every_file_counts(tmp_path, name):
    path = written(tmp_path / "a") / name
    whole = path.read_bytes()
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        path.write_bytes(data)
        with pytest.raises(Damaged, match=str(tmp_path)):
            verify(tmp_path / "a", Manifest)


def test_one_bit_of_the_step_is_seen(tmp_path):
    path = written(tmp_path / "a") / MANIFEST
    path.write_text(path.read_text().replace('"step": 10', '"step": 14'))
    with pytest.raises(
        Damaged, match=r"manifest\.json: has changed since it was saved \(sha256 differs from manifest\.sha256\)"
    ):
        verify(tmp_path / "a", Manifest)


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
        verify(tmp_path / "a", Manifest)


def test_a_manifest_of_before_is_refused_in_one_sentence(tmp_path):
    (written(tmp_path / "a") / DIGEST).unlink()
    with pytest.raises(
        Damaged, match=r"manifest\.sha256: is missing; road_ds before 2026-11-27 wrote none: export with"
    ):
        verify(tmp_path / "a", Manifest)


def test_what_may_not_be_read_is_not_damaged(tmp_path, monkeypatch):
    """Damaged ones are renamed; this one may be whole."""

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(sealed, "file_sha256", refuse)
    with pytest.raises(RoadError, match=r"manifest\.json: cannot be read: give this user the right") as caught:
        verify(_sealed_before(tmp_path, monkeypatch), Manifest)
    assert not isinstance(caught.value, Damaged)


def _sealed_before(tmp_path, monkeypatch) -> Path:
    with monkeypatch.context() as whole:
        whole.setattr(sealed, "file_sha256", file_sha256)
        return written(tmp_path / "a")


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
    assert verify(left, Manifest) and (left / "inner" / "file").read_text() == "one"
    shutil.rmtree(tmp_path / "two")
    commit(written(tmp_path / "two", "two"), final)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"] and (final / "inner" / "file").read_text() == "two"
