"""Where raw rows lie: a file, the files of a folder, a split; and which format each has."""

import os
from dataclasses import dataclass
from pathlib import Path

from road_ds.common.errors import RoadError
from road_ds.common.strict_json import load_json, quote
from road_ds.config.road import DatasetSpec
from road_ds.data.formats import FORMATS, SUFFIXES, is_json_lines


@dataclass(frozen=True)
class Piece:
    """One file or split of a source. origin: as faults call it; name: as places call it; stem: what ids begin with."""

    source: str
    format: str
    origin: str
    name: str
    stem: str


def origin_of(source: str, spec: DatasetSpec) -> str:
    """A source as messages call it."""
    return f"{spec.path} {source}" if spec.format in ("hub", "disk") else source


def pieces(source: str, spec: DatasetSpec) -> list[Piece]:
    """The files of a source in order, each with its format; or its split. RoadError: no such file, or no known format."""
    if spec.format in ("hub", "disk"):
        if not spec.path:
            raise RoadError(
                f'format "{spec.format}" needs path: ' + ("a hub name" if spec.format == "hub" else "a folder")
            )
        origin = origin_of(source, spec)
        return [
            Piece(source, spec.format, origin, origin if spec.format == "hub" else Path(origin).name, Path(source).stem)
        ]
    files = files_of(source)
    lone = not os.path.isdir(source)
    return [
        Piece(str(path), _format(path, spec, lone), str(path), name, path.stem if lone else name)
        for name, path in files.items()
    ]


def files_of(source: str) -> dict[str, Path]:
    """The files that a source stands for: itself by its name, or those of a folder by their names there, in order.

    What is hidden (.git, .DS_Store) is no part of a folder. RoadError where it holds nothing else, or cannot be read whole.
    """
    if not os.path.isdir(source):
        return {Path(source).name: Path(source)}

    def refuse(error: OSError) -> None:
        raise RoadError(f"{error.filename}: cannot be read: {error.strerror}") from None

    found = []
    for folder, inside, names in os.walk(source, onerror=refuse):
        inside[:] = [name for name in inside if name[0] != "."]
        if linked := [name for name in inside if os.path.islink(os.path.join(folder, name))]:
            raise RoadError(
                f"{os.path.join(folder, linked[0])}: is a link to a folder, which is not followed: give that folder"
            )
        found += [Path(folder, name) for name in names if name[0] != "."]
    if not found:
        raise RoadError(f"{source}: the folder holds no files; expected one or more with rows")
    return {path.relative_to(source).as_posix(): path for path in sorted(found)}


def splits_of(folder: str) -> list[str]:
    """The names of the splits in a folder that save_to_disk of datasets wrote; none of anything else."""
    several, one = Path(folder, "dataset_dict.json"), Path(folder, "state.json")
    if several.is_file():
        return list(load_json(several)["splits"])
    return [load_json(one).get("_split") or "train"] if one.is_file() else []


def format_of_texts(source: str) -> str | None:
    """The format of texts that are no documents: "lines" for a .txt file, or a folder of them; else by each file's suffix."""
    suffixes = {Path(name.removesuffix(".gz")).suffix.lower() for name in files_of(source)}
    return "lines" if suffixes == {".txt"} else None


def _format(path: Path, spec: DatasetSpec, lone: bool) -> str:
    suffix = Path(str(path).removesuffix(".gz")).suffix.lower()
    format = spec.format or SUFFIXES.get(suffix)
    if format not in FORMATS:
        what = f"format {quote(spec.format)}" if spec.format else f"{path}: file suffix {quote(suffix)}"
        away = "" if lone or spec.format else ", or move the file out of the folder"
        raise RoadError(f"{what} is unknown; set format to one of {', '.join(FORMATS)}{away}")
    if not path.is_file():
        raise RoadError(f"{path} does not exist; expected a file or a folder of files (looked at {path.absolute()})")
    return "jsonl" if spec.format is None and suffix == ".json" and is_json_lines(str(path)) else format
