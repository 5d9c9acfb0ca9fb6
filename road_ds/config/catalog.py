"""Known data sets by name: where their rows are, how they are read, which task and labels they have. catalog.json is the table.

`"datasets": ["snli", "qqp"]` uses the entries as they are; `{"snli": {"path": "folder"}}` reads the publisher's original
files or a save_to_disk folder there; `{"small": {"catalog": "snli", "max_rows": 1000}}` is one more of the same kind.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from road_ds.common.errors import RoadError, nearest
from road_ds.common.hub import expanded
from road_ds.common.strict_json import load_json
from road_ds.config.settings import Strict, validated

Settings = dict[str, Any]  # keys of road.datasets


class Hub(Strict):
    """Rows on the Hugging Face hub, in repositories of data files: splits by part."""

    path: str
    config: str | None = None
    parts: dict[str, str]
    settings: Settings = {}


class Files(Strict):
    """Rows as the publisher gives them: file names in one folder by part (each may end in .gz), read with these settings."""

    format: str
    parts: dict[str, str]
    settings: Settings = {}
    of_part: dict[str, Settings] = {}  # what differs in one part


class Entry(Strict):
    """A data set: rows = how many its parts have after what `dropped` says, bad ones included, where that is published.

    Another count is a warning. docs/data_sets.md says where each entry was looked up.
    """

    task: str
    metric: str
    train: str = "train"
    dev: str | float = "dev"
    hub: Hub | None = None
    files: list[Files]
    settings: Settings = {}
    rows: dict[str, int] = {}
    dropped: str = "nothing"
    note: str = ""
    licence: str
    citation: str


class Table(Strict):
    """What catalog.json holds. tasks: those of the paper's four kinds, and one for each GLUE set whose labels are its own."""

    tasks: dict[str, Settings]
    datasets: dict[str, Entry]


def _table() -> Table:
    path = Path(__file__).with_name("catalog.json")
    return validated(Table, load_json(path), str(path))


_TABLE = _table()
TASKS: Mapping[str, Settings] = _TABLE.tasks
CATALOG: Mapping[str, Entry] = _TABLE.datasets
THREE = {"train": "train", "dev": "validation", "test": "test"}  # a hub's usual splits
GLUE = ("cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli")


def entry(name: str) -> Entry:
    """The catalog's entry. RoadError with the nearest name where there is none."""
    if name not in CATALOG:
        raise RoadError(
            f"the catalog has no data set {name!r}{nearest(name, CATALOG)}; it has {', '.join(CATALOG)}. "
            'A data set of your own is a block with "task" and "train"'
        )
    return CATALOG[name]


def expand(road: Settings) -> Settings:
    """The `"road"` block with every catalog name as a full block, and the tasks that these need.

    A block with "catalog" is of the catalog; so is one whose name is in it and that gives neither "train" nor "format".
    RoadError for a name that the catalog does not have.
    """
    datasets = road.get("datasets")
    if isinstance(datasets, list):
        if not all(isinstance(item, str | dict) for item in datasets):
            raise RoadError("datasets: expected names of the catalog, or blocks {name: {...}}")
        named: Settings = {}
        for item in datasets:
            for name, block in ({item: {"catalog": item}} if isinstance(item, str) else item).items():
                if name in named:
                    raise RoadError(f"datasets names {name!r} twice; give one of them another name and a catalog key")
                named[name] = block
        datasets = named
    if not isinstance(datasets, dict):
        return road
    tasks = road.get("tasks", {})
    expanded: Settings = {}
    for name, block in datasets.items():
        expanded[name] = block
        if not isinstance(block, dict):
            continue
        known = block.get("catalog", name if name in CATALOG and not {"train", "format"} & block.keys() else None)
        if not isinstance(known, str):
            if not {"task", "train", "format", "catalog"} & block.keys():
                raise RoadError(
                    f"datasets.{name}: no data set of the catalog has this name{nearest(name, CATALOG)} (one of your own "
                    'needs "task" and "train")'
                )
            continue
        found = entry(known)
        expanded[name] = {"catalog": known, "task": found.task, "train": found.train, "dev": found.dev, **block}
        task = expanded[name]["task"]
        if isinstance(tasks, dict) and isinstance(task, str) and task not in tasks and task in TASKS:
            tasks = {**tasks, task: TASKS[task]}
    return {**road, "tasks": tasks, "datasets": expanded}


def sources(name: str, part: str, path: str | None) -> tuple[str, Settings]:
    """Where a part's rows are, and the settings that read them: {"format", "path", ...}; the first is file or split.

    `path` is a save_to_disk folder or one with the publisher's files; without it rows come from the hub, or from
    data/NAME if the hub has none. RoadError that says what to bring where there is no such part or file.
    """
    found = entry(name)
    if path is None and found.hub is None:
        path = f"data/{name}"
        if not Path(path).is_dir():
            why = found.note.rpartition(". ")[2]
            raise RoadError(f'no hub has its rows as data files ({why}); bring {bring(found)} to {path}, or set "path"')
    if path is None:
        assert found.hub is not None
        if part not in found.hub.parts:
            raise RoadError(
                f"the hub has no part {part!r}{nearest(part, found.hub.parts)}; it has {', '.join(found.hub.parts)}"
            )
        place = {"format": "hub", "path": found.hub.path, "config": found.hub.config}
        return found.hub.parts[part], {**found.settings, **found.hub.settings, **place}
    folder = expanded(path)
    if not folder.is_dir():
        raise RoadError(f"{path}: no such folder; expected one that save_to_disk wrote, or one with {bring(found)}")
    if any((folder / name).exists() for name in ("dataset_dict.json", "state.json")):
        hub = found.hub or Hub(path="", parts=THREE)
        return hub.parts.get(part, part), {**found.settings, **hub.settings, "format": "disk", "path": path}
    for files in found.files:
        for suffix in ("", ".gz"):
            if part in files.parts and (folder / (files.parts[part] + suffix)).is_file():
                own = {**found.settings, **files.settings, **files.of_part.get(part, {})}
                return str(folder / (files.parts[part] + suffix)), {**own, "format": files.format, "path": path}
    known = [name for files in found.files for name in files.parts]
    if part not in known:
        raise RoadError(f"{path}: no part {part!r}{nearest(part, known)}; there are {', '.join(dict.fromkeys(known))}")
    raise RoadError(f"{path}: holds no file for the part {part!r}; bring {bring(found, part)}")


def bring(found: Entry, part: str | None = None) -> str:
    """The publisher's file names, in words; each may end in .gz."""
    kinds = [
        " and ".join(dict.fromkeys(name for key, name in files.parts.items() if part in (None, key)))
        for files in found.files
    ]
    return ", or ".join(kind for kind in kinds if kind)
