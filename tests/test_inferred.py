"""Labels that a task does not name are those of its rows."""

import json
from pathlib import Path

import pytest
from runs import error_of, tiny_config

from road_ds import train
from road_ds.common.errors import Faults, RoadError
from road_ds.config.road import RoadConfig
from road_ds.models.export import TASK_FILE, read_task
from road_ds.tasks.inferred import sorted_labels, with_labels
from road_ds.tasks.registry import heads

WORDS = ["The doctor found a letter .", "The mill is old ."]


def lines(labels) -> str:
    return "".join(
        json.dumps({"id": str(i), "text": f"{WORDS[i % 2]} {i}", "label": label}) + "\n"
        for i, label in enumerate(labels)
    )


def config_of(folder: Path, tasks: dict, datasets: dict, **road) -> dict:
    return tiny_config(tasks=tasks, datasets=datasets, passes=1, steps=2, save_every=2, **road)


def mood(folder: Path, train_rows: str, dev_rows: str | None = None, task: dict | None = None, **spec) -> dict:
    """A configuration of one data set of a task without labels."""
    (folder / "train.jsonl").write_text(train_rows)
    own = {"task": "mood", "train": str(folder / "train.jsonl"), **spec}
    if dev_rows is not None:
        (folder / "dev.jsonl").write_text(dev_rows)
        own["dev"] = str(folder / "dev.jsonl")
    return config_of(folder, {"mood": {"type": "classification", "max_length": 32, **(task or {})}}, {"said": own})


def found(config: dict, faults: Faults | None = None):
    road = RoadConfig.model_validate(config["road"])
    return with_labels(road, heads(road), faults)


def test_labels_of_all_data_sets_of_a_task_are_sorted_and_shared(tmp_path):
    config = mood(tmp_path, lines(["good", "bad", "good", "bad"]))
    (tmp_path / "more.jsonl").write_text(lines(["mixed", "x", "bad"]))
    config["road"]["datasets"]["more"] = {"task": "mood", "train": str(tmp_path / "more.jsonl"), "drop_labels": ["x"]}
    config["road"]["datasets"]["named"] = {"task": "named", "train": str(tmp_path / "more.jsonl")}
    config["road"]["tasks"]["named"] = {"type": "classification", "labels": ["x", "bad", "mixed"]}
    config["road"]["heads"] = "per_dataset"
    road, own, said = found(config)
    assert said == ["labels of mood, from its rows: bad, good, mixed"]
    assert (
        road.tasks["mood"]["labels"] == own.task("said").labels == own.task("more").labels == ["bad", "good", "mixed"]
    )
    assert own.task("named").labels == ["x", "bad", "mixed"] and list(own) == ["said", "more", "named"]


def test_a_label_with_a_comma_in_it_is_seen_to_be_one(tmp_path):
    config = mood(tmp_path, lines(["old", "old, new"]))
    said = found(config)[2]
    assert said == ["labels of mood, from its rows: old, 'old, new'"]


def test_whole_numbers_are_sorted_by_value_and_lists_are_taken_apart(tmp_path):
    assert sorted_labels({"10", "9", "-1"}) == ["-1", "9", "10"] and sorted_labels({"10", "9", "a"}) == ["10", "9", "a"]
    config = mood(tmp_path, lines([["b", "a"], [], ["c"]]), task={"type": "multi_label"})
    assert found(config)[1].task("said").labels == ["a", "b", "c"]


def test_a_share_that_is_held_out_has_no_label_of_its_own(tmp_path):
    config = mood(tmp_path, lines(["good"] * 10 + ["bad"] * 10 + ["rare"]), dev=0.5)
    assert found(config)[1].task("said").labels == ["bad", "good", "rare"]


@pytest.mark.parametrize(("rows", "said"), [
    (["good", "good"], "road.tasks.mood names no labels, and the rows of said have only 'good': expected two or more"),
    ([i / 7 for i in range(1002)], r"train.jsonl:1001: .*more than 1,000 different ones.*\"regression\""),
    ([None], "is null"),
])  # fmt: skip
def test_rows_that_give_no_labels_are_named(rows, said, tmp_path):
    config = mood(tmp_path, lines(rows))
    with pytest.raises(RoadError, match=said):
        found(config)
    faults = Faults()
    road, own, _ = found(config, faults)
    assert list(own) == [] and own.of == {} and "labels" not in road.tasks["mood"]
    with pytest.raises(RoadError, match=said):
        faults.end()


def test_a_run_keeps_them_and_resume_evaluate_and_check_know_them(tmp_path, config_file, command):
    config = mood(tmp_path, lines(["good", "bad", "mixed"] * 8), lines(["bad", "good"]))
    file = config_file(config)
    code, out, _ = command("check", file)
    assert code == 0 and "labels of mood, from its rows: bad, good, mixed" in out and "labels" not in file.read_text()
    assert train.main(["--deepspeed_config", str(file)]) == 0
    run = tmp_path / "run"
    assert json.loads((run / "config.json").read_text())["road"]["tasks"]["mood"]["labels"] == ["bad", "good", "mixed"]
    assert read_task(run / "model" / "mood").labels == ["bad", "good", "mixed"]
    (tmp_path / "train.jsonl").rename(tmp_path / "away.jsonl")
    code, out, err = command("evaluate", run, "--config", file)
    assert code == 0 and "said" in out, err
    (tmp_path / "away.jsonl").rename(tmp_path / "train.jsonl")
    assert train.main(["--deepspeed_config", str(file), "--resume"]) == 0


def test_a_dev_row_with_another_label_is_named(tmp_path, config_file, command):
    config = mood(tmp_path, lines(["good", "bad"] * 8), lines(["bad", "Good", "worse"]))
    said = error_of(command("check", config_file(config)))
    assert "dev.jsonl:2: label 'Good' is none of the task's labels (bad, good); did you mean 'good'?" in said


def test_an_exported_folder_without_its_labels_is_refused(tmp_path):
    (tmp_path / TASK_FILE).write_text('{"type": "classification"}')
    with pytest.raises(RoadError, match=r"road_task.json.labels: is required"):
        read_task(tmp_path)
