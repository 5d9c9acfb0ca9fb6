"""sha256 of files and texts, in hexadecimal digits."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes. OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def text_sha256(text: str) -> str:
    """The hash of a text in UTF-8."""
    return hashlib.sha256(text.encode()).hexdigest()
