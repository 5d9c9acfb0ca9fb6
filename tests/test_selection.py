"""Which model a run exports, which data sets it uses, and the rows it leaves behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from runs import launch, records, tiny_config
from safetensors.torch import load_file

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.config.file import load_config
from road_ds.data.readers import read
from road_ds.distillation.registry import objective_from
from road_ds.engine import checkpoint
from road_ds.engine.run_folder import RunFolder
from road_ds.engine.selection import Best
from road_ds.models.ensemble import Ensemble
from road_ds.tasks.evaluation import Evaluated


def choosing(tmp_path, cache, **road) -> dict:
    """A run whose scores go up and down."""
    settings = {"steps": 6, "evaluate_every": 1, "select": "best", "save_every": 4, "dropout": 0.1, **road}
    config = tiny_config(output=str(tmp_path / "run"), cache=str(cache), **settings)
    config["optimizer"] = {"type": "AdamW", "params": {"lr": 0.02}}
    return config


def written(tmp_path, config: dict, name: str = "run") -> Path:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(config))
    return path


def mean_headlines(run: Path) -> dict[int, float]:
    """The mean headline metric of each evaluation, by step."""
    metrics = {f"{n}/{r['headline']}" for n, r in json.loads((run / "results.json").read_text())["scores"].items()}
    lines = [line for line in records(run) if metrics <= line.keys()]
    return {line["step"]: float(np.mean([line[key] for key in metrics])) for line in lines}


# ---------------------------------------------------------------------------------------------------- select


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), (3, 2)])
def test_the_best_evaluation_is_exported(tmp_path, cache, stage, ranks):
    config = choosing(tmp_path, cache)
    config["zero_optimization"] = {"stage": stage}
    path = written(tmp_path, config)
    if ranks == 1:
        assert train.main(["--deepspeed_config", str(path)]) == 0
    else:
        done = launch("road_ds/train.py", "--deepspeed_config", path, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    means, results = mean_headlines(run), json.loads((run / "results.json").read_text())
    best = max(means, key=means.__getitem__)  # of equals the first
    assert best < 6, "the last step is the best: this run tests nothing"
    assert (results["step"], results["exported_step"]) == (6, best)
    assert np.mean([r["scores"][r["headline"]] for r in results["scores"].values()]) == pytest.approx(means[best])
    exported = Ensemble.of([str(run)], "inference")
    config, _ = load_config(run / "config.json")
    rows = read(
        str(Path("road_ds/data/sample_data/inference.dev.jsonl").resolve()), config.datasets["inference"]
    ).examples
    assert exported.evaluate(rows).scores == pytest.approx(results["scores"]["inference"]["scores"])


def test_a_killed_and_resumed_run_exports_the_same(tmp_path, cache):
    """Killed inside step 6: the resumed run begins again after step 4, evaluations done before included."""
    config = choosing(tmp_path, cache)
    whole = run_forked("road_ds/train.py", "--deepspeed_config", written(tmp_path, config))
    assert whole.returncode == 0, whole.stderr[-3000:]
    config["road"]["output"] = str(tmp_path / "killed")
    path = written(tmp_path, config, "killed")
    killed = run_forked("tests/broken_run.py", "backward", 6, 0, "--deepspeed_config", path)
    assert killed.returncode != 0 and not (tmp_path / "killed" / "results.json").exists()
    resumed = run_forked("road_ds/train.py", "--deepspeed_config", path, "--resume")
    assert resumed.returncode == 0 and "resumed from step-00000004" in resumed.stdout, resumed.stderr[-3000:]
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("run", "killed"))
    assert one["exported_step"] == two["exported_step"] and one["scores"] == two["scores"]
    for head in ("qa", "inference", "paraphrase"):
        left, right = (load_file(tmp_path / name / "model" / head / "model.safetensors") for name in ("run", "killed"))
        assert all(torch.equal(left[key], right[key]) for key in left)


class Engine:
    """As much of an engine as `full_state` looks at."""

    global_rank = 0

    def __init__(self, value: float):
        self.module = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(self.module.weight, value)

    def zero_optimization_stage(self) -> int:
        return 0


class Alone:
    rank = 0

    def any(self, flag: bool) -> bool:
        return flag


def evaluated(score: float) -> dict[str, Evaluated]:
    return {"a": Evaluated({"accuracy": score}, {}, "accuracy", "accuracy", 1, [{"id": "1", "score": 1.0}], "0")}


def test_best_keeps_the_highest_and_the_first_of_equals(tmp_path):
    best = Best(tmp_path / "best", "a")
    for step, score in enumerate([50.0, 70.0, 70.0, 60.0], 1):
        best.offer(Engine(step), Alone(), step, evaluated(score))
        best = Best(tmp_path / "best", "a")  # as a resumed run begins
    step, results, state = best.load()
    assert (step, results, state["weight"].tolist()) == (2, evaluated(70.0), [[2.0, 2.0]])
    assert [p.name for p in (tmp_path / "best").iterdir()] == ["step-00000002"]


def test_a_kill_while_the_best_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    best = Best(tmp_path / "best", "a")
    best.offer(Engine(1), Alone(), 1, evaluated(50.0))
    monkeypatch.setattr("road_ds.engine.selection.commit", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        best.offer(Engine(2), Alone(), 2, evaluated(60.0))
    monkeypatch.undo()
    assert best.load()[0] == 1
    best.offer(Engine(3), Alone(), 3, evaluated(55.0))
    assert best.load()[0] == 3 and len(list((tmp_path / "best").iterdir())) == 1


def test_a_full_disk_is_a_warning_and_keeps_the_one_before(tmp_path, monkeypatch, capsys):
    best = Best(tmp_path / "best", "a")
    best.offer(Engine(1), Alone(), 1, evaluated(50.0))
    monkeypatch.setattr(
        "road_ds.engine.selection.save_file", lambda *_: (_ for _ in ()).throw(OSError("No space left"))
    )
    best.offer(Engine(2), Alone(), 2, evaluated(60.0))
    assert best.load()[0] == 1 and "step 2: its weights could not be kept as the best" in capsys.readouterr().err
    assert [path.name for path in best.root.iterdir()] == ["step-00000001"], "no part stays"


def test_a_damaged_best_is_named(tmp_path):
    with pytest.raises(RoadError, match="cannot be read"):
        Best(tmp_path / "none", "a").load()
    best = Best(tmp_path / "best", "a")
    best.offer(Engine(1), Alone(), 1, evaluated(50.0))
    with pytest.raises(RoadError, match=r"step-00000001: is of another run \(a\)"):
        Best(tmp_path / "best", "b").load()
    for path in checkpoint.committed(best.root)[0].iterdir():
        whole = bytearray(path.read_bytes())
        path.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1]) + whole[-1:])
        with pytest.raises(RoadError, match=r"sha256 differs.*take the last ones with python -m road_ds export"):
            best.load()
        path.write_bytes(whole)
    assert best.load()[0] == 1


def test_a_score_that_is_lost_is_told_of(tmp_path, capsys):
    best = Best(tmp_path / "best", "a")
    best.offer(Engine(1), Alone(), 1, evaluated(50.0))
    manifest = checkpoint.committed(best.root)[0] / "manifest.json"
    manifest.write_text(manifest.read_text().replace("50.0", "54.0"))
    best.offer(Engine(2), Alone(), 2, evaluated(40.0))
    assert "the best evaluation so far is lost" in capsys.readouterr().err and best.load()[0] == 2


@pytest.mark.parametrize("road", [{"evaluate_every": 0}, {"use": ["blind"], "evaluate_every": 2}])
def test_best_needs_evaluations(config_file, road):
    config = tiny_config(select="best", **road)
    config["road"]["datasets"]["blind"] = {"task": "inference", "train": "sample:inference.train.jsonl"}
    with pytest.raises(RoadError, match='select "best" chooses among the evaluations of a run'):
        load_config(config_file(config))


# ------------------------------------------------------------------------------------------------------- use


def test_use_leaves_the_other_data_sets_and_their_tasks_out(config_file):
    weights = {"places": 1, "people": 2, "inference": 3, "paraphrase": 4}
    config, _ = load_config(config_file(tiny_config(use=["paraphrase", "people"], sampling={"weights": weights})))
    assert list(config.datasets) == ["people", "paraphrase"] and list(config.tasks) == ["qa", "paraphrase"]
    assert config.sampling.weights == {"people": 2, "paraphrase": 4} and config.use is None
    everything, _ = load_config(config_file(tiny_config()))
    assert list(everything.datasets) == ["places", "people", "inference", "paraphrase"]


def test_use_leaves_the_teachers_of_other_data_sets_out(config_file):
    teachers = {"people": ["a"], "places": ["b"]}
    distill = {"objective": "kd", "teachers": teachers}
    config, _ = load_config(config_file(tiny_config(use=["people"], distill=distill)))
    assert objective_from(config).teachers == {"people": ["a"]}
    typo = {"objective": "kd", "teachers": {**teachers, "peple": ["c"]}}
    with pytest.raises(RoadError, match=r"teachers.peple: no such data set"):
        objective_from(load_config(config_file(tiny_config(use=["people"], distill=typo)))[0])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (["peple"], r"use names 'peple', which is no data set; did you mean 'people'\?; road.datasets has places, "),
        ([], r"use: got \[\]; expected one or more data sets"),
        (["people", "people"], "each once"),
        ("people", "road.use: got 'people'; input should be a valid list"),
    ],
)
def test_use_must_name_data_sets(config_file, use, message):
    with pytest.raises(RoadError, match=message):
        load_config(config_file(tiny_config(use=use)))


def test_use_with_weights_that_are_zero(config_file):
    weights = {"places": 0, "people": 2, "inference": 3, "paraphrase": 4}
    with pytest.raises(RoadError, match="weights are all zero"):
        load_config(config_file(tiny_config(use=["places"], sampling={"weights": weights})))


# ----------------------------------------------------------------------------------------------- predictions


def test_a_run_leaves_a_line_per_dev_row(tmp_path, cache):
    config = tiny_config(output=str(tmp_path / "run"), cache=str(cache), steps=3)
    config["road"]["tasks"]["rating"] = {"type": "regression"}
    columns = {"text_a": "text", "label": "stars"}
    files = {"train": "sample:reviews.train.tsv", "dev": "sample:reviews.dev.tsv"}
    config["road"]["datasets"]["reviews"] = {"task": "rating", "columns": columns, "max_rows": 60, **files}
    done = run_forked("road_ds/train.py", "--deepspeed_config", written(tmp_path, config))
    assert done.returncode == 0, done.stderr[-3000:]
    run = tmp_path / "run"
    scores = json.loads((run / "results.json").read_text())["scores"]
    assert sorted(p.stem for p in (run / "predictions").iterdir()) == sorted(scores)
    percent = {"f1": 100, "accuracy": 100, "squared_error": 1}
    whole = {"f1": "f1", "accuracy": "accuracy", "squared_error": "mse"}
    for name, result in scores.items():
        lines = [json.loads(line) for line in (run / "predictions" / f"{name}.jsonl").read_text().splitlines()]
        assert len({line["id"] for line in lines}) == len(lines) == result["rows"] == 60
        metric = result["row_metric"]
        assert percent[metric] * np.mean([line["score"] for line in lines]) == pytest.approx(
            result["scores"][whole[metric]]
        )
    assert {"answer", "start", "no_answer"} <= lines_of(run, "people")[0]["prediction"].keys()
    assert lines_of(run, "inference")[0]["prediction"]["label"] in config["road"]["tasks"]["inference"]["labels"]
    shutil.copytree(run / "predictions", run / "best")
    RunFolder(run).clear()
    assert not (run / "predictions").exists() and not (run / "best").exists()


def lines_of(run: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (run / "predictions" / f"{name}.jsonl").read_text().splitlines()]
