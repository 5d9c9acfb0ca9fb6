"""The plan's numbers against a count by hand, and each of its warnings."""

import json
import re
import tracemalloc
from pathlib import Path

import pytest
import torch
from runs import error_of, tiny_config
from transformers import AutoModelForQuestionAnswering, ElectraConfig

from road_ds.common.digest import file_sha256 as digest
from road_ds.config.file import load_config
from road_ds.data.overlap import shared_texts
from road_ds.data.passes import Passes
from road_ds.engine.memory import bucket, memory
from road_ds.engine.plan import parameters, report
from road_ds.models.configuration import base_config, load_tokenizer
from road_ds.tasks.registry import heads


@pytest.fixture
def pairs(tmp_path, config_file):
    """A configuration over classification rows written here, and the plan it gives."""

    def plan(train, dev=None, gpus=1, spec=None, batch=12, stage=0, **road) -> str:
        datasets = {}
        for name, rows in train.items():
            datasets[name] = {"task": "pairs", "train": str(tmp_path / f"{name}.train.jsonl"), **(spec or {})}
            (tmp_path / f"{name}.train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            if dev and name in dev:
                datasets[name]["dev"] = str(tmp_path / f"{name}.dev.jsonl")
                (tmp_path / f"{name}.dev.jsonl").write_text("".join(json.dumps(row) + "\n" for row in dev[name]))
        task = {"type": "classification", "labels": ["no", "yes"], "max_length": 16}
        config = tiny_config(**{"tasks": {"pairs": task}, "datasets": datasets, "passes": 2, **road})
        config["train_batch_size"] = batch
        config["train_micro_batch_size_per_gpu"] = 2
        config["zero_optimization"]["stage"] = stage
        return report(*load_config(config_file(config)), gpus)

    return plan


def rows(n: int, text: str = "row", label: str = "yes") -> list[dict]:
    return [{"text": f"{text} {i}", "label": label} for i in range(n)]


def cells(plan: str, name: str) -> list[str]:
    return next(line for line in plan.splitlines() if line.startswith(name)).split()


def warnings(plan: str) -> list[str]:
    return [line.strip() for line in plan.partition("\nwarnings:\n")[2].splitlines()]


def test_one_data_set_by_hand(pairs):
    plan = pairs({"a": rows(30)}, {"a": rows(7, "other")}, steps=10)
    # 10 steps x 12 rows = 120 rows drawn from 30: 4 epochs; [CLS] row n [SEP], numbers above 9 may be two tokens
    head, *numbers = cells(plan, "a ")[1:]
    assert head == "pairs" and numbers[:2] == ["30", "30"] and numbers[3:] == ["100.0%", "4.00", "7"]
    assert "10 steps of 2 passes x 6 rows = 12 rows a step, 120 in all" in plan
    assert "each pass: 3 micro-batches of 2 rows on 1 process, fp32" in plan
    assert warnings(plan) == []


def test_epochs_become_steps(pairs):
    plan = pairs({"a": rows(30), "b": rows(90)}, steps=None, epochs=3, sampling="proportional")
    assert "30 steps of 2 passes" in plan  # 3 x 120 rows / 12
    assert [cells(plan, name)[5] for name in ("a ", "b ")] == ["25.0%", "75.0%"]


def test_epochs_are_those_of_the_rows_that_will_be_drawn(pairs):
    plan = pairs({"a": rows(30), "b": rows(90)}, steps=20, seed=3, sampling={"weights": {"a": 1, "b": 4}})
    passes = Passes({"a": [1] * 30, "b": [1] * 90}, torch.tensor([0.2, 0.8]).double().numpy(),
                    passes=2, rows=6, seed=3, window=0)  # fmt: skip
    drawn = [taken.dataset for step in range(20) for taken in passes.draw(step)]
    for name, size in (("a", 30), ("b", 90)):
        assert cells(plan, f"{name} ")[6] == f"{drawn.count(name) * 6 / size:.2f}"


def test_processes_divide_a_pass(pairs):
    assert "each pass: 1 micro-batch of 2 rows on 3 processes" in pairs({"a": rows(30)}, gpus=3)


def test_memory_by_hand():
    """Weights and gradients and Adam: 4 + 4 + 8 bytes in fp32, 2 + 2 + 12 in half precision, split as ZeRO's stages say."""
    million = 10**6
    assert memory(million, 8, "fp32") == [16e6, 8e6 + 1e6, 4e6 + 1.5e6, 2e6]
    assert memory(million, 8, "fp16") == memory(million, 8, "bf16") == [16e6, 4e6 + 1.5e6, 2e6 + 1.75e6, 2e6]
    assert memory(million, 1, "fp16") == [16e6] * 4


def test_parameters_are_those_of_the_model(pairs, config_file):
    config, _ = load_config(config_file(tiny_config()))
    tokenizer = load_tokenizer(config.model)
    encoder, own = parameters(base_config(config.model, tokenizer, 0.0), heads(config))
    settings = {**config.model.config, "vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    real = AutoModelForQuestionAnswering.from_config(ElectraConfig(**settings))
    assert encoder == sum(p.numel() for p in real.electra.parameters())
    # span: 32 x 2 + 2; classification: a dense layer of 32 x 32 + 32 and one of 32 x labels + labels
    assert own == {"qa": 66, "inference": 1056 + 99, "paraphrase": 1056 + 66}
    plan = pairs({"a": rows(30)})
    count = encoder + 1056 + 66
    assert f"{encoder / 1e6:.1f} M parameters in the encoder, 1,122 in the head pairs" in plan
    # beside the model, ZeRO's bucket of gradients: one element of 4 bytes a parameter
    assert re.search(rf"ZeRO 0 +{count * 16 / 2**20:.1f} MiB +{count * 16 / 2**20:.1f} MiB", plan)
    assert re.search(rf"ZeRO 3 +{count * 20 / 2**20:.1f} MiB +{count * (16 / 8 + 4) / 2**20:.1f} MiB", plan)


def test_gpus_that_are_not_here_run_half_precision(pairs):
    """8 GPUs under ZeRO 1: 2 + 2 + 12 / 8 bytes a parameter and a bucket of 2, of 16 in all under ZeRO 0."""
    elsewhere = pairs({"a": rows(30)}, gpus=8, batch=32, stage=1, precision="auto")
    assert "on 8 processes, bf16 (fp16 below compute capability 8.0)" in elsewhere
    here = pairs({"a": rows(30)}, gpus=None, precision="auto")
    assert "on 1 process, fp32\n" in here
    for plan, header in ((elsewhere, ["8 GPUs, bf16"]), (here, ["1 process, fp32", "8 GPUs, bf16"])):
        table = plan[plan.index("memory on each of") :].splitlines()
        assert re.split(" {2,}", table[0]) == ["memory on each of", *header]
        of_8_gpus = [float(line.split()[-2]) for line in table[2:4]]  # MiB, ZeRO 0 and 1
        assert of_8_gpus[1] == pytest.approx(of_8_gpus[0] * 7.5 / 16, abs=0.08)
    assert "on 8 processes, fp32\n" in pairs({"a": rows(30)}, gpus=8, batch=32, precision="fp32")


def test_zeros_bucket_by_hand():
    """Elements of 4 or 2 bytes: as many as the model has parameters, or what the file says; two where they overlap."""
    assert [bucket({}, stage, 10**6, "bf16") for stage in range(4)] == [0, 2e6, 2e6, 2e6]
    assert bucket({}, 1, 10**9, "fp32") == 5e8 * 4
    zero = {"reduce_bucket_size": 1e3, "overlap_comm": True, "stage": 0}
    assert [bucket({"zero_optimization": zero}, stage, 10**6, "fp32") for stage in range(4)] == [0, 8e3, 8e3, 4e3]
    assert bucket({"zero_optimization": {"contiguous_gradients": False}}, 2, 10**6, "fp32") == 0


def test_all_faults_are_printed_at_once(tmp_path, config_file, command):
    """Fourteen data sets with faults of files, columns and labels, under a configuration with faults of its own."""
    good = [{"premise": f"p {i}", "hypothesis": "h", "label": "yes"} for i in range(12)]
    files = {
        **{f"good{i}": good for i in range(6)},
        "label": [*good, {"premise": "p", "hypothesis": "h", "label": "yess"}],
        "columns": [{"wording": "w", "label": "yes"}],
        "unlabelled": [{"premise": "p", "hypothesis": "h"}],
        "empty": [],
        "null": [{"premise": "p", "hypothesis": "h", "label": None}],
    }
    for name, lines in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "malformed.jsonl").write_text('{"premise": 1\n')
    (tmp_path / "head.tsv").write_text("yes\tthis is text\nno\tother text\n")
    paths = {name: f"{name}.jsonl" for name in [*files, "none", "malformed"]} | {"head": "head.tsv"}
    datasets = {name: {"task": "pairs", "train": str(tmp_path / path)} for name, path in paths.items()}
    datasets["good0"]["dev"] = str(tmp_path / "null.jsonl")
    datasets["good1"]["max_row"] = 3
    task = {"type": "classification", "labels": ["no", "yes"], "max_length": 32}
    config = tiny_config(tasks={"pairs": task}, datasets=datasets)
    file = config_file(config, "alone")
    alone = error_of(command("check", file, "--set", 'road.use=["label"]'))  # the key of good1, and the label
    assert len(alone.splitlines()) == 2
    task["max_seq_length"] = 9
    config |= {"gradient_cliping": 1, "train_micro_batch_size_per_gpu": 3}
    config["road"] |= {"learning_rate": 1, "select": "best"}
    config["road"]["tasks"]["spare"] = {"type": "sequence_tagging"}
    lines = error_of(command("check", config_file(config))).splitlines()
    expected = [
        "road.datasets.good1.max_row: unknown key; did you mean 'max_rows'?",
        "road.learning_rate: unknown key; here it is optimizer.params.lr",
        "gradient_cliping: unknown key",
        "road.tasks.pairs.max_seq_length: unknown key; here it is road.tasks.TASK.max_length",
        "road.tasks.spare.type: got 'sequence_tagging'",
        "train_micro_batch_size_per_gpu 3 x 1 processes does not divide",
        "label.jsonl:13: label 'yess'",
        "columns.jsonl:1: no column",
        "malformed.jsonl:1: malformed JSON",
        "none.jsonl: no such file",
        "head.tsv",
        "empty.jsonl: the data set is empty",
        "unlabelled.jsonl:1: the row has no label",
        "null.jsonl:1: column 'label' (columns.label) is null",
    ]
    assert [sum(part in line for line in lines) for part in expected] == [1] * len(expected)
    assert len(lines) == len(expected)


def test_warnings(pairs):
    few = pairs({"a": rows(300)}, {"a": rows(3, "other")}, steps=1)
    assert warnings(few) == ["a: only 12 of 300 features will be seen: more steps, or another sampling"]
    many = pairs({"a": rows(12)}, {"a": rows(3, "other")}, steps=11)
    assert warnings(many) == ["a: each feature is seen 11 times: fewer steps, or sampling proportional or by power"]
    assert warnings(pairs({"a": rows(30)})) == ["a: no dev part: nothing will be evaluated"]
    leak = pairs({"a": rows(30)}, {"a": [*rows(4), *rows(5, "other")]})
    assert warnings(leak) == ["a: 4 of 9 dev rows have the text of a train row"]
    long = pairs({"a": [*rows(28), *rows(2, "a word " * 20)]}, {"a": rows(3, "other")})
    assert warnings(long) == ["a: 7% of the rows reach max_length 16: their ends may be cut off"]


def test_rows_left_out_are_counted(pairs):
    bad = {"text": "", "label": "no"}
    spec = {"skip_bad": 2, "drop_labels": ["-"]}
    plan = pairs({"a": [bad, *rows(30), *rows(3, "dropped", "-")]}, {"a": [*rows(3, "other"), bad]}, spec=spec)
    train, dropped, dev = warnings(plan)
    assert train.startswith("a train: 1 bad rows skipped, the first: ") and "a.train.jsonl:1: column 'text'" in train
    assert dropped == "a train: rows dropped by label: {'-': 3}"
    assert dev.startswith("a dev: 1 bad rows skipped, the first: ") and "a.dev.jsonl:4: column 'text'" in dev
    assert cells(plan, "a ")[2] == "30"


def test_texts_of_train_are_not_held():
    """Dev rows that stand in train are counted (each as often as it comes) while train rows pass one by one."""

    class Rows:
        def __init__(self, *numbers):
            self.numbers = numbers

        def texts(self):
            return ((f"{i} " + "long " * 200, None) for i in self.numbers)

    dev = Rows(3, 3, 7, 90_000)
    tracemalloc.start()
    try:
        assert shared_texts(Rows(*range(20_000), 3), dev) == [0, 1, 2]
        assert tracemalloc.get_traced_memory()[1] < 2_000_000, "20,000 texts of 1 KB are 20 MB"
    finally:
        tracemalloc.stop()


def test_what_the_system_says_of_a_file_is_one_line_among_the_others(config_file, command, monkeypatch, tmp_path):
    """A folder that may not be entered, a name that is too long: named beside the other faults (root may enter all)."""
    config = tiny_config()
    config["road"]["datasets"]["places"]["train"] = str(tmp_path / "closed" / "rows.json")
    config["road"]["datasets"]["people"]["train"] = "x" * 5000 + ".json"
    config["road"]["datasets"]["inference"]["train"] = "none.jsonl"
    file = config_file(config)
    stat = Path.stat

    def closed(path, **more):
        if "closed" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        return stat(path, **more)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "stat", closed)
    monkeypatch.setattr(
        "road_ds.data.features.file_sha256", lambda path: refuse(path) if "closed" in str(path) else digest(path)
    )
    text = error_of(command("check", file))
    assert len(text.splitlines()) == 3 and len(text) < 1500
    assert "closed/rows.json: " in text and "Permission denied" in text
    assert "File name too long" in text and "none.jsonl: no such file" in text
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert error_of(command("check", file)).startswith(f"error: cannot read {file}: Permission denied")
    monkeypatch.setattr("road_ds.commands.check.read_config", lambda *_: refuse(file))
    assert error_of(command("check", file)) == f"error: {file}: Permission denied"
