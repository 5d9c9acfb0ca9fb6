"""Everything that is not training, on the folders of a small trained run."""

import csv
import io
import json
import os
import re
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from forked import run_forked, start_forked
from runs import TINY_ELECTRA, error_of, tiny_config
from safetensors.torch import load_file

from road_ds import train

CONTEXT = "Ada lives in Oslo. Her friend Ola lives in Bergen."


@pytest.fixture(scope="module")
def run(tmp_path_factory, cache) -> Path:
    """A finished run under ZeRO 1 with three heads and checkpoints after steps 2 and 4."""
    root = tmp_path_factory.mktemp("commands")
    config = tiny_config(steps=4, save_every=2, output=str(root / "run"), cache=str(cache))
    config["zero_optimization"] = {"stage": 1}
    (root / "run.json").write_text(json.dumps(config))
    done = run_forked("road_ds/train.py", "--deepspeed_config", root / "run.json")
    assert done.returncode == 0, done.stderr
    return root / "run"


@pytest.fixture
def typed(monkeypatch):
    """Puts bytes on standard input."""
    return lambda data: monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))


# --------------------------------------------------------------------------------------------------- evaluate


def test_evaluate_gives_the_scores_of_the_runs_own_evaluation(run, command):
    scores = json.loads((run / "results.json").read_text())["scores"]
    code, out, _ = command("evaluate", run / "model" / "inference", "--data", "sample:inference.dev.jsonl",
                           "--set", "max_rows=60", "--json")  # fmt: skip
    assert code == 0
    assert json.loads(out)["rows"] == 60
    assert json.loads(out)["scores"] == pytest.approx(scores["inference"]["scores"])
    assert json.loads(out)["baseline"] == pytest.approx(scores["inference"]["baseline"])
    code, out, _ = command("evaluate", run / "model" / "qa", "--data", "sample:people.dev.json", "--set", "max_rows=60",
                           "--json", "--batch-size", 7)  # fmt: skip
    assert code == 0 and json.loads(out)["scores"] == pytest.approx(scores["people"]["scores"])


def test_evaluate_prints_a_table_with_the_baseline(run, command):
    settings = ["columns.text_a=first", "columns.text_b=second", "columns.label=same", "max_rows=60"]
    sets = [word for setting in settings for word in ("--set", setting)]
    code, out, _ = command("evaluate", run / "model" / "paraphrase", "--data", "sample:paraphrase.dev.csv", *sets)
    head, _, row = out.strip().splitlines()
    assert code == 0 and head.split()[:2] == ["data", "set"] and "baseline" in head
    assert row.split()[:2] == ["sample:paraphrase.dev.csv", "60"]


# ---------------------------------------------------------------------------------------------------- predict


def test_predict_points_at_the_answer_in_the_context(run, command):
    code, out, _ = command("predict", run / "model" / "qa", "--text", "Where does Ada live?", "--pair", CONTEXT)
    values = dict(line.split(maxsplit=1) if " " in line.strip() else (line.strip(), "") for line in out.splitlines())
    assert code == 0 and set(values) == {"answer", "span", "start", "end", "score", "no_answer"}
    assert values["span"] and CONTEXT[int(values["start"]) : int(values["end"])] == values["span"]
    assert values["answer"] in ("", values["span"])


def test_predict_on_a_file_gives_one_json_line_a_row(run, command, tmp_path):
    texts = ["Ada lives in Oslo 😀.", CONTEXT, "e\u0301te\u0301 in Ola\u2028Oslo", "\u200b", "x " * 400]
    rows = [{"id": f"r{n}", "question": "Where does Ada live?", "context": text} for n, text in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    code, out, _ = command("predict", run / "model" / "qa", "--file", tmp_path / "rows.jsonl", "--batch-size", 2)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in out.split("\n") if line]
    assert code == 0 and [line["id"] for line in lines] == ["r0", "r1", "r2", "r3", "r4"]
    for line, text in zip(lines, texts, strict=True):
        assert text[line["start"] : line["end"]] == line["span"]
    assert lines[3]["span"] == lines[3]["answer"] == ""


@pytest.mark.parametrize("label", ["", None, -1, "hidden", 1.5])
def test_predict_needs_neither_labels_nor_answers_nor_ids_of_their_own(run, command, tmp_path, label):
    rows = [{"id": "same", "premise": "Ada lives in Oslo.", "hypothesis": "h", "label": label}] * 2
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = run / "model" / "inference"
    code, out, _ = command("predict", model, "--file", tmp_path / "rows.jsonl")
    assert code == 0 and [json.loads(line)["id"] for line in out.splitlines()] == ["same", "same"]
    settings = ["--set", "columns.label=missing", "--set", "columns.id=null"]
    code, out, _ = command("predict", model, "--file", tmp_path / "rows.jsonl", *settings)
    assert code == 0 and [json.loads(line)["id"] for line in out.splitlines()] == ["rows-0", "rows-1"]
    message = error_of(command("evaluate", model, "--data", tmp_path / "rows.jsonl"))
    assert message.startswith(f"error: {tmp_path}/rows.jsonl:1: " if label in ("", None) else "error: rows.jsonl:")
    for answers in (None, [{"text": "nowhere", "answer_start": 3}], [{"text": "", "answer_start": -1}]):
        paragraph = {"context": CONTEXT, "qas": [{"id": "q", "question": "Where?", "answers": answers}]}
        (tmp_path / "test.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
        code, out, _ = command("predict", run / "model" / "qa", "--file", tmp_path / "test.json")
        assert code == 0 and json.loads(out)["id"] == "q"


@pytest.mark.parametrize("option", ["--text", "--file"])
def test_text_that_is_not_utf_8_is_named(run, command, option):
    message = error_of(command("predict", run / "model" / "inference", option, os.fsdecode(b"caf\xe9")))
    assert message.startswith("error: 'caf\\udce9' on the command line is not UTF-8")


def test_predict_on_standard_input_is_predict_on_text(run, command, typed):
    typed("\ufeffAda lives in Oslo.\tAda does not live in Oslo.\r\n\n  \nOne text, Ole\tå\n".encode())
    code, out, _ = command("predict", run / "model" / "inference")
    first, second = map(json.loads, out.splitlines())
    assert code == 0 and (first.pop("id"), second.pop("id")) == ("1", "4")
    label, shares = first.pop("label"), first
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3) and label == max(shares, key=shares.get)
    text = ["--text", "Ada lives in Oslo.", "--pair", "Ada does not live in Oslo."]
    _, out, _ = command("predict", run / "model" / "inference", *text)
    assert {line.split()[0]: line.split()[1] for line in out.splitlines()} == {"label": label, **{k: str(v) for k, v in shares.items()}}  # fmt: skip


def test_a_head_of_pairs_refuses_a_lone_text(run, command, typed, tmp_path):
    """Typed, in a file or on standard input; and as exported again from a checkpoint."""
    said, file = (
        "one text, the head reads two: give both",
        saved(tmp_path, "lone.jsonl", '{"text": "a", "label": "neutral"}\n'),
    )
    assert command("export", run, "--output", tmp_path / "again")[0] == 0
    for model in (run / "model" / "inference", tmp_path / "again" / "inference"):
        assert error_of(command("predict", model, "--text", "a")) == f"error: --text: {said}"
        typed(b"a\tb\nc\n")
        assert error_of(command("predict", model)) == f"error: standard input:2: {said}"
        for name, option in (("predict", "--file"), ("evaluate", "--data")):
            assert error_of(command(name, model, option, file)) == f"error: {file.name}:1: {said}"
        assert command("predict", model, "--text", "a", "--pair", "b")[0] == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"", "error: standard input is empty: give lines of TEXT or TEXT<tab>SECOND TEXT, or use --text or --file"),
        (b"a\tb\nc\td\te\n", "error: standard input:2: 3 columns, expected TEXT or TEXT<tab>SECOND TEXT"),
        (b"a\tb\ncaf\xe9\tb\n", "error: standard input:2: the line is not UTF-8"),
        (b"Where?\n", "error: standard input:1: the question has no context to find its answer in: give both texts"),
    ],
)
def test_standard_input_that_cannot_be_used(run, command, typed, given, message):
    typed(given)
    assert error_of(command("predict", run / "model" / "qa")) == message


ROWS = [
    {"id": "r0", "question": "Where does Ada live?", "context": CONTEXT},
    {"id": "r1", "question": 'Who, "Ola"?\nYes', "context": "Ada lives in Oslo 😀."},
]


def lines_of(out: str) -> list[dict]:
    return [json.loads(line) for line in out.splitlines()]


def test_all_heads_of_a_run_answer_at_once_and_with_the_texts(run, command, tmp_path):
    file = saved(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    alone = {}
    for head in ("qa", "inference", "paraphrase"):
        alone[head] = lines_of(command("predict", run / "model" / head, "--file", file)[1])
    expected = [
        {"id": f"r{i}", **{head: {k: v for k, v in lines[i].items() if k != "id"} for head, lines in alone.items()}}
        for i in range(2)
    ]
    code, out, _ = command("predict", run, "--file", file)
    assert code == 0 and lines_of(out) == [dict(sorted(line.items())) for line in expected]
    two = [run / "model" / head for head in ("paraphrase", "qa")]
    code, out, _ = command("predict", *two, "--file", file, "--with-text")
    assert code == 0 and [list(line) for line in lines_of(out)] == [["id", "text_a", "text_b", "paraphrase", "qa"]] * 2
    for line, row, other in zip(lines_of(out), ROWS, expected, strict=True):
        assert line == {"id": row["id"], "text_a": row["question"], "text_b": row["context"], "paraphrase": other["paraphrase"], "qa": other["qa"]}  # fmt: skip


def test_csv_holds_what_json_lines_hold(run, command, tmp_path):
    file = saved(tmp_path, "rows.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS))
    _, out, _ = command("predict", run, "--file", file, "--with-text")
    code, table, _ = command("predict", run, "--file", file, "--with-text", "--csv")
    assert code == 0
    for line, row in zip(lines_of(out), csv.DictReader(io.StringIO(table)), strict=True):
        texts = {key: line.pop(key) for key in ("id", "text_a", "text_b")}
        flat = {f"{head}.{key}": value for head, said in line.items() for key, value in said.items()}
        assert row == {**texts, **{key: value if isinstance(value, str) else json.dumps(value) for key, value in flat.items()}}  # fmt: skip
    code, table, _ = command("predict", run / "model" / "inference", "--text", "a", "--pair", "b", "--csv")
    assert code == 0 and table.splitlines()[0].split(",")[:2] == ["id", "label"] and len(table.splitlines()) == 2


def test_heads_that_read_other_rows_are_left_out_by_name(run, command, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run / "model", copy / "model")
    file = copy / "model" / "inference" / "road_task.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "pairs": False}))
    (file.parent / "road_files.json").unlink()  # or it is named as changed
    code, out, err = command("predict", copy, "--text", "Ada", "--pair", CONTEXT)
    assert code == 0 and {line.split(".")[0] for line in out.splitlines()} == {"qa", "paraphrase"}
    assert f"warning: {copy}: the rows are pairs of texts: left out are inference\n" in err
    code, out, err = command("predict", copy, "--text", "Ada")
    assert code == 0 and out.startswith("inference.label ") and "left out are paraphrase, qa" in err
    message = f"error: {run}: the rows are lone texts, which none of its heads reads (inference, paraphrase, qa)"
    assert error_of(command("predict", run, "--text", "Ada")) == message
    message = f"error: {copy}/model/qa and {run}/model/qa: two models called qa: ask one after the other"
    assert error_of(command("predict", copy, run / "model" / "qa", "--text", "Ada", "--pair", "b")).endswith(message)


# ----------------------------------------------------------------------------------------------------- export


def test_export_writes_what_the_run_wrote(run, command, tmp_path):
    newest = run / "checkpoints" / "step-00000004"
    for source, target in ((newest, tmp_path / "a"), (run, tmp_path / "b")):
        code, out, _ = command("export", source, "--output", target)
        assert code == 0 and out.split()[-3:] == [str(target / head) for head in ("qa", "inference", "paraphrase")]
        for head in ("qa", "inference", "paraphrase"):
            weights = "model.safetensors"
            assert (target / head / weights).read_bytes() == (run / "model" / head / weights).read_bytes()
            assert (target / head / "road_task.json").read_text() == (
                run / "model" / head / "road_task.json"
            ).read_text()
    older = tmp_path / "older"
    assert command("export", run / "checkpoints" / "step-00000002", "--output", older)[0] == 0
    before, after = (load_file(folder / "qa" / "model.safetensors") for folder in (older, run / "model"))
    assert before.keys() == after.keys() and not all(torch.equal(before[key], after[key]) for key in before)


def test_export_names_what_is_damaged(run, command, tmp_path):
    damaged = tmp_path / "step-00000004"
    shutil.copytree(run / "checkpoints" / "step-00000004", damaged)
    with next(damaged.glob("engine/*model_states.pt")).open("r+b") as file:
        file.seek(1000)
        file.write(b"\x00\x01\x02")
    assert "mp_rank_00_model_states.pt: has changed since it was saved" in error_of(command("export", damaged))


# ------------------------------------------------------------------------------------------------------ score


def gold(tmp_path, **questions: list[str]) -> Path:
    qas = [{"id": id, "answers": [{"text": text} for text in texts]} for id, texts in questions.items()]
    path = tmp_path / "gold.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": "c", "qas": qas}]}]}))
    return path


def saved(tmp_path, name: str, value) -> Path:
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_score_by_hand(command, tmp_path):
    golds = gold(tmp_path, a=["the blue car"], b=["x y", "y"], c=[], d=[])
    given = saved(tmp_path, "predictions.json", {"a": "Blue car!", "b": "y z", "c": "", "d": "something"})
    code, out, _ = command("score", "squad2", golds, given)
    scores = json.loads(out)
    assert code == 0
    assert scores["exact"] == 50 and scores["f1"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 4) and scores["total"] == 4
    assert (scores["HasAns_exact"], scores["HasAns_total"]) == (50, 2)
    assert (scores["NoAns_exact"], scores["NoAns_f1"], scores["NoAns_total"]) == (50, 50, 2)
    assert not any(key.startswith("best") for key in scores)
    chances = saved(tmp_path, "chances.json", {"a": 0.1, "b": 0.2, "c": 0.9, "d": 0.8})
    code, out, _ = command("score", "squad2", golds, given, "--na-prob", chances)
    tuned = json.loads(out)
    assert code == 0 and {key: tuned[key] for key in scores} == scores
    assert (tuned["best_exact"], tuned["best_exact_thresh"]) == (75, 0.1)
    assert (tuned["best_f1"], tuned["best_f1_thresh"]) == (pytest.approx(100 * (3 + 2 / 3) / 4), 0.2)
    code, out, _ = command("score", "squad2", golds, given, "--na-prob", chances, "--na-prob-thresh", 0.5)
    assert json.loads(out)["NoAns_exact"] == 100 and json.loads(out)["HasAns_exact"] == 50


@pytest.mark.parametrize(
    ("golds", "predictions", "message"),
    [
        ('{"data": [', {}, "gold.json:1: malformed JSON at column 11"),
        ({"version": 2}, {}, "gold.json: not SQuAD JSON (KeyError: 'data'); expected"),
        ([], {}, "gold.json: not SQuAD JSON"),
        ({"data": []}, {}, "no gold questions to score"),
        (None, [], "predictions.json: holds []; expected one JSON object"),
        (None, {"a": 5}, "predictions.json: question 'a' has 5; expected a text"),
        (None, '{"a": "x", "a": "y"}', "predictions.json: key 'a' stands twice in one object"),
        (None, None, "none.json: No such file or directory"),
    ],
)
def test_score_names_what_is_malformed(command, tmp_path, golds, predictions, message):
    golds = gold(tmp_path, a=["x"]) if golds is None else saved(tmp_path, "gold.json", golds)
    given = tmp_path / "none.json" if predictions is None else saved(tmp_path, "predictions.json", predictions)
    assert message in error_of(command("score", "squad2", golds, given))


@pytest.mark.parametrize(
    ("chances", "message"),
    [
        ({"a": "high"}, "chances.json: question 'a' has 'high'; expected a finite number"),
        ({"b": 0.5}, "1 predictions have no no-answer probability, the first is question 'a'"),
        ('{"a": NaN}', "chances.json: NaN is not JSON"),
        ('{"a": 1e999}', "chances.json: question 'a' has inf; expected a finite number"),
    ],
)
def test_score_names_a_bad_probability(command, tmp_path, chances, message):
    given = saved(tmp_path, "predictions.json", {"a": "x"})
    files = [gold(tmp_path, a=["x"]), given, "--na-prob", saved(tmp_path, "chances.json", chances)]
    assert message in error_of(command("score", "squad2", *files))


# ----------------------------------------------------------------------------------------------- wrong folders


def test_folders_that_are_not_models(run, command, tmp_path):
    empty, damaged, headless = tmp_path / "empty", tmp_path / "damaged", tmp_path / "headless"
    empty.mkdir()
    shutil.copytree(run / "model" / "qa", damaged)
    (damaged / "road_files.json").unlink()  # or a warning comes before
    (damaged / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{broken}")
    finished = tmp_path / "finished"
    finished.mkdir()
    (finished / "run.json").write_text((run / "run.json").read_text())
    headless.mkdir()
    (headless / "config.json").write_text(json.dumps({"model_type": "electra", "architectures": ["ElectraModel"], **TINY_ELECTRA}))  # fmt: skip
    text = ["--text", "Where?", "--pair", CONTEXT]
    for folder, message in [
        (tmp_path / "none" / "model", f"{tmp_path}/none/model: no such folder, and not a hub name (org/name): check the path"),
        (empty, f"{empty}: the folder holds no config.json: expected a Hugging Face model folder"),
        (headless, f"{headless}: ElectraModel has no task head: expected a question-answering or classification model"),
        (damaged, f"{damaged}: the weights cannot be loaded: Error while deserializing header"),
    ]:  # fmt: skip
        assert error_of(command("predict", folder, *text)).startswith(f"error: {message}")
    data = ["--data", "sample:people.dev.json", "--set", "max_rows=2"]
    assert "error: " in error_of(command("evaluate", empty, *data))
    for folder, message in [
        (tmp_path / "none", "no such folder: give runs/<name> or runs/<name>/checkpoints/step-N"),
        (empty, "manifest.json: is missing"),
        (
            finished,
            f"{finished}: the run keeps no checkpoint to export: its models are in {finished}/model, as it wrote",
        ),
    ]:
        assert message in error_of(command("export", folder))


def test_rows_that_do_not_fit_the_model(run, command, tmp_path):
    labels = saved(tmp_path, "rows.jsonl", '{"premise": "a", "hypothesis": "b", "label": "entailement"}\n')
    inference = ["evaluate", run / "model" / "inference", "--data"]
    assert "rows.jsonl:1: label 'entailement' is none of the task's labels" in error_of(command(*inference, labels))
    without = saved(tmp_path, "without.jsonl", '{"premise": "a", "hypothesis": "b"}\n')
    assert "without.jsonl:1: the row has nothing to score against" in error_of(command(*inference, without))
    assert "none.jsonl does not exist; expected a file" in error_of(command(*inference, tmp_path / "none.jsonl"))
    setting = [*inference, labels, "--set", "colums.label=x"]
    assert "--set.colums: unknown key; did you mean 'columns'?" in error_of(command(*setting))
    only = ["predict", run / "model" / "qa", "--text", "Where?"]
    assert "--text: the question has no context to find its answer in" in error_of(command(*only))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["predikt"],
        ["predict"],
        ["predict", "m", "--text", "a", "--file", "b"],
        ["evaluate", "m"],
        ["evaluate", "m", "--data", "d", "--batch-size", "0"],
        ["check", "f", "--gpus", "-1"],
        ["score", "squad1", "a", "b"],
    ],
)
def test_a_wrong_command_line_shows_the_right_one(command, arguments):
    code, out, err = command(*arguments)
    assert code == 2 and out == "" and err.startswith("usage: python -m road_ds")


def test_check_prints_the_plan_or_the_fault(run, command):
    code, out, _ = command("check", run / "config.json", "--gpus", 2, "--set", "train_micro_batch_size_per_gpu=2",
                           "--set", "gradient_accumulation_steps=6")  # fmt: skip
    assert code == 0 and "4 steps of 3 passes x 8 rows" in out and "on 2 processes" in out
    fault = error_of(command("check", run / "config.json", "--set", "road.stepz=1"))
    assert fault == f"error: {run}/config.json: road.stepz: unknown key; did you mean 'steps'?"
    code, out, err = command("--debug", "check", run / "none.json")
    assert code == 2 and "Traceback (most recent call last)" in err and "error: cannot read" in err


# ---------------------------------------------------------------------------------------------------- signals


def test_a_reader_that_leaves_early_leaves_no_traceback(run, tmp_path):
    """As `| head -1` does."""
    rows = "".join(json.dumps({"id": str(n), "premise": "a", "hypothesis": "b"}) + "\n" for n in range(3000))
    file = saved(tmp_path, "rows.jsonl", rows)
    os.mkfifo(tmp_path / "predict.out")
    command = ("-m", "road_ds", "predict", run / "model" / "inference", "--file", file)
    predicting = start_forked(tmp_path / "predict", *command)
    with (tmp_path / "predict.out").open() as said:
        json.loads(said.readline())
    predicting.join(100)
    errors = (tmp_path / "predict.err").read_text()
    assert predicting.exitcode == 141 and "Traceback" not in errors and "BrokenPipe" not in errors, errors


def test_a_stop_by_hand_leaves_no_traceback(run, command, monkeypatch):
    class Waiting:
        def read(self):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(30)  # the signal may come a moment later

    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=Waiting()))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        assert command("predict", run / "model" / "inference") == (130, "", "")
    except KeyboardInterrupt:
        pytest.fail("the command let KeyboardInterrupt through, which would have shown a traceback")
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("output", ["/proc/none/such", "file/below"])
def test_an_output_that_cannot_be_written_is_named_before_the_work(output, run, command, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    path = tmp_path / output  # an absolute one stays as it is
    message = rf"error: {re.escape(str(path.parent))}.*: (No such file or directory|Not a directory)( \(.*\))?"
    monkeypatch.setattr("road_ds.models.ensemble.Ensemble.of", lambda *_: pytest.fail("the work was begun"))
    rows = ("--data", "sample:inference.dev.jsonl", "--set", "max_rows=5")
    assert re.fullmatch(message, error_of(command("evaluate", run / "model" / "inference", *rows, "--output", path)))
    assert re.fullmatch(message, error_of(command("export", run, "--output", path)))


def test_a_removed_working_folder_is_named(command, config_file, tmp_path, monkeypatch, capsys):
    file, gone = config_file(tiny_config()), tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    message = "error: the working folder has been removed: change to one that is there"
    assert error_of(command("check", file)) == message
    assert train.main(["--deepspeed_config", str(file)]) == 2 and capsys.readouterr().err == message + "\n"
