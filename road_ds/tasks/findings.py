"""What a model has made of a data set's rows, as a part of a page: scores, which classes it takes for which, rows to look at."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from road_ds.common.log import counted
from road_ds.common.pages import Html, element, folded, html, scatter, shaded, table
from road_ds.data.readers import Example
from road_ds.tasks.base import NONE, Task
from road_ds.tasks.evaluation import Evaluated

ROWS = 10  # of each kind
CLASSES = 20  # in a matrix
POINTS = 1000

Row = tuple[Example, Mapping[str, Any]]  # and its line of predictions/


def findings(task: Task, examples: Iterable[Example], result: Evaluated) -> Html:
    """All there is to say of an evaluated data set. examples: in the order of the predictions."""
    rows: list[Row] = list(zip(examples, result.predictions, strict=True))
    pairs = [pair for example, line in rows for pair in task.matched(example, line["prediction"])]
    parts = [scores_table(result), *(matched_parts(pairs) if pairs else [])]
    return element("div", element("div", *parts, class_="side"), *rows_parts(task, result.row_metric, rows))


def scores_table(result: Evaluated) -> Html:
    """Every metric, the headline first, beside that of the best answer that ignores the text."""
    names = sorted(result.scores, key=lambda name: name != result.headline)
    return table(
        ((name, number(result.scores[name]), number(result.baseline.get(name))) for name in names),
        ("metric", "dev", "ignoring the text"),
    )


def number(value: float | None) -> str:
    """A score with two places; nothing for None."""
    return "" if value is None else f"{value:.2f}"


def matched_parts(pairs: Sequence[tuple[Any, Any]]) -> list[Html]:
    """Values as points; classes as a matrix, or as the confusions that come most often, with a line for each class."""
    if all(isinstance(value, float) for pair in pairs for value in pair):
        step = -(-len(pairs) // POINTS)
        return [scatter(pairs[::step], "right", "said")]
    counts = Counter((str(gold), str(said)) for gold, said in pairs)
    golds, saids = Counter(str(gold) for gold, _ in pairs), Counter(str(said) for _, said in pairs)
    names = list(dict.fromkeys(sorted([*golds, *saids], key=lambda name: (name == NONE, -golds[name]))))
    return [
        class_table(names, golds, saids, counts),
        matrix(names, golds, counts) if len(names) <= CLASSES else confusions(counts),
    ]


def class_table(names: Sequence[str], golds: Counter, saids: Counter, counts: Counter) -> Html:
    """Precision, recall and F1 of each class."""
    rows = []
    known = [name for name in names if name != NONE]
    for name in known[: 3 * CLASSES]:
        right = counts[name, name]
        shares = (right / max(1, saids[name]), right / max(1, golds[name]), 2 * right / (golds[name] + saids[name]))
        rows.append(
            (folded(name, 60), f"{golds[name]:,}", f"{saids[name]:,}", *(f"{100 * share:.1f}" for share in shares))
        )
    left = len(known) - len(rows)
    note = element("p", f"and {left} rarer classes", class_="note") if left else ""
    return element("div", table(rows, ("class", "rows", "said", "precision", "recall", "F1")), note)


def matrix(names: Sequence[str], golds: Counter, counts: Counter) -> Html:
    """How often each class was said of the rows of each; the darker, the larger the share of the row's class."""
    rows = [
        (folded(gold, 60), *(shaded(f"{counts[gold, said]:,}", counts[gold, said] / max(1, golds[gold]),
         "31, 119, 180" if said == gold else "214, 96, 39") for said in names))
        for gold in names
    ]  # fmt: skip
    said = [element("th", name if len(name) <= 24 else f"{name[:23]}…", class_="n") for name in names]
    return element("div", table(rows, ("right ↓ said →", *said)))


def confusions(counts: Counter) -> Html:
    """The pairs of different classes that come most often."""
    wrong = [(count, pair) for pair, count in counts.most_common() if pair[0] != pair[1]][:CLASSES]
    rows = [(folded(gold, 60), folded(said, 60), f"{count:,}") for count, (gold, said) in wrong]
    return table(rows, ("right", "said instead", "rows"))


def rows_parts(task: Task, metric: str, rows: Sequence[Row]) -> list[Html]:
    """The rows that went worst, of equal ones those said with most certainty; and those of which the model is least sure."""
    sure = [task.certainty(line["prediction"]) for _, line in rows]
    worse = [line["score"] if task.errors else 1 - line["score"] for _, line in rows]
    numbers = range(len(rows))
    wrong = sorted((i for i in numbers if worse[i] > 0), key=lambda i: (-worse[i], -(sure[i] or 0.0)))
    said = f"{metric} {'above 0' if task.errors else 'below 1'}: {len(wrong):,} of {counted(len(rows), 'row')}"
    parts = [
        element("h3", "The worst rows"),
        element("p", said + (", the surest first among equals" if any(sure) else ""), class_="note"),
        rows_table(task, metric, rows, sure, wrong[:ROWS]) if wrong else "",
    ]
    known = sorted((value, i) for i, value in enumerate(sure) if value is not None)[:ROWS]
    if known:
        parts += [element("h3", "The most uncertain rows"), rows_table(task, metric, rows, sure, [i for _, i in known])]
    return list(map(html, parts))


def rows_table(
    task: Task, metric: str, rows: Sequence[Row], sure: Sequence[float | None], numbers: Sequence[int]
) -> Html:
    """Rows with their texts, what is right and what was said."""
    header = ["row", "text", "right", "said", metric] + ["certainty"] * any(sure[i] is not None for i in numbers)
    shown = []
    for i in numbers:
        example, line = rows[i]
        cells = [
            folded(example.id, 40),
            texts(example),
            right(example),
            said(line["prediction"], task.first_said),
            f"{line['score']:.3g}",
        ]
        shown.append(cells + ["" if sure[i] is None else f"{sure[i]:.3g}"] * (len(header) - len(cells)))
    return table(shown, header)


def texts(example: Example) -> Html:
    """A cell with the texts of an example, and its choices."""
    choices = (f"{choice.key}: {choice.text}" for choice in example.choices or ())
    found = [text for text in (example.text_a, example.text_b, *choices) if text is not None]
    return element("td", *map(folded, found), class_="text")


def right(example: Example) -> Html:
    """A cell with the label or answers of an example."""
    found: list[Any]
    if example.answers is not None:
        found = list(dict.fromkeys(answer.text for answer in example.answers)) or [""]
    else:
        found = [] if example.label is None else [example.label]
    return element("td", *(folded(shown(value), 120) for value in found[:5]), class_="answer")


def said(prediction: Mapping[str, Any], key: str | None) -> Html:
    """A cell with what was said: what has this key, or stands first, and of the rest what is short enough to be read."""
    key = key or next(iter(prediction))
    rest = [pair for pair in prediction.items() if pair[0] != key and not isinstance(pair[1], list)]
    if len(rest) > 6:
        rest = sorted((pair for pair in rest if isinstance(pair[1], float)), key=lambda pair: -pair[1])[:4]
    more = " · ".join(f"{name} {str(value)[:80]}{' …' * (len(str(value)) > 80)}" for name, value in rest)
    first = element("b", folded(shown(prediction[key]), 120))
    return element("td", first, element("p", more, class_="note") if more else "", class_="answer")


def shown(value: Any) -> str:
    """A plain value as people read it."""
    if isinstance(value, list | tuple):
        return " · ".join(map(str, value)) or NONE
    return "(no answer)" if value == "" else str(value)
