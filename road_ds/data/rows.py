"""The rows of a run: every data set's encoded train part, and the dev parts that are given."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from road_ds.common.errors import Faults
from road_ds.config.road import DatasetSpec
from road_ds.data.features import FeatureSet, load_features


@dataclass(frozen=True)
class Rows:
    """Encoded rows by data set; `dev` has no entry for one without a dev part."""

    train: dict[str, FeatureSet]
    dev: dict[str, FeatureSet]

    @classmethod
    def load(
        cls,
        datasets: Mapping[str, DatasetSpec],
        tasks: Mapping[str, Any],
        tokenizer: Any,
        cache: str | Path,
        faults: Faults | None = None,
        verify: bool = True,
    ) -> "Rows":
        """The rows of data sets, each encoded for its task; one without a task is left out.

        tasks: by data set. verify: whether kept features are hashed. All faults are raised together, or collected in `faults`.
        """
        own, train, dev = faults or Faults(), {}, {}
        for name, task in tasks.items():
            spec = datasets[name]
            with own.caught():
                train[name] = load_features(name, "train", spec, task, tokenizer, cache, verify)
            if spec.dev is not None:
                with own.caught():
                    dev[name] = load_features(name, "dev", spec, task, tokenizer, cache, verify)
        if faults is None:
            own.end()
        return cls(train, dev)

    def fingerprints(self) -> dict[str, dict[str, str]]:
        """The content hash of every data set by part: rows, reader settings, tokenizer, task settings."""
        parts = {"train": self.train, "dev": self.dev}
        return {part: {name: rows.manifest.key for name, rows in found.items()} for part, found in parts.items()}

    @property
    def pairs(self) -> dict[str, bool | None]:
        """By data set whether its train rows are pairs of texts, None where some are."""
        return {name: rows.pairs for name, rows in self.train.items()}

    def remarks(self) -> list[str]:
        """What a user should know of the rows before they are trained on."""
        without = [f"{name}: no dev part: it will not be evaluated" for name in self.train if name not in self.dev]
        parts = (("train", self.train), ("dev", self.dev))
        unread = [
            f"{name} {part}: {said}" for part, found in parts for name, rows in found.items() if (said := rows.unread())
        ]
        skipped = [(name, rows.manifest.skipped) for name, rows in [*self.train.items(), *self.dev.items()]]
        return [
            *without,
            *unread,
            *(f"{n}: {len(bad)} bad rows were skipped, the first: {bad[0]}" for n, bad in skipped if bad),
        ]
