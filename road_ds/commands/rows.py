"""The rows that a command line names."""

from typing import Any

from road_ds.config.file import override
from road_ds.config.road import DatasetSpec
from road_ds.config.settings import validated


def read_rows(source: str, settings: list[str], scored: bool = True) -> list[Any]:
    """The examples of a file or split, with the settings of `road.datasets` given as KEY=VALUE; labels where `scored`."""
    from road_ds.data.sources import read_part

    block: dict[str, Any] = {"task": "given", "dev": source}
    for assignment in settings:
        override(block, assignment)
    return read_part("given", "dev", validated(DatasetSpec, block, "--set"), scored).examples
