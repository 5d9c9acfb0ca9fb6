"""Curves of tiny runs that are not drawn: matplotlib would take half of such a run's time."""

import base64
from pathlib import Path
from typing import Any

from road_ds.engine import curves

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUBAScY42YAAAAASUVORK5CYII="

drawn = curves._write


def sketched(figure: Any, path: str | Path) -> None:
    """Writes a picture of one pixel for the figure, whose panels are all made."""
    Path(path).write_bytes(base64.b64decode(PIXEL))
