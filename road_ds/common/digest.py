"""The identity of what is on disk and in memory: sha256 in hexadecimal digits, and whether a file still has it."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SEAL = "seal"


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes. OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """The hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(path: Path) -> dict[str, Any]:
    """A file's size in bytes and its hash: what `change` compares. OSError when it cannot be read."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def change(path: Path, written: Mapping[str, Any], hashed: bool = True) -> str:
    """What is wrong with a file that had a fingerprint when it was written, "" when nothing is; hashed: not its size alone."""
    try:
        size = path.stat().st_size
        if size != written["size"]:
            return f"the file has {size} bytes, expected {written['size']}"
        if hashed and file_sha256(path) != written["sha256"]:
            return "the file's bytes have changed (sha256)"
    except FileNotFoundError:
        return "the file is missing"
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    return ""


def sealed(value: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object that holds the hash of the rest of it, so that `unsealed` sees any change."""
    return {**value, SEAL: text_sha256(json.dumps(value))}


def unsealed(path: Path) -> dict[str, Any]:
    """The object that was sealed in a file. ValueError that says what is wrong with it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError("the file is missing") from None
    except OSError as error:
        raise ValueError(f"the file cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ValueError("the file is nested too deeply") from None
    seal = value.pop(SEAL, None) if isinstance(value, dict) else None
    if seal is None or sealed(value)[SEAL] != seal:
        raise ValueError("the file's bytes have changed (sha256)")
    return value
