"""Runs side by side, from made-up run folders whose numbers are known; and the page that shows them."""

import base64
import json
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from runs import error_of

from road_ds.common.errors import RoadError
from road_ds.data.readers import Answer, Example
from road_ds.recipes.comparison import compare, grouped, text
from road_ds.recipes.difference import difference
from road_ds.recipes.page import page, picture
from road_ds.tasks.evaluation import identity


def made(folder: Path, rows: dict[str, float], seed: int | None = None, dataset: str = "rte", **result) -> Path:
    """A run folder whose accuracy on one data set is that of the given rows."""
    result = {"headline": "accuracy", "row_metric": "accuracy", **result}
    scores = result.setdefault("scores", {"accuracy": 100 * float(np.mean(list(rows.values())))})
    (folder / "predictions").mkdir(parents=True)
    lines = [json.dumps({"id": id, "score": score, "prediction": {}}) for id, score in rows.items()]
    (folder / "predictions" / f"{dataset}.jsonl").write_text("\n".join(lines) + "\n")
    about = {"seed": seed, "wall_seconds": 3.0, "device": "cpu"} if seed is not None else {"wall_seconds": 1.0}
    (folder / "results.json").write_text(json.dumps({"scores": {dataset: result}, **about}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, f"{dataset}/accuracy": 50 + s, f"loss/{dataset}": 1 / (s + 1)}) + "\n" for s in range(3))
    )  # fmt: skip
    assert scores
    return folder


def bits(text: str, prefix: str = "r") -> dict[str, float]:
    return {f"{prefix}{i}": float(bit) for i, bit in enumerate(text)}


def test_a_median_over_seeds_beside_the_mean(tmp_path):
    for seed, rows in ((1, "1100000000"), (2, "1111111100"), (3, "1111111110")):
        made(tmp_path / f"a-{seed}", bits(rows), seed)
    found = compare(grouped([str(tmp_path / f"a-{seed}") for seed in (1, 2, 3)]))["data_sets"]["rte"]["groups"]["a"]
    assert found["median"] == pytest.approx(80) and found["mean"] == pytest.approx(190 / 3)


@pytest.fixture
def four(tmp_path) -> list[str]:
    """Two seeds of a baseline and two of a better one, whose rows stand in another order."""
    made(tmp_path / "base-1", bits("1100110000"), 1)
    made(tmp_path / "base-2", bits("1100111100"), 2)
    made(tmp_path / "kd-1", dict(reversed(bits("1111111100").items())), 1)
    made(tmp_path / "kd-2", bits("1111110000"), 2)
    return [str(tmp_path / name) for name in ("base-1", "base-2", "kd-1", "kd-2")]


def test_means_spreads_and_differences(four):
    report = compare(grouped(four), "base")
    base, kd = (report["data_sets"]["rte"]["groups"][name] for name in ("base", "kd"))
    assert (base["mean"], kd["mean"]) == (pytest.approx(50), pytest.approx(70))
    assert base["sd"] == pytest.approx(np.sqrt(2 * 10**2)) and kd["sd"] == pytest.approx(np.sqrt(2 * 10**2))
    assert [(run["seed"], run["value"]) for run in base["runs"]] == [(1, pytest.approx(40)), (2, pytest.approx(60))]
    assert base["difference"] is None
    scores = [
        [[*map(float, row)] for row in rows] for rows in (["1111111100", "1111110000"], ["1100110000", "1100111100"])
    ]
    by_hand = difference(*(100 * np.array(part) for part in scores))
    assert kd["difference"] == pytest.approx(vars(by_hand)) and by_hand.value == pytest.approx(20)
    said = text(report).splitlines()
    assert said[0].split() == [
        "data",
        "set",
        "metric",
        "runs",
        "n",
        "mean",
        "median",
        "sd",
        "each",
        "difference",
        "95",
        "%",
        "p",
    ]
    assert (
        said[3].split()[:8] == ["rte", "accuracy", "kd", "2", "70.00", "70.00", "14.14", "80.0"] and "+20.00" in said[3]
    )
    assert "against base, on the same rows, matched by id" in said[-1]


def test_costs_stand_beside_the_scores_and_a_dash_where_a_run_does_not_say(four, tmp_path):
    for seed, rows in ((1, 6000), (2, 7000)):
        path = tmp_path / f"kd-{seed}" / "results.json"
        spent = {"parameters": 1234567, "step": 90, "rows_trained": rows, "rows_asked": 0, "rows_of_teachers": 2 * rows}
        path.write_text(json.dumps({**json.loads(path.read_text()), **spent, "rows_of_soft_targets": 33}))
    report = compare(grouped(four), "base")
    assert report["costs"]["kd"]["rows_of_teachers"] == 13000 and report["costs"]["base"]["rows_trained"] is None
    assert report["costs"]["kd"]["wall_seconds"] == 3
    spent = text(report).split("\n\n")[1].splitlines()
    assert spent[0].split() == [
        "runs",
        "parameters",
        "steps",
        "rows",
        "trained",
        "on",
        "rows",
        "asked",
        "rows",
        "of",
        "teachers",
        "of",
        "soft",
        "targets",
        "seconds",
    ]
    assert spent[2].split() == ["base", "-", "-", "-", "-", "-", "-", "3"]
    assert spent[3].split() == ["kd", "1,234,567", "90", "6,500", "0", "13,000", "33", "3"]
    shown = page(report, grouped(four))
    assert '<td class="n">1,234,567</td>' in shown and ">rows of teachers</th>" in shown


def test_every_metric_the_baseline_and_what_was_set_otherwise(tmp_path):
    """A group's mean of each metric that all its runs have; settings that are not the same in all runs."""
    for name, seed, scores, lr in (
        ("a", 1, {"f1": 40.0, "exact": 30.0, "best_f1": 41.0}, 0.1),
        ("a", 2, {"f1": 50.0, "exact": 40.0}, 0.1),
        ("b", 1, {"f1": 60.0, "exact": 55.0}, 0.2),
    ):
        about = {"headline": "f1", "row_metric": "f1", "scores": scores, "baseline": {"f1": 33.0, "exact": 33.5}}
        made(tmp_path / f"{name}-{seed}", bits("1100"), seed, dataset="qa", **about)
        road = {"seed": seed, "output": name, "passes": 4, **({} if name == "a" else {"distill": {"objective": "kd"}})}
        settings = {"optimizer": {"params": {"lr": lr * seed}}, "road": road}
        (tmp_path / f"{name}-{seed}" / "config.json").write_text(json.dumps(settings))
    made(tmp_path / "mean", bits("1110"), dataset="qa", headline="f1", row_metric="f1", scores={"f1": 70.0})
    groups = grouped([str(tmp_path / name) for name in ("a-1", "a-2", "b-1", "mean")])
    report = compare(groups)
    found = report["data_sets"]["qa"]
    assert found["groups"]["a"]["metrics"] == {"f1": 45.0, "exact": 35.0}
    assert found["ignoring_the_text"] == {"f1": 33.0, "exact": 33.5}, "the ensemble of an earlier version says nothing"
    assert report["settings"] == {
        "optimizer.params.lr": {"a": [0.1, 0.2], "b": [0.2], "mean": []},
        "road.distill.objective": {"a": [None], "b": ["kd"], "mean": []},
    }, "an ensemble has no settings"
    seen = Seen(page(report, groups))
    assert "meanf1exacta45.0035.00b60.0055.00mean70.00ignoring the text33.0033.50" in seen.text
    assert "settingabmeanoptimizer.params.lr0.1, 0.20.2road.distill.objective-kdRuns" in seen.text
    lines = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Figure, "savefig", lambda figure, *_, **__: lines.append([a.lines for a in figure.axes]))
        picture("qa", found, groups)
    dots, curves, losses = lines[0]
    assert dots[-1].get_xdata()[0] == curves[-1].get_ydata()[0] == 33 and not any(
        line.get_linestyle() == "--" for line in losses
    )


def test_without_a_baseline_there_is_no_difference(four):
    report = compare(grouped(four))
    assert all(group["difference"] is None for group in report["data_sets"]["rte"]["groups"].values())
    assert "difference: against" not in text(report)


def test_groups_are_names_without_the_runs_own_seed(tmp_path):
    for name, seed in (("kd-1", 1), ("kd-2", 2), ("kd_seed3", 3), ("kd-14", 4), ("5", 5)):
        made(tmp_path / name, bits("10"), seed)
    made(tmp_path / "mean-1", bits("11"))  # an ensemble has no seed
    groups = grouped([*map(str, sorted(tmp_path.iterdir())), f"other={tmp_path / 'kd-1'}"])
    assert {name: [run.folder.name for run in runs] for name, runs in groups.items()} == {
        "5": ["5"], "kd": ["kd-1", "kd-2", "kd_seed3"], "kd-14": ["kd-14"], "mean-1": ["mean-1"], "other": ["kd-1"],
    }  # fmt: skip


def test_one_run_says_so(tmp_path, four):
    made(tmp_path / "mean", bits("1111111110"))
    report = compare(grouped([*four, str(tmp_path / "mean")]), "base")
    mean = report["data_sets"]["rte"]["groups"]["mean"]
    assert mean["sd"] is None and mean["difference"]["value"] == pytest.approx(40)
    assert "A group of one run says nothing about its other seeds" in text(report)


def test_a_regression_is_compared_by_squared_error(tmp_path):
    about = {"headline": "pearson", "row_metric": "squared_error"}
    made(tmp_path / "a-1", {"x": 4.0, "y": 0.0}, 1, scores={"pearson": 60.0}, **about)
    made(tmp_path / "b-1", {"x": 1.0, "y": 1.0}, 1, scores={"pearson": 80.0}, **about)
    report = compare(grouped([str(tmp_path / "a-1"), str(tmp_path / "b-1")]), "a")
    b = report["data_sets"]["rte"]["groups"]["b"]
    assert b["mean"] == 80 and b["difference"]["value"] == pytest.approx(-1) and "-1.00 squared_error" in text(report)


def test_one_row_shows_no_spread(tmp_path):
    words = [str(made(tmp_path / f"{name}-{seed}", bits("1"), seed)) for name in "ab" for seed in (1, 2)]
    report = compare(grouped(words), "a")
    assert report["data_sets"]["rte"]["groups"]["b"]["difference"] is None and "rte" in text(report)


def test_data_sets_apart(tmp_path, four):
    made(tmp_path / "kd-people-1", bits("10", "p"), 1, dataset="people")
    report = compare(grouped([*four, f"kd={tmp_path / 'kd-people-1'}"]), "base")
    assert list(report["data_sets"]["people"]["groups"]) == ["kd"]
    assert report["data_sets"]["people"]["groups"]["kd"]["difference"] is None  # the baseline is not there


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: made(f / "kd-3", bits("1111"), 3), "kd-3 was scored on 4 rows, .*base-1 on 10; 6 ids are only in one"),
        (lambda f: made(f / "kd-3", bits("1111100000", "q"), 3), "20 ids are only in one of them, such as 'q0'"),
        (lambda f: made(f / "kd-3", bits("1111100000"), 3, rows_sha256="other"), "kd-3 and .*base-1 .*same ids but other texts"),
        (lambda f: made(f / "kd-01", bits("1111110000"), 1), "the group kd has seed 1 twice"),
        (lambda f: made(f / "kd-3", bits("1"), 3, headline="f1", scores={"f1": 1}), "scored by different metrics: .* by f1"),
        (lambda f: (f / "kd-3").mkdir(), "kd-3: has no results.json: expected a finished run"),
        (lambda f: (made(f / "kd-3", bits("1111100000"), 3) / "predictions" / "rte.jsonl").unlink(), "rte.jsonl: cannot be read"),
    ],
)  # fmt: skip
def test_what_cannot_be_compared(tmp_path, four, change, message):
    change(tmp_path)
    words = [f"kd={path}" if path.name.startswith("kd") else str(path) for path in sorted(tmp_path.iterdir())]
    with pytest.raises(RoadError, match=message):
        compare(grouped(words), "base")


def test_an_id_that_stands_there_twice(tmp_path, four):
    path = tmp_path / "kd-1" / "predictions" / "rte.jsonl"
    path.write_text(path.read_text() + path.read_text().splitlines()[0] + "\n")
    with pytest.raises(RoadError, match="an id stands there more than once"):
        compare(grouped(four), "base")


def test_rows_are_the_same_in_another_order_and_not_with_another_label():
    one, two = (Example(id, "a text", None, label, None, id) for id, label in (("r1", "yes"), ("r2", "no")))
    assert identity([one, two]) == identity([two, replace(one, where="another file")])
    changes = {"label": "no", "text_a": "other", "answers": (Answer("a", 0),)}
    assert len({identity([one, two]), *(identity([replace(one, **{k: v}), two]) for k, v in changes.items())}) == 4


class Seen(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


EVIL = '<script>alert("x")</script>&$y$_'


def test_the_page_escapes_names_and_needs_nothing_beside_it(tmp_path):
    data = "a<img src=x onerror=y>"
    made(tmp_path / "one-1", bits("1100"), 1, dataset=data)
    made(tmp_path / "two-1", bits("1111"), 1, dataset=data)
    groups = grouped([f"{EVIL}={tmp_path / 'one-1'}", f"_$={tmp_path / 'two-1'}"])
    html = page(compare(groups, EVIL), groups)
    seen = Seen(html)
    assert {tag for tag, _ in seen.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "h1", "h2", "p", "img", "div"),
        *("table", "thead", "tbody", "tr", "th", "td"),
    }
    assert EVIL in seen.text and data in seen.text and "script" not in {tag for tag, _ in seen.tags}
    images = [attributes for tag, attributes in seen.tags if tag == "img"]
    assert len(images) == 1 and set(images[0]) == {"alt", "src"}
    assert all(a["src"].startswith("data:image/svg+xml;base64,") for a in images)
    drawn = base64.b64decode(images[0]["src"].partition("base64,")[2]).decode()
    tags = [element.tag for element in ElementTree.fromstring(drawn).iter()]
    assert drawn.count('<g id="axes_') == 3 and not any(tag.endswith(("script", "text", "image")) for tag in tags)


def test_the_command_writes_text_json_and_page(tmp_path, four, command):
    files = ["--json", tmp_path / "out" / "c.json", "--html", tmp_path / "out" / "c.html"]
    code, out, err = command("compare", *four, "--baseline", "base", *files)
    assert code == 0, err
    written = json.loads((tmp_path / "out" / "c.json").read_text())
    assert text(written) == out.strip() and "<h1>Runs compared</h1>" in (tmp_path / "out" / "c.html").read_text()
    assert error_of(command("compare", *four, "--baseline", "bass")) == (
        "error: --baseline bass: no such group; did you mean 'base'?; there are base, kd"
    )
