"""The page of a run, from rows and predictions that are known; and what a browser makes of it."""

import base64
import json
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise

import pytest

from road_ds.common.hub import sample_path
from road_ds.common.pages import Html, document
from road_ds.config.road import DatasetSpec, ModelSpec, RoadConfig
from road_ds.data.choices import Choice
from road_ds.data.readers import Example
from road_ds.data.rows import Rows
from road_ds.engine.report import BLOCKS, SAMPLE, page, sampled, settings_given, write_report
from road_ds.models.configuration import load_tokenizer
from road_ds.tasks.base import Task
from road_ds.tasks.evaluation import Evaluated
from road_ds.tasks.findings import findings
from road_ds.tasks.registry import Heads, task_from

EVIL = "<script>document.title = 'taken'</script><img src=http://127.0.0.1:9/x onerror=\"document.title = 'taken'\">&\x00\u202e"
PIXEL = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
TASKS = {
    "mood": task_from({"type": "classification", "labels": ["bad", "good", EVIL]}, "mood"),
    "stars": task_from({"type": "regression"}, "stars"),
    "qa": task_from({"type": "span_qa", "max_length": 64, "max_question_length": 16}, "qa"),
}
TEXTS = ["fine day", "poor show", "no idea", f"what {EVIL}"]


def lines(path, rows) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def rows(tmp_path, cache) -> Rows:
    """Three small data sets; one dev row of `mood` stands in train."""
    moods = [
        {"id": f"m{i}", "text": t, "label": m}
        for i, (t, m) in enumerate(zip(TEXTS, ["good", "bad", "bad", EVIL], strict=True))
    ]
    stars = [{"id": f"s{i}", "text": t, "label": str(i)} for i, t in enumerate(TEXTS)]
    asked = [
        {
            "id": "q0",
            "question": "Who ?",
            "context": "Ada lives in Oslo",
            "answers": {"text": ["Ada"], "answer_start": [0]},
        },
        {"id": "q1", "question": "Why ?", "context": "Ada lives in Oslo", "answers": {"text": [], "answer_start": []}},
    ]
    specs = {}
    for name, dev in (("mood", moods), ("stars", stars), ("qa", asked)):
        train = [{**row, "id": f"t{i}"} for i, row in enumerate(dev)]
        if name == "mood":
            train = [{**row, "text": f"{row['text']} {i or ''}".strip()} for i, row in enumerate(train)]
        parts = {part: lines(tmp_path / f"{name}.{part}.jsonl", of) for part, of in (("train", train), ("dev", dev))}
        specs[name] = DatasetSpec(task=name, **parts)
    tokenizer = load_tokenizer(ModelSpec(architecture="electra", tokenizer="sample:tokenizer"))
    return Rows.load(specs, TASKS, tokenizer, cache)


def evaluated(metric, said, scores, baseline=None, **row_metric) -> Evaluated:
    found = [{"id": str(i), "score": s, "prediction": p} for i, (p, s) in enumerate(zip(said, scores, strict=True))]
    own = {"row_metric": metric, **row_metric}
    return Evaluated(
        {metric: 50.0, "other": 1.0},
        baseline or {metric: 40.0},
        metric,
        rows=len(said),
        predictions=found,
        rows_sha256="",
        **own,
    )


def moods(*pairs) -> list[dict]:
    return [{"label": label, **{name: 0.0 for name in TASKS["mood"].labels}, label: sure} for label, sure in pairs]


SCORES = {
    "mood": evaluated("accuracy", moods(("good", 0.9), ("good", 0.6), ("good", 0.8), ("good", 0.5)), [1.0, 0.0, 0.0, 0.0]),
    "stars": evaluated("pearson", [{"value": v} for v in (0.5, 1.0, 4.0, 2.0)], [0.25, 0.0, 4.0, 1.0], row_metric="squared_error"),
    "qa": evaluated(
        "f1",
        [{"answer": "Ada", "span": "Ada", "no_answer": -3.0}, {"answer": "Oslo", "span": "Oslo", "no_answer": -0.5}],
        [1.0, 0.0],
    ),
}  # fmt: skip


class Seen(HTMLParser):
    """The tags of a page, its text, and the cells of each table."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.text, self.tables, self.inside = [], "", [], False
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.inside = True

    def handle_endtag(self, tag):
        self.inside &= tag not in ("td", "th")

    def handle_data(self, data):
        self.text += data
        if self.inside:
            self.tables[-1][-1][-1] += data

    def under(self, *header) -> list[list[str]]:
        """The rows of the first table that begins with these columns."""
        return next(table[1:] for table in self.tables if table[0][: len(header)] == [*header])


def whole(rows, folder, **scores) -> str:
    (folder / "curves.png").write_bytes(PIXEL)
    results = {
        "step": 9,
        "parameters": 1234567,
        "best": {"mood": {"metric": "mood/accuracy", "value": 60.0, "step": 4}},
    }
    records = [{"step": 1, "cosine/mood~stars": 0.5}, {"step": 2, "cosine/mood~stars": -0.1, "cosine/mood~mood": 1.0}]
    given = {
        "optimizer": {"type": "Adam", "params": {"lr": 1}},
        "road": {"steps": 9, "tasks": {"mood": {"type": EVIL}}},
    }
    return page(
        folder, results, records, {**SCORES, **scores}, given, rows, Heads(TASKS, {name: name for name in TASKS})
    )


def test_the_page_tells_what_was_scored_set_and_measured(rows, tmp_path):
    seen = Seen(whole(rows, tmp_path))
    overview = seen.under("data set", "head", "dev rows")
    assert overview[0] == ["mood", "mood", "4", "accuracy", "50.00", "40.00", "+10.00", "60.00", "4"]
    assert [line[0] for line in overview] == ["mood", "stars", "qa"] and "parameters 1,234,567" in seen.text
    settings = dict(seen.under("setting", "value"))
    assert settings["optimizer"] == "type Adam · params.lr 1" and settings["road.steps"] == "9"
    assert seen.under("", "mood", "stars") == [["mood", "1.00", "0.20"], ["stars", "0.20", ""]]
    assert "1 of 4 dev rows have the text of a train row: m0" in seen.text
    assert seen.under("metric", "dev") == [["accuracy", "50.00", "40.00"], ["other", "1.00", ""]]
    shares = seen.under("label", "train", "dev")
    assert shares[0] == ["bad", "50.0 %", "50.0 %"]


def test_what_was_taken_for_what_and_which_rows_went_worst(rows, tmp_path):
    seen = Seen(whole(rows, tmp_path))
    matrix = seen.under("right ↓ said →")
    assert [row[1:] for row in matrix][:2] == [["0", "2", "0"], ["0", "1", "0"]] and matrix[0][0] == "bad"
    classes = seen.under("class", "rows", "said")
    assert classes[0] == ["bad", "2", "0", "0.0", "0.0", "0.0"] and classes[1] == [
        "good",
        "1",
        "4",
        "25.0",
        "100.0",
        "40.0",
    ]
    worst, uncertain, *_ = [
        table[1:] for table in seen.tables if table[0][:2] == ["row", "text"] and "said" in table[0]
    ]
    assert [row[0] for row in worst] == ["m2", "m1", "m3"], "the surest of the wrong ones first"
    assert [row[0] for row in uncertain] == ["m3", "m1", "m2", "m0"]
    assert worst[0][2:] == ["bad", "goodbad 0.0 · good 0.8 · " + worst[0][3].split(" · ", 2)[2], "0", "0.8"]
    tables = [[row[0] for row in table[1:]] for table in seen.tables if table[0][:2] == ["row", "text"]]
    assert ["s2", "s3", "s0"] in tables, "of squared errors the highest"
    assert ["q1"] in tables and ["q1", "q0"] in tables
    kinds = [table for table in seen.tables if table[0][0].startswith("right ↓")][1]
    assert kinds[1:] == [["answer", "1", "0"], ["no answer", "1", "0"]]
    assert "pearson" in seen.text and any(tag == "circle" for tag, _ in seen.tags)


def test_a_task_that_says_nothing_of_its_rows_has_the_general_parts(rows):
    class Silent(Task):
        type: str = "silent"

    found = Seen(findings(Silent(), rows.dev["mood"].examples(), SCORES["mood"]))
    assert found.under("metric", "dev") and "right ↓ said →" not in found.text
    assert [row[0] for row in found.under("row", "text", "right", "said", "accuracy")] == ["m1", "m2", "m3"]
    assert "uncertain" not in found.text and "certainty" not in found.text


def test_label_sets_are_told_by_what_was_missed_and_what_was_added():
    task = task_from({"type": "multi_label", "labels": ["joy", "anger", "fear"], "threshold": 0.4}, "feelings")
    texts = (("a", ("joy", "fear")), ("b", ()), ("c", ("anger",)))
    examples = [Example(id, f"text {id}", None, labels, None, id) for id, labels in texts]
    said = [
        {"labels": labels, "joy": 0.9, "anger": near, "fear": 0.0}
        for labels, near in ((["joy"], 0.0), (["joy"], 0.3), ([], 0.38))
    ]
    found = Seen(findings(task, examples, evaluated("micro_f1", said, [0.5, 0.0, 0.0])))
    assert found.under("class", "rows", "said") == [
        ["joy", "1", "2", "50.0", "100.0", "66.7"],
        ["fear", "1", "0", "0.0", "0.0", "0.0"],
        ["anger", "1", "0", "0.0", "0.0", "0.0"],
    ]
    head = next(table[0] for table in found.tables if table[0][0].startswith("right"))
    rows = {row[0]: dict(zip(head[1:], row[1:], strict=True)) for row in found.under("right ↓ said →")}
    assert rows["fear"]["(none)"] == "1" and rows["(none)"]["joy"] == "1" and rows["joy"]["joy"] == "1"
    uncertain = [table[1:] for table in found.tables if table[0][:2] == ["row", "text"]][1]
    assert [(row[0], row[-1]) for row in uncertain] == [("c", "0.02"), ("b", "0.1"), ("a", "0.4")]
    assert uncertain[1][2] == "(none)" and uncertain[0][3].startswith("(none)")


def test_a_question_is_shown_with_its_choices():
    task = task_from({"type": "multiple_choice"}, "asked")
    texts = {"q0": ("A", "there"), "q1": ("B", "here"), "q2": ("A", "there")}
    choices = (Choice("A", "there"), Choice("B", EVIL))
    examples = [Example(id, f"Where {id}?", "It", key, None, id, choices) for id, (key, _) in texts.items()]
    long = "word " * 30
    said = [{"choice": key, "text": long, "A": a, "B": 1 - a} for key, a in (("A", 0.9), ("A", 0.6), ("B", 0.25))]
    found = Seen(findings(task, examples, evaluated("accuracy", said, [1.0, 0.0, 0.0])))
    assert [row[1:] for row in found.under("right ↓ said →")] == [["1", "1"], ["1", "0"]]
    worst, uncertain = [table[1:] for table in found.tables if table[0][:2] == ["row", "text"]]
    assert [row[0] for row in worst] == ["q2", "q1"] and [row[0] for row in uncertain] == ["q1", "q2", "q0"]
    assert worst[0][1].startswith("Where q2?ItA: thereB: <script>") and worst[0][2:4] == [
        "A",
        f"Btext {long[:80]} … · A 0.25 · B 0.75",
    ]


def test_of_tagged_words_the_tags_are_shown():
    task = task_from({"type": "token_classification", "labels": ["O", "B-LOC"]}, "places")
    example = Example("1", "In Oslo", None, ("O", "B-LOC"), None, "row")
    said = {"words": ["In", "Oslo"], "tags": ["O", None], "spans": [{"label": "LOC", "text": "Oslo"}]}
    found = Seen(findings(task, [example], evaluated("accuracy", [said], [0.5])))
    assert found.under("row", "text", "right", "said") == [["1", "In Oslo", "O · B-LOC", "O · None", "0.5"]]


def test_many_classes_are_told_by_their_confusions(rows):
    class Many(Task):
        type: str = "many"

        def matched(self, example, said):
            return [(f"c{i}", f"c{i + (i % 7 == 0)}") for i in range(70)]

    found = Seen(findings(Many(), rows.dev["mood"].examples(), SCORES["mood"]))
    assert found.under("right", "said instead", "rows")[0] == ["c0", "c1", "4"]
    assert len(found.under("class", "rows")) == 60 and "and 10 rarer classes" in found.text


ALLOWED = {
    *("html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "nav", "a", "div", "img", "b", "details", "summary"),
    *("table", "thead", "tbody", "tr", "th", "td", "svg", "g", "rect", "line", "text", "circle"),
}  # fmt: skip


def test_rows_are_other_peoples_text(rows, tmp_path):
    """Nothing in them becomes markup, and nothing outside the page is named."""
    html = whole(rows, tmp_path)
    seen = Seen(html)
    assert {tag for tag, _ in seen.tags} <= ALLOWED and "\x00" not in html
    assert EVIL.replace("\x00", "\\u0000") in seen.text
    for tag, attributes in seen.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in attributes.keys() & {"src", "href"}:
            assert attributes[name].startswith(("data:image/png;base64,", "#")), (tag, attributes)


def chromium() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    return found or pytest.skip("no Chromium here")


def test_a_browser_shows_it_and_runs_nothing_of_it(rows, tmp_path):
    """Its title, its tables and its picture are there; its rows have neither run nor fetched, nor would they as markup."""

    def opened(page: str) -> subprocess.CompletedProcess:
        (tmp_path / "report.html").write_text(page)
        browser = [chromium(), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
        command = [*browser, "--enable-logging=stderr", "--dump-dom", str(tmp_path / "report.html")]
        found = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert found.returncode == 0, found.stderr
        return found

    assert "<title>mine</title>" in opened(document("mine", Html(EVIL))).stdout, "what came through unescaped"
    done = opened(whole(rows, tmp_path))
    seen = Seen(done.stdout)
    assert f"<title>{tmp_path.name}</title>" in done.stdout and seen.under("right ↓ said →")
    assert (
        {tag for tag, _ in seen.tags} <= ALLOWED
        and "Refused to" not in done.stderr
        and "127.0.0.1:9" not in done.stderr
    )


def test_a_page_that_cannot_be_written_is_a_warning(rows, tmp_path, capsys):
    given = {"road": {}}
    heads = Heads(TASKS, {name: name for name in TASKS})
    write_report(tmp_path, {}, [], SCORES, given, rows, heads)
    assert (tmp_path / "report.html").exists() and capsys.readouterr().err == ""
    short = {**SCORES, "qa": evaluated("f1", [], [])}
    write_report(tmp_path, {}, [], short, given, rows, heads)
    assert f"warning: {tmp_path / 'report.html'} could not be written: ValueError" in capsys.readouterr().err
    write_report(tmp_path / "none" / "\0", {}, [], SCORES, given, rows, heads)
    assert "could not be written" in capsys.readouterr().err


def test_of_many_rows_some_are_looked_at():
    assert [*sampled(3)] == [0, 1, 2]
    some = [*sampled(393_000)]
    assert len(some) == len(set(some)) == SAMPLE and (some[0], some[-1]) == (0, 392_999)
    assert sum(b - a > 1 for a, b in pairwise(some)) == BLOCKS - 1


def test_settings_are_those_that_were_given():
    road = {
        "model": str(sample_path("tokenizer")), "steps": 5, "passes": 4,
        "tasks": {"a": {"type": "regression"}}, "datasets": {"a": {"task": "a", "train": "x.tsv"}},
    }  # fmt: skip
    ds = {"optimizer": {"type": "Adam"}}
    given = settings_given(RoadConfig.model_validate(road), ds)
    ds["optimizer"]["filled in"] = 1
    assert given["optimizer"] == {"type": "Adam"} and "passes" not in given["road"] and given["road"]["steps"] == 5
    assert given["road"]["datasets"] == {"a": {"task": "a", "train": "x.tsv"}}
