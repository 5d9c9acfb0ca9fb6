"""The data benchmark: both providers encode the same questions, and the run writes what it says."""

import json

import numpy as np
import pytest
from test_bench import load as load
from transformers import AutoTokenizer

from road_ds.common.hub import sample_path
from road_ds.config.road import DatasetSpec
from road_ds.data.features import load_features
from road_ds.tasks.registry import task_from


@pytest.fixture
def bench(load):
    load("measure")
    return load("bench_data")


def test_a_short_context_gives_the_same_row_both_ways(bench, tmp_path):
    """Ids and answer positions, where one window holds the context and no answer is cut."""
    tokenizer = AutoTokenizer.from_pretrained(sample_path("tokenizer"))
    bench.write_squad(tmp_path / "mix.json", 60, np.random.default_rng(1))
    task = task_from({"type": "span_qa", "max_length": 384, "doc_stride": 128}, "qa")
    spec = DatasetSpec(task="qa", format="squad", train=str(tmp_path / "mix.json"))
    source = load_features("mix", "train", spec, task, tokenizer, tmp_path / "cache")
    rows = {"question": [], "context": [], "answers": []}
    for paragraph in json.loads((tmp_path / "mix.json").read_text())["data"][0]["paragraphs"]:
        for asked in paragraph["qas"]:
            rows["question"].append(asked["question"])
            rows["context"].append(paragraph["context"])
            rows["answers"].append({
                "text": [a["text"] for a in asked["answers"]], "answer_start": [a["answer_start"] for a in asked["answers"]],
            })  # fmt: skip
    ours: dict[int, list] = {}
    for index in range(len(source)):
        ours.setdefault(source[index].example, []).append(source[index])
    compared = answered = 0
    for number, windows in ours.items():
        one = bench.prepare(tokenizer)({key: [values[number]] for key, values in rows.items()})
        if len(windows) == len(one["input_ids"]) == 1:
            length = len(windows[0].input_ids)
            assert windows[0].input_ids.tolist() == one["input_ids"][0][:length]
            assert windows[0].labels.tolist() == [one["start_positions"][0], one["end_positions"][0]]
            compared += 1
            answered += one["start_positions"][0] > 0
    assert compared > 10 and answered > 5


def test_a_run_writes_table_and_json(bench, tmp_path, capsys):
    bench.main(["--questions", "24", "--turns", "1", "--json", str(tmp_path / "found.json")])
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]
    assert [row["provider"] for row in rows] == ["ours", "datasets.map"]
    assert all(row[key] > 0 for row in rows for key in bench.COLUMNS[1:])
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("ours against datasets.map: encoded rows/s")
