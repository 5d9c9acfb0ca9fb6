"""Folders that are whole or not there: staged, hashed, renamed in one move; and held against their hashes when read."""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from road_ds.common.digest import file_sha256
from road_ds.common.errors import RoadError

MANIFEST, DIGEST = "manifest.json", "manifest.sha256"


class Damaged(RoadError):
    """A folder in which something is missing, has changed or cannot be read from the disk."""


class Fingerprint(BaseModel):
    """What a file's bytes were when it was written."""

    size: int
    sha256: str


class Manifest(BaseModel):
    """What a folder says of itself; a kind of folder adds its facts."""

    model_config = ConfigDict(strict=True)

    run: str  # the id of the run that wrote it
    step: int  # steps done by then
    files: dict[str, Fingerprint]


Facts = TypeVar("Facts", bound=Manifest)


def seal(staged: Path, facts: Mapping[str, Any]) -> None:
    """Writes manifest.json, the given facts with size and sha256 of every other file, and beside it its own sha256.

    All is on the disk when it returns.
    """
    files = {str(path.relative_to(staged)): _fingerprint(path).model_dump() for path in _files(staged)}
    (staged / MANIFEST).write_text(json.dumps({**facts, "files": files}, indent=1), encoding="utf-8")
    (staged / DIGEST).write_text(_digest_line(staged), encoding="utf-8")
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


def read_manifest(folder: Path, kind: type[Facts]) -> Facts:
    """A folder's manifest, held against its own hash before anything in it is believed.

    Damaged when it does not hold, RoadError when this user may not read it.
    """
    with _read_faults_named():
        if not (folder / MANIFEST).exists():
            raise Damaged(f"{folder / MANIFEST}: is missing")
        if not (folder / DIGEST).exists():
            raise Damaged(
                f"{folder / DIGEST}: is missing; road_ds before 2026-11-27 wrote none: export with the version that saved "
                "it, then give the exported folder as road.model"
            )
        if (folder / DIGEST).read_bytes() != _digest_line(folder).encode():
            raise Damaged(f"{folder / MANIFEST}: has changed since it was saved (sha256 differs from {DIGEST})")
        text = (folder / MANIFEST).read_bytes()
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        fault = error.errors()[0]
        raise Damaged(f"{folder / MANIFEST}: {'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None


def verify(folder: Path, kind: type[Facts]) -> Facts:
    """A folder's manifest, once the manifest's hash and every file's size and hash have been compared.

    Damaged names the file; RoadError when this user may not read it.
    """
    manifest = read_manifest(folder, kind)
    with _read_faults_named():
        for name, wanted in manifest.files.items():
            path = folder / name
            if folder.resolve() not in path.resolve().parents:
                raise Damaged(f"{folder / MANIFEST}: names a file outside its folder: {name!r}")
            if not path.is_file():
                raise Damaged(f"{path}: is missing")
            if path.stat().st_size != wanted.size:
                raise Damaged(f"{path}: has {path.stat().st_size} bytes, expected {wanted.size}")
            if _fingerprint(path) != wanted:
                raise Damaged(f"{path}: has changed since it was saved (sha256 differs)")
        extra = {str(path.relative_to(folder)) for path in _files(folder)} - {*manifest.files, MANIFEST, DIGEST}
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
    except OSError as error:
        raise Damaged(f"{error.filename}: cannot be read: {error.strerror}") from None


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def _fingerprint(path: Path) -> Fingerprint:
    return Fingerprint(size=path.stat().st_size, sha256=file_sha256(path))


def _digest_line(folder: Path) -> str:
    """What sha256sum prints of a manifest."""
    return f"{file_sha256(folder / MANIFEST)}  {MANIFEST}\n"


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
