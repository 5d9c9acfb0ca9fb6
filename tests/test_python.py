"""The functions that Python has beside the commands: load, train, check, compare."""

import gc
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from forked import run_forked
from runs import ROOT, environment, records, tiny_config

import road_ds
from road_ds import loop
from road_ds.commands.python import _rows
from road_ds.common.digest import file_sha256
from road_ds.common.errors import RoadError
from road_ds.config.road import RoadConfig
from road_ds.engine.finished import Table
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.models.export import export
from road_ds.tasks.registry import TASKS, task_from

CONTEXT = "Ada lives in Oslo. Her friend Ola lives in Bergen."


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """What the page's blocks leave behind, run as they stand; and the folder that they were run in."""
    folder, text = tmp_path_factory.mktemp("page"), (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    before, found = Path.cwd(), {}
    os.chdir(folder)
    try:
        for block in blocks:
            exec(compile(block, "docs/python.md", "exec"), found)
    finally:
        os.chdir(before)
    found["folder"] = folder
    return found


def test_the_page_runs_as_it_stands(page, monkeypatch):
    monkeypatch.chdir(page["folder"])
    run, other = page["run"], page["other"]
    assert run.results["seed"] == 1 and other.results["seed"] == 2
    assert json.loads((other.folder / "config.json").read_text())["optimizer"]["params"]["lr"] == 5e-4
    assert {*run.models} == {"qa", "inference"} and all((path / "config.json").exists() for path in run.models.values())
    assert run.metrics[1] == {
        "data set": "inference", "rows": 60, "metric": "accuracy", "dev": run.scores["inference"]["accuracy"],
        "baseline": run.results["scores"]["inference"]["baseline"]["accuracy"],
    }  # fmt: skip
    assert run.curves["loss"].steps == [*range(1, 9)] and run.curves["places/f1"].steps == [4, 8]
    assert repr(run).splitlines()[0].split() == ["data", "set", "rows", "metric", "dev", "baseline"]
    assert "runs/small-1: 8 steps" in repr(run) and "<td>inference</td>" in run._repr_html_()
    assert page["compared"]["data_sets"]["places"]["groups"]["slow"]["difference"] is not None
    assert "difference: against fast" in repr(page["compared"])


def test_answers_are_those_of_predict(page, command, monkeypatch, tmp_path):
    """A text, a row, columns, lists of each: the same answers, and the command's."""
    monkeypatch.chdir(page["folder"])
    ask, judge, pair = page["ask"], page["judge"], ("The bakery is open.", "The bakery is closed.")
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"premise": pair[0], "hypothesis": pair[1]}) + "\n")
    _, out, _ = command("predict", "runs/small-1/model/inference", "--file", rows)
    expected = {key: value for key, value in json.loads(out).items() if key != "id"}
    assert judge(*pair) == expected and judge(premise=pair[0], hypothesis=pair[1]) == expected
    assert judge({"sentence1": pair[0], "sentence2": pair[1]}) == expected
    assert judge([pair[0]], [pair[1]]) == [expected] == judge([{"text_a": pair[0], "text_b": pair[1]}])
    assert judge(premise=[pair[0], pair[1]], hypothesis=pair[1])[0] == expected
    assert judge([], []) == [] == judge([])
    asked = ask(question="Who lives in Oslo?", context=CONTEXT)
    assert ask("Who lives in Oslo?", CONTEXT) == asked == ask(question=["Who lives in Oslo?"], context=CONTEXT)[0]
    assert json.loads(json.dumps(asked)) == asked, "plain values"
    assert "classification of runs/small-1/model/inference on cpu" in repr(judge)


LABELS = {
    "classification": ["no", "yes"],
    "multi_label": ["wet", "loud"],
    "token_classification": ["O", "B-PER", "I-PER"],
}


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A folder with an untrained head for each task there is, by its type."""
    folder = tmp_path_factory.mktemp("untrained")
    spec = RoadConfig.model_validate(tiny_config()["road"]).model
    blocks = {
        kind: {"type": kind, "max_length": 128} | ({"labels": LABELS[kind]} if kind in LABELS else {}) for kind in TASKS
    }
    tasks, tokenizer = {kind: task_from(block, kind) for kind, block in blocks.items()}, load_tokenizer(spec)
    model = build_model(spec, tasks, tokenizer, dropout=None, seed=0)
    export(model, model.state_dict(), tokenizer, folder)
    return folder


@pytest.mark.parametrize("kind", TASKS)
def test_every_task_is_asked_as_its_model_card_says(untrained, kind):
    """By one way, with plain values, the same alone and among others."""
    ask = road_ds.load(untrained / kind)
    answer = eval(TASKS[kind].asked.partition("  #")[0], {"ask": ask})
    assert answer and json.loads(json.dumps(answer)) == answer
    rows = [{"question": "Who?", "context": CONTEXT}, {"question": "Where is Ada?", "context": CONTEXT}]
    if kind != "span_qa":
        rows = [{"text": "Ada lives in Oslo."}, {"text": "Ola is loud, and Bergen is wet."}]
    if kind == "multiple_choice":
        rows = [
            {"question": "Who?", "choices": ["Ada", "Ola"]},
            {"question": "Where?", "choices": ["Oslo", "Bergen", "Hamar"]},
        ]
    first, second = ask(rows)
    assert close(ask(rows[0]), first) and close(ask(rows[1]), second)
    assert kind == "multiple_choice" or close(ask(**rows[1]), second)


def close(left: object, right: object) -> bool:
    """Whether two answers are the same to the last shown digit."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right))
    return left == pytest.approx(right, abs=2e-4) if isinstance(left, float) else left == right


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (((), {}), "give texts, rows, or columns by name"),
        ((("a",), {"question": "b"}), "give texts, rows, or columns by name"),
        (((["a", "b"], ["c"]), {}), "lists of different lengths: text_a has 2, text_b has 1"),
        (((), {"premise": "a"}), "row 0: no column with a well-known name for text"),
        (((), {"premise": ["a", ""], "hypothesis": "b"}), "row 1: column 'premise' .* is empty"),
        ((("a",), {}), "row 0: one text, the head reads two"),
        (((7,), {}), "row 0: column 'text' .* is 7; expected text"),
        ((([1],), {}), "row 0: column 'text' .* is 1; expected text"),
    ],
)
def test_questions_that_cannot_be_read(page, given, message):
    with pytest.raises(RoadError, match=message):
        page["judge"](*given[0], **given[1])


def test_a_list_of_lists_gives_each_row_its_own():
    assert _rows(None, None, {"tokens": [["a", "b"], ["c"]]}) == ([{"tokens": ["a", "b"]}, {"tokens": ["c"]}], True)
    assert _rows({"tokens": ["a", "b"]}, None, {}) == ([{"tokens": ["a", "b"]}], False)


# ------------------------------------------------------------------------------------------------------- train


def test_the_second_run_of_a_script_leaves_the_commands_bits(tmp_path, cache):
    """One run after another, with another seed, in one process: nothing of the first is left in the second."""
    config = tiny_config(cache=str(cache), steps=3, dropout=0.1, use=["places", "inference"])
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 1e-3}}
    (tmp_path / "run.json").write_text(json.dumps(config))
    script = tmp_path / "script.py"
    script.write_text(
        "import os\nfrom road_ds import train\n"
        f"train({str(tmp_path / 'run.json')!r}, output={str(tmp_path / 'first')!r}, seed=7)\n"
        f"print('models', train({str(tmp_path / 'run.json')!r}, output={str(tmp_path / 'second')!r}).models)\n"
        "assert not {'RANK', 'WORLD_SIZE', 'MASTER_PORT'} & {*os.environ}\n"
    )
    done = run_forked(script)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "second/model/qa" in done.stdout
    command = ["--deepspeed_config", tmp_path / "run.json", "--set", f"road.output={tmp_path}/alone"]
    alone = run_forked("road_ds/train.py", *command)
    assert alone.returncode == 0, alone.stderr[-3000:]
    bits = {
        name: [file_sha256(tmp_path / name / "model" / head / "model.safetensors") for head in ("qa", "inference")]
        for name in ("first", "second", "alone")
    }
    assert bits["second"] == bits["alone"] != bits["first"]


def test_faults_are_exceptions_and_told_in_the_folder(config_file, tmp_path):
    config = tiny_config()
    config["road"] |= {"output": str(tmp_path / "run"), "stepz": 3}
    with pytest.raises(RoadError, match=r"run: road\.stepz: unknown key; did you mean 'steps'\?"):
        road_ds.train(config)
    with pytest.raises(RoadError, match=r"optimizer: expected what JSON can hold, and paths: .*set"):
        road_ds.train(config, optimizer={1, 2})
    del config["road"]["stepz"]
    with pytest.raises(RoadError, match="mew: unknown key"):
        road_ds.train(config, mew=1)
    config["road"]["datasets"]["inference"]["columns"] = {"label": "premise"}
    with pytest.raises(RoadError, match="is none of the task's labels"):
        road_ds.train(config, output=tmp_path / "run")
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert status["status"] == "failed" and "is none of the task's labels" in status["reason"]
    assert not (tmp_path / "run" / "run.json").exists()


def test_several_processes_are_the_commands(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RoadError, match=r"one process: start several with deepspeed road_ds/train\.py"):
        road_ds.train({})


@pytest.fixture
def one_set(tmp_path, cache):
    config = tiny_config(cache=str(cache), output=str(tmp_path / "run"), use=["inference"], passes=1, save_every=2)
    return config | {"train_batch_size": 8}


def test_a_stop_saves_and_is_passed_on(one_set, tmp_path, monkeypatch):
    """Ctrl-C in the middle: KeyboardInterrupt after a checkpoint, and the run goes on where it was."""
    one_set["road"] |= {"steps": 6, "save_every": 0}
    real = loop.one_step

    def stopped(*args, step, **kwargs):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return real(*args, step=step, **kwargs)

    monkeypatch.setattr(loop, "one_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        road_ds.train(one_set)
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["status"], status["step"]) == ("preempted", 3)
    monkeypatch.setattr(loop, "one_step", real)
    assert road_ds.train(one_set, resume=True).results["step"] == 6
    assert [line["step"] for line in records(tmp_path / "run") if "loss" in line] == [*range(1, 7)]


def test_a_thread_may_train_and_the_engine_is_let_go(one_set, spared, monkeypatch):
    """Signals are the main thread's; memory is not: what a run held of it is free afterwards."""
    from deepspeed import DeepSpeedEngine

    def engines() -> list:
        gc.unfreeze()  # what is frozen is not listed
        return [thing for thing in gc.get_objects() if isinstance(thing, DeepSpeedEngine)]

    monkeypatch.setattr(loop, "standing_objects_spared", spared)
    found, others = [], engines()  # what tests before this one have left
    thread = threading.Thread(target=lambda: found.append(road_ds.train(one_set)))
    thread.start()
    thread.join()
    assert found[0].results["step"] == 5
    assert not [engine for engine in engines() if not any(engine is other for other in others)]


def test_the_import_is_cheap():
    """No torch before a function is asked for."""
    code = "import sys, road_ds; dir(road_ds); sys.exit(bool({'torch', 'transformers', 'numpy'} & {*sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {"load", "train", "check", "compare"} == {*road_ds.__all__}


@pytest.mark.parametrize("first", ["file", "function"])
def test_train_is_one_thing_whichever_way_it_came(first, monkeypatch):
    """The file of the command and the function have one name, and there is one object: the order of imports says nothing."""
    monkeypatch.delattr(road_ds, "train", raising=False)
    if first == "file":
        monkeypatch.delitem(sys.modules, "road_ds.train", raising=False)
        from road_ds.train import main
    from road_ds import train

    if first == "function":
        from road_ds.train import main
    assert callable(train) and train is road_ds.train is sys.modules["road_ds.train"] and train.main is main


def test_a_table_is_rows_of_plain_values():
    rows = Table([{"a": "x<y", "b": 1.25}, {"a": "z", "b": 10.0}])
    assert repr(rows).splitlines() == ["a       b", "---  ----", "x<y   1.2", "z    10.0"]
    assert rows._repr_html_().count("<tr>") == 3 and "x&lt;y" in rows._repr_html_()
    assert repr(Table()) == ""
