"""report.html: what a run was, on one page that needs nothing beside it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np

from road_ds.common.log import counted, warn, write_whole
from road_ds.common.pages import Html, bars, document, element, folded, image, shaded, table
from road_ds.common.strict_json import flat_keys
from road_ds.config.road import RoadConfig
from road_ds.data.features import FeatureSet
from road_ds.data.overlap import shared_texts
from road_ds.data.rows import Rows
from road_ds.tasks.base import Task
from road_ds.tasks.evaluation import Evaluated
from road_ds.tasks.findings import findings, number, right, texts
from road_ds.tasks.registry import Heads

SAMPLE = 20_000  # rows of a part whose labels are counted
BLOCKS = 50  # in which they lie
SHARES = 15  # labels that are shown
FACTS = (
    "step",
    "exported_step",
    "parameters",
    "rows_trained",
    "wall_seconds",
    "world_size",
    "device",
    "precision",
    "seed",
)


def write_report(folder: Path, *about: Any) -> None:
    """Writes a run's report.html, `page` of the rest; what stands in its way is a warning, and the run goes on."""
    try:
        write_whole(folder / "report.html", page(folder, *about).encode("utf-8"))
    except Exception as error:  # nothing that is shown here is worth a run
        warn(f"{folder / 'report.html'} could not be written: {type(error).__name__}: {error}")


def page(
    folder: Path,
    results: Mapping[str, Any],
    records: Iterable[Mapping[str, Any]],
    scores: Mapping[str, Evaluated],
    given: Mapping[str, Any],
    rows: Rows,
    heads: Heads,
) -> str:
    """The whole file. results: as in results.json; records: of metrics.jsonl; given: settings that differ from the defaults."""
    names = list(rows.train)
    links = (part for name in names for part in (element("a", name, href=f"#{name}"), " "))
    curves = folder / "curves.png"
    return document(
        folder.name,
        element("h1", folder.name),
        element(
            "p",
            " · ".join(f"{key.replace('_', ' ')} {shown(results[key])}" for key in FACTS if key in results),
            class_="note",
        ),
        element("nav", *links),
        element("h2", "Scores"),
        overview(results, scores, heads),
        *([element("h2", "Curves"), image(curves.read_bytes(), "image/png", "curves")] if curves.exists() else []),
        *cosine_parts(records),
        element("h2", "Settings that differ from the defaults"),
        settings_table(given),
        *(
            part
            for name in names
            for part in dataset_parts(name, heads, rows.train[name], rows.dev.get(name), scores.get(name))
        ),
    )


def settings_given(config: RoadConfig, ds: Mapping[str, Any]) -> dict[str, Any]:
    """A run's settings without those that are as they are by default; ds: DeepSpeed's part as it is given."""
    return {**deepcopy(ds), "road": config.model_dump(exclude_defaults=True)}


def settings_table(given: Mapping[str, Any]) -> Html:
    """A line for each setting, and for each block that is named in the file: a task, a data set, a method."""
    road = given["road"]
    lines: dict[str, Any] = {key: value for key, value in given.items() if key != "road"}
    for key, value in road.items():
        named = key in ("tasks", "datasets") or (
            isinstance(value, dict) and any(isinstance(v, dict) for v in value.values())
        )
        lines |= {f"road.{key}.{name}": of for name, of in value.items()} if named else {f"road.{key}": value}
    shown = table(((key, folded(in_a_line(value), 400)) for key, value in lines.items()), ("setting", "value"))
    return element("div", shown, class_="settings")


def in_a_line(value: Any) -> str:
    """A setting, or a block of them."""
    return " · ".join(f"{key} {of}" for key, of in flat_keys(value).items()) if isinstance(value, dict) else str(value)


def shown(value: Any) -> str:
    """A fact as people read it."""
    return f"{value:,}" if isinstance(value, int) else str(value)


def overview(results: Mapping[str, Any], scores: Mapping[str, Evaluated], heads: Heads) -> Html:
    """A line for each data set: its headline metric, beside that of ignoring the text and the highest of the run."""
    lines = []
    for name, result in scores.items():
        value, base = result.scores[result.headline], result.baseline.get(result.headline)
        best = results.get("best", {}).get(name, {})
        lines.append((
            element("td", element("a", name, href=f"#{name}")), heads.of[name], f"{result.rows:,}", result.headline, number(value),
            number(base), "" if base is None else f"{value - base:+.2f}", number(best.get("value")), best.get("step"),
        ))  # fmt: skip
    header = ("data set", "head", "dev rows", "metric", "dev", "ignoring the text", "gained", "highest", "at step")
    return table(lines, header) if lines else element("p", "No data set has a dev part.", class_="note")


def cosine_parts(records: Iterable[Mapping[str, Any]]) -> Iterator[Html]:
    """The mean cosine of each two data sets' gradients, where any was measured."""
    found: dict[tuple[str, ...], list[float]] = {}
    for record in records:
        for key, value in record.items():
            if key.startswith("cosine/") and value is not None:
                found.setdefault(tuple(key.removeprefix("cosine/").split("~")), []).append(value)
    if not found:
        return
    names = sorted({name for pair in found for name in pair})
    lines = []
    for one in names:
        cells = []
        for other in names:
            values = found.get(tuple(sorted((one, other))))
            mean = float(np.mean(values)) if values else 0.0
            color = "31, 119, 180" if mean >= 0 else "214, 96, 39"
            cells.append(shaded(f"{mean:.2f}", abs(mean), color) if values else element("td"))
        lines.append((one, *cells))
    yield element("h2", "Gradients")
    yield element(
        "p",
        "Cosines between the data sets' gradients, the mean over the steps that measured them; a data set with itself: two passes of one step.",
        class_="note",
    )
    yield table(lines, ("", *names))


def dataset_parts(
    name: str, heads: Heads, train: FeatureSet, dev: FeatureSet | None, result: Evaluated | None
) -> Iterator[Html]:
    """What is to be said of one data set: its rows, and what was made of those of dev."""
    task = heads.task(name)
    yield element("h2", name, id=name)
    yield element("p", f"{task.type}, head {heads.of[name]}", class_="note")
    if dev is not None and (leaked := shared_texts(train, dev)):
        ids = ", ".join(dev.example(i).id[:60] for i in leaked[:5])
        yield element(
            "p",
            f"{len(leaked):,} of {dev.manifest.examples:,} dev rows have the text of a train row: {ids}{' …' * (len(leaked) > 5)}",
            class_="warn",
        )
    if dev is not None and result is not None:
        yield findings(task, dev.examples(), result)
    parts = {"train": train} | ({} if dev is None else {"dev": dev})
    yield element("h3", "Rows")
    yield element("div", lengths_table(parts, task), lengths_bars(train), shares(parts, task), class_="side")
    yield element("h3", "Some of train")
    chosen = sorted({0, train.manifest.examples // 2, train.manifest.examples - 1})
    examples = [train.example(i) for i in chosen]
    yield table(((folded(e.id, 40), texts(e), right(e)) for e in examples), ("row", "text", "label"))


def lengths_table(parts: Mapping[str, FeatureSet], task: Task) -> Html:
    """How many rows there are and how long: in tokens, of features."""
    lines = []
    for part, source in parts.items():
        lengths = np.asarray(source.lengths)
        middle, most = np.percentile(lengths, (50, 95))
        full = float(np.mean(lengths >= task.max_length))
        lines.append((
            part, f"{source.manifest.examples:,}", f"{len(source):,}", f"{middle:.0f}", f"{most:.0f}", f"{lengths.max():,}",
            f"{100 * full:.1f} %", f"{len(source.manifest.skipped):,}",
        ))  # fmt: skip
    header = (
        "",
        "rows",
        "features",
        "tokens, median",
        "95 %",
        "most",
        f"at max_length {task.max_length}",
        "bad, skipped",
    )
    return table(lines, header)


def lengths_bars(train: FeatureSet) -> Html:
    """The lengths of the train part's features."""
    lengths = np.asarray(train.lengths)
    counts, edges = np.histogram(lengths, bins=min(40, max(1, int(np.ptp(lengths)))))
    return bars(counts.tolist(), f"{edges[0]:.0f}", f"{edges[-1]:.0f} tokens, train", "lengths of the train rows")


def shares(parts: Mapping[str, FeatureSet], task: Task) -> Html:
    """How often each class is right in train and dev; of values, where they lie."""
    golds = {part: [gold for i in sampled(source.manifest.examples) for gold in task.golds(source.example(i))]
             for part, source in parts.items()}  # fmt: skip
    if not any(golds.values()):
        return Html("")
    note = ""
    if most := [part for part, source in parts.items() if source.manifest.examples > SAMPLE]:
        note = element("p", f"{' and '.join(most)}: of {counted(SAMPLE, 'row')}", class_="note")
    if all(isinstance(gold, float) for of in golds.values() for gold in of):
        return element("div", values_table(golds), note)
    counts = {part: Counter(map(str, of)) for part, of in golds.items()}
    first = counts["train"].most_common(SHARES)
    lines: list[tuple[Any, ...]] = [
        (folded(label, 60), *(share_cell(of[label], sum(of.values())) for of in counts.values())) for label, _ in first
    ]
    if (rest := len(set().union(*counts.values())) - len(first)) > 0:
        lines.append((f"{rest} others", *("" for _ in counts)))
    return element("div", table(lines, ("label", *counts)), note)


def share_cell(count: int, total: int) -> Html:
    """A share, with a ground as wide as it."""
    share = 100 * count / max(1, total)
    ground = f"background: linear-gradient(to right, #cfe1f1 {share:.1f}%, transparent {share:.1f}%); min-width: 7em"
    return element("td", f"{share:.1f} %", class_="n", style=ground)


def values_table(golds: Mapping[str, Sequence[Any]]) -> Html:
    """Where the values of a part lie."""
    lines = [
        (part, *(f"{value:.4g}" for value in np.percentile(of, (0, 25, 50, 75, 100))))
        for part, of in golds.items()
        if of
    ]
    return table(lines, ("label", "least", "25 %", "median", "75 %", "most"))


def sampled(total: int) -> Iterator[int]:
    """The numbers of all rows, or of SAMPLE in blocks that are spread evenly, since rows near each other are read together."""
    if total <= SAMPLE:
        yield from range(total)
        return
    for block in range(BLOCKS):
        first = block * (total - SAMPLE // BLOCKS) // (BLOCKS - 1)
        yield from range(first, first + SAMPLE // BLOCKS)
