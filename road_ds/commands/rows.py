"""The rows that a command line names."""

from typing import Any

from road_ds.config.file import override
from road_ds.config.road import DatasetSpec
from road_ds.config.settings import validated


def source_of(name: str, settings: list[str], scored: bool = True) -> Any:
    """The rows of a file or split, with the settings of `road.datasets` given as KEY=VALUE; labels where `scored`."""
    from road_ds.data.sources import Source

    block: dict[str, Any] = {"task": "given", "dev": name}
    for assignment in settings:
        override(block, assignment)
    return Source.of("given", "dev", validated(DatasetSpec, block, "--set"), scored)


def read_rows(name: str, settings: list[str], scored: bool = True) -> list[Any]:
    """The examples of `source_of`, all at once."""
    from road_ds.data.readers import Reading

    return list(source_of(name, settings, scored).examples(Reading()))
