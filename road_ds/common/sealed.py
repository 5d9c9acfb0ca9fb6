"""What is on the disk held against its hashes: files, manifests that check themselves, folders that are whole or not there."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from road_ds.common.digest import file_sha256
from road_ds.common.errors import RoadError
from road_ds.common.log import write_whole

MANIFEST = "manifest.json"
SEAL = b',\n  "seal": "'  # the last entry of a manifest: the sha256 of all bytes before it


class Damaged(RoadError):
    """Something on the disk is missing, has changed or cannot be read."""


class Fingerprint(BaseModel):
    """What a file's bytes were when it was written."""

    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "Fingerprint":
        """What they are now. OSError when they cannot be read."""
        return cls(size=path.stat().st_size, sha256=file_sha256(path))


class Manifest(BaseModel):
    """What the files beside it are; a kind of manifest adds its facts."""

    model_config = ConfigDict(strict=True)
    before: ClassVar[str] = ""  # what to do with one that has no hash of itself

    files: dict[str, Fingerprint]


Kind = TypeVar("Kind", bound=Manifest)


def fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """What every file in a folder is, by its path inside. OSError when one cannot be read."""
    return {name: Fingerprint.of(folder / name) for name in _names(folder)}


def check(path: Path, written: Fingerprint, hashed: bool = True) -> None:
    """Damaged where a file is not what it was, RoadError where this user may not read it; hashed: not its size alone."""
    with _read_faults_named():
        size = path.stat().st_size
        if size != written.size:
            raise Damaged(f"{path}: has {size} bytes, expected {written.size}")
        if hashed and file_sha256(path) != written.sha256:
            raise Damaged(f"{path}: has changed since it was saved (sha256 differs)")


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Writes a manifest in one move, so that `read_manifest` sees any change of its bytes."""
    write_whole(path, with_seal(manifest.model_dump()))


def read_manifest(path: Path, kind: type[Kind]) -> Kind:
    """A manifest, held against its own hash before anything in it is believed.

    Damaged when it does not hold, RoadError when this user may not read it.
    """
    with _read_faults_named():
        data = path.read_bytes()
    body, seal, _ = data.rpartition(SEAL)
    if not seal:
        raise Damaged(
            f"{path}: does not end with its own hash: it is damaged, or of road_ds before 2026-11-27{kind.before}"
        )
    if data != _sealed(body):
        raise Damaged(f"{path}: has changed since it was saved (sha256 differs)")
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        fault = error.errors()[0]
        raise Damaged(f"{path}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def with_seal(value: Mapping[str, Any]) -> bytes:
    """A JSON object as a file that holds, as its last entry, the hash of all before."""
    return _sealed(json.dumps(value, indent=2).encode()[:-2])


def seal(staged: Path, kind: type[Manifest], facts: Mapping[str, Any]) -> None:
    """Writes a folder's manifest of this kind: the given facts, and what every file is. All is on the disk when it returns."""
    write_manifest(staged / MANIFEST, kind(files=fingerprints(staged), **facts))
    for path in [*staged.rglob("*"), staged]:
        _sync(path)


def commit(staged: Path, final: Path) -> None:
    """Gives a sealed folder its name, in one move; what has that name already is `<name>.old` until then."""
    before = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(before, ignore_errors=True)
        os.replace(final, before)
    os.replace(staged, final)
    _sync(final.parent)
    shutil.rmtree(before, ignore_errors=True)


def verify(folder: Path, kind: type[Kind], hashed: bool = True) -> Kind:
    """A folder's manifest, once it and every file have been held against their hashes; hashed: not the files' size alone.

    Damaged names the file; RoadError when this user may not read it.
    """
    manifest = read_manifest(folder / MANIFEST, kind)
    with _read_faults_named():
        for name, written in manifest.files.items():
            if folder.resolve() not in (folder / name).resolve().parents:
                raise Damaged(f"{folder / MANIFEST}: names a file outside its folder: {name!r}")
            check(folder / name, written, hashed)
        extra = {*_names(folder)} - {*manifest.files, MANIFEST}
    if extra:
        raise Damaged(f"{folder / min(extra)}: is not in the manifest")
    return manifest


@contextmanager
def _read_faults_named() -> Iterator[None]:
    """Tells what this user may not read, which is whole for all that is known, from what the disk has lost."""
    try:
        yield
    except PermissionError as error:
        raise RoadError(f"{error.filename}: cannot be read: give this user the right to read it") from None
    except FileNotFoundError as error:
        raise Damaged(f"{error.filename}: is missing") from None
    except OSError as error:
        raise Damaged(f"{error.filename}: cannot be read: {error.strerror}") from None


def _names(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in sorted(folder.rglob("*")) if path.is_file()]


def _sealed(body: bytes) -> bytes:
    return body + SEAL + hashlib.sha256(body).hexdigest().encode() + b'"\n}\n'


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
