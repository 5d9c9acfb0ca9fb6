"""The GLUE table of a folder of models, and the zip of test predictions that its leaderboard takes."""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from road_ds.common.errors import RoadError
from road_ds.common.log import table, warn
from road_ds.config.catalog import CATALOG, GLUE, TASKS
from road_ds.config.road import DatasetSpec
from road_ds.data.readers import Example, distinct
from road_ds.data.sources import read_part
from road_ds.models.ensemble import Ensemble
from road_ds.models.predictor import Predictor
from road_ds.tasks.evaluation import Evaluated

# (data set, part) -> the leaderboard's file
FILES = {
    ("cola", "test"): "CoLA.tsv",
    ("sst2", "test"): "SST-2.tsv",
    ("mrpc", "test"): "MRPC.tsv",
    ("stsb", "test"): "STS-B.tsv",
    ("qqp", "test"): "QQP.tsv",
    ("mnli", "test"): "MNLI-m.tsv",
    ("mnli", "test_mismatched"): "MNLI-mm.tsv",
    ("qnli", "test"): "QNLI.tsv",
    ("rte", "test"): "RTE.tsv",
    ("wnli", "test"): "WNLI.tsv",
    ("ax", "test"): "AX.tsv",  # by the model of MNLI
}
DEV = {name: ["dev"] for name in GLUE} | {"mnli": ["dev", "dev_mismatched"]}
SECOND = {"mrpc": "accuracy", "qqp": "accuracy", "stsb": "spearman"}  # averaged with the first metric, as GLUE does


def models_of(folder: str) -> dict[str, Path]:
    """The model of each GLUE set in a run's model/ folder: by data set or by task. RoadError where there is none."""
    root = Path(folder)
    found = {}
    for name in GLUE:
        candidates = (root / name, root / CATALOG[name].task)
        if model := next((path for path in candidates if (path / "config.json").is_file()), None):
            found[name] = model
    if not found:
        raise RoadError(
            f"{folder}: holds no model of a GLUE set; expected folders such as {', '.join(GLUE)}, nli, paraphrase"
        )
    return found


def rows_of(name: str, part: str, data: str | None) -> list[Example]:
    """The rows of a part from the hub, or from `data`/NAME. Test rows have no labels."""
    path = None if data is None else str(Path(data) / name)
    if not part.startswith("test"):
        return read_part(name, "dev", DatasetSpec(task=name, catalog=name, dev=part, path=path)).examples
    rows = read_part(name, "dev", DatasetSpec(task=name, catalog=name, dev=part, path=path), scored=False)
    return list(distinct(rows.examples))


def evaluate(models: Mapping[str, Path], data: str | None, batch_size: int) -> dict[str, Evaluated]:
    """Dev scores by data set, MNLI's mismatched part apart; the headline is GLUE's metric."""
    results = {}
    for name, model in models.items():
        ensemble = Ensemble.of([str(model)])
        for part in DEV[name]:
            result = ensemble.evaluate(rows_of(name, part, data), batch_size)
            results[name if part == "dev" else f"{name} {part}"] = replace(result, headline=CATALOG[name].metric)
    return results


def score(name: str, result: Evaluated) -> float:
    """A set's share of the GLUE score: its metric, or the mean of its two."""
    second = SECOND.get(name)
    first = result.scores[result.headline]
    return first if second is None else (first + result.scores[second]) / 2


def report(results: Mapping[str, Evaluated]) -> str:
    """The GLUE table with its average over the sets that are there (MNLI's two parts count as one)."""
    rows, by_set = [], dict[str, list[float]]()
    for name, result in results.items():
        value = score(name, result)
        by_set.setdefault(name.split()[0], []).append(value)
        metric = " / ".join(filter(None, (result.headline, SECOND.get(name))))
        base = result.baseline.get(result.headline, 0.0)
        rows.append((name, result.rows, metric, f"{value:.1f}", f"{base:.1f}"))
    average = sum(sum(values) / len(values) for values in by_set.values()) / len(by_set)
    missing = [name for name in GLUE if name not in by_set]
    text = table(rows, ("data set", "rows", "metric", "dev", "baseline"))
    text += f"\n\naverage of {len(by_set)} sets: {average:.1f}" + (
        f" (without {', '.join(missing)})" if missing else ""
    )
    return text + (f"\nwnli: {CATALOG['wnli'].note}" if "wnli" in by_set else "")


def write_predictions(models: Mapping[str, Path], data: str | None, batch_size: int, file: str) -> None:
    """Writes the leaderboard's zip: one TSV a test part, `index` and `prediction`; warnings name what is not there."""
    if "mnli" in models:
        models = {**models, "ax": models["mnli"]}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for (name, part), target in FILES.items():
            if name in models:
                predictor = Predictor.load(str(models[name]))
                lines = predictions(name, predictor, rows_of(name, part, data), batch_size)
                archive.writestr(target, "index\tprediction\n" + "".join(f"{i}\t{value}\n" for i, value in lines))
    if missing := [target for (name, _), target in FILES.items() if name not in models]:
        warn(f"{file}: the leaderboard also wants {', '.join(missing)}")


def predictions(name: str, predictor: Predictor, examples: list[Example], batch_size: int) -> Iterator[tuple[int, str]]:
    """Test predictions by row in the leaderboard's words: 0 and 1 where its files have them, names elsewhere, 0 to 5.

    A row that could not be read (QQP has empty questions) gets the first label, as the leaderboard wants every row.
    """
    words = {label: given for given, label in CATALOG[name].settings.get("label_map", {}).items()}
    found = {}
    for example, value in zip(examples, predictor.predict(examples, batch_size), strict=True):
        number = min(5.0, max(0.0, value)) if isinstance(value, float) else None
        found[int(example.id)] = words.get(value.label, value.label) if number is None else f"{number:.3f}"
    labels = TASKS[CATALOG[name].task].get("labels")
    first = words.get(labels[0], labels[0]) if labels else "0.000"
    if missing := [index for index in range(max(found) + 1) if index not in found]:
        warn(
            f"{name}: {len(missing)} test rows could not be read and are predicted as {first}, the first: {missing[0]}"
        )
    yield from ((index, found.get(index, first)) for index in range(max(found) + 1))
