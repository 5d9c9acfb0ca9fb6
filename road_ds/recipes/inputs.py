"""What a run is made from: settings, rows, models, the runs before it and the code, so that a change is seen and named."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from road_ds.common.digest import file_sha256, text_sha256
from road_ds.common.errors import RoadError
from road_ds.common.hub import local_file
from road_ds.common.log import versions, write_json
from road_ds.common.strict_json import flat_keys, quote
from road_ds.config.road import RoadConfig, models_of, unlabelled_of
from road_ds.data.sources import Part, Source
from road_ds.engine.resume import CHANGEABLE

FILE = "inputs.json"  # in the run folder
PARTS: tuple[Part, ...] = ("train", "dev")
TO_BE_MADE = "to be made"
# What decides on no number. Evaluations do, where the best one is exported.
WITHOUT_EFFECT = CHANGEABLE - {"road.evaluate_every", "road.patience"} | {"road.distill.cache"}

Inputs = dict[str, Any]
Missing = dict[str, str]  # how the names of such inputs begin -> why they cannot be read


def inputs_of(
    config: RoadConfig, ds: Mapping[str, Any], extra: Mapping[str, Any], before: Mapping[str, Path]
) -> tuple[Inputs, Missing]:
    """Everything that decides on a run's numbers, by a name that people understand; and the rows that are not there.

    before: the folders of the runs that it needs; their paths count as names, their results by content. Hub names count as
    they are, files and folders on disk by content.
    """
    found = {key: _named(value, before) for key, value in flat_keys({**ds, "road": config.model_dump()}).items()}
    found = {k: v for k, v in found.items() if not any(k == key or k.startswith(key + ".") for key in WITHOUT_EFFECT)}
    found |= {key: _named(value, before) for key, value in extra.items()}
    missing = {}
    for name, spec in config.datasets.items():
        for part in PARTS:
            if getattr(spec, part) is not None:
                rows = f"rows of {name}, {part}: "
                try:
                    source = Source.of(name, part, spec)
                    path = source.spec.path if source.spec.format == "disk" else source.source
                    if source.spec.format != "hub":
                        found[f"{rows}{path}"] = content(Path(str(path)))
                except RoadError as error:
                    missing[rows] = str(error)
    for name, file in unlabelled_of(config):
        try:
            found[f"neighbours of {name}: {file}"] = content(local_file(file))
        except RoadError as error:
            missing[f"neighbours of {name}: "] = str(error)
    for name in models_of(config):
        if local_file(name).exists() and not _inside(name, before):
            models = local_file(name) / "model"  # of a run folder only what it exported
            found[f"model {name}"] = content(models if models.is_dir() else local_file(name))
    found |= {f"run {name}": result_of(folder) for name, folder in before.items()}
    found["code"] = f"road_ds {versions().get('road_ds', 'not installed')}"
    return json.loads(json.dumps(found)), missing  # as it will be read back


def _inside(name: str, before: Mapping[str, Path]) -> bool:
    return any(Path(name).is_relative_to(folder) for folder in before.values())


def _named(value: Any, before: Mapping[str, Path]) -> Any:
    """A value with the folders of earlier runs as `{name}`: moving them all changes nothing."""
    if isinstance(value, list):
        return [_named(inner, before) for inner in value]
    for name, folder in before.items():
        if isinstance(value, str) and Path(value).is_relative_to(folder):
            return f"{{{name}}}{value.removeprefix(str(folder))}"
    return value


@cache
def content(path: Path) -> str:
    """The sha256 of a file, or of a folder's files and their names. RoadError where there is none."""
    try:
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
            names = "".join(f"{file.relative_to(path)} {content(file)}\n" for file in files)
            return text_sha256(names)
        return file_sha256(path)
    except OSError as error:
        raise RoadError(f"{path}: cannot be read: {error.strerror}: expected a data file") from None


def is_finished(folder: Path) -> bool:
    """Whether a run has ended as it should: its results are written last but for its status."""
    try:
        status = json.loads((folder / "status.json").read_text(encoding="utf-8"))["status"]
    except FileNotFoundError:
        status = "finished"  # an ensemble has none
    except (OSError, ValueError, KeyError):
        status = "unknown"
    return status == "finished" and (folder / "results.json").exists()


def result_of(folder: Path) -> str:
    """The identity of a finished run: another execution of the same settings is another one."""
    return file_sha256(folder / "results.json") if is_finished(folder) else TO_BE_MADE


def kept_inputs(folder: Path) -> Inputs | None:
    """What the run in a folder was made from, None where nothing says so."""
    try:
        return json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def keep_inputs(folder: Path, inputs: Inputs) -> None:
    """Notes in a run folder what its run is made from."""
    write_json(folder / FILE, inputs)


def differences(before: Inputs, now: Inputs) -> list[str]:
    """A line for each input that differs, both values shown."""
    changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
    return [f"{key}: {_shown(before.get(key))} -> {_shown(now.get(key))}" for key in changed]


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    return value[:12] if isinstance(value, str) and len(value) == 64 else quote(value)
