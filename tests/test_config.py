"""A run's file: what is wrong in it is named, with the key, the value and what would be right."""

import inspect
import json
from dataclasses import fields

import pytest
import torch
from forked import run_forked
from runs import tiny_config

from road_ds.common.errors import RoadError
from road_ds.config.deepspeed_keys import Engine
from road_ds.config.file import load_config
from road_ds.config.fit import fit_batch, fit_buckets, fit_optimizer, fit_precision, fit_stage, micro_sizes
from road_ds.config.road import DatasetSpec, RoadConfig
from road_ds.config.trainer_words import HERE, TASK_HERE
from road_ds.distillation.soft_targets import Origin, SoftTargets
from road_ds.engine.surroundings import exported_by_launcher, stale_locks
from road_ds.tasks.registry import TASKS, heads


def put(config: dict, path: str, value) -> dict:
    *blocks, key = path.split("/")
    inner = config
    for block in blocks:
        inner = inner.setdefault(block, {})
    inner[key] = value
    return config


def fault(config_file, path: str, value) -> str:
    """The error of a good configuration in which one key has been set."""
    file = config_file(put(tiny_config(), path, value))
    with pytest.raises(RoadError) as caught:
        heads(load_config(file)[0])
    text = str(caught.value)
    assert len(text.splitlines()) == 1 and len(text) < 600, text
    return text.removeprefix(f"{file}: ")


UNKNOWN = [
    ("zero_optimisation", "zero_optimization"),
    ("gradient_cliping", "gradient_clipping"),
    ("road/stepz", "steps"),
    ("road/model/archtecture", "architecture"),
    ("road/datasets/places/trian", "train"),
    ("road/datasets/places/columns/txt_a", "text_a"),
    ("road/tasks/qa/doc_strid", "doc_stride"),
    ("road/tasks/inference/label", "labels"),
    ("optimizer/parms", "params"),
    ("optimizer/params/momentm", "momentum"),
    ("zero_optimization/stge", "stage"),
    ("zero_optimization/offload_optimizer/devise", "device"),
    ("fp16/loss_scal", "loss_scale"),
    ("bf16/enabld", "enabled"),
    ("tensorboard/output_pth", "output_path"),
    ("flops_profiler/profil_step", "profile_step"),
    ("data_types/grad_accum_type", "grad_accum_dtype"),
    ("checkpoint/load_univeral", "load_universal"),
]


@pytest.mark.parametrize(("path", "near"), UNKNOWN)
def test_an_unknown_key_names_the_nearest(config_file, path, near):
    text = fault(config_file, path, 1)
    assert text.startswith(path.replace("/", ".") + ": unknown key")
    assert text.endswith(f"; did you mean {near!r}?")


WRONG = [
    ("train_batch_size", "24", "train_batch_size: got '24'; input should be a valid integer"),
    ("train_batch_size", True, "train_batch_size: got True; input should be a valid integer"),
    ("train_batch_size", 0, "train_batch_size: got 0; input should be greater than or equal to 1"),
    ("gradient_clipping", -1, "gradient_clipping: got -1; input should be greater than or equal to 0"),
    ("steps_per_print", "often", "steps_per_print: got 'often'; input should be a valid integer"),
    ("fp16", None, "fp16: got None; expected a block { }"),
    ("fp16/enabled", "no", "fp16.enabled: got 'no'; input should be true or false"),
    ("fp16/loss_scale", -1, "fp16.loss_scale: fp16.loss_scale must be >= 0"),
    ("zero_optimization", [], "zero_optimization: got []; expected a block { }"),
    ("zero_optimization/stage", 4, "zero_optimization.stage: got 4; allowed: 0, 1, 2, 3"),
    ("zero_optimization/stage", True, "zero_optimization.stage: got True; allowed: 0, 1, 2, 3"),
    ("zero_optimization/reduce_bucket_size", "big", "zero_optimization.reduce_bucket_size: got 'big'; input should be"),
    ("optimizer/type", "SDG", "optimizer.type: got 'SDG'; did you mean 'SGD'?; allowed: adamw, adam, "),
    ("optimizer/params/lr", 0, "optimizer.params.lr: got 0; input should be a number above 0"),
    ("optimizer/params/lr", "1e-4", "optimizer.params.lr: got '1e-4'; input should be a number above 0"),
    ("optimizer/params/momentum", -1, "optimizer.params: SGD does not take {'lr': 0.1, 'momentum': -1}: Invalid momentum"),
    ("optimizer", {"type": "AdamW", "params": {"lr": 1, "betas": [0.9]}}, "optimizer.params: AdamW does not take"),
    ("road/steps", "20", "road.steps: got '20'; input should be a valid integer"),
    ("road/steps", True, "road.steps: got True; input should be a valid integer"),
    ("road/steps", 0, "road.steps: got 0; input should be greater than or equal to 1"),
    ("road/passes", 1.5, "road.passes: got 1.5; input should be a valid integer"),
    ("road/layer_lr_decay", 0, "road.layer_lr_decay: got 0; input should be greater than 0"),
    ("road/dropout", 1, "road.dropout: got 1; input should be less than 1"),
    ("road/precision", "fp8", "road.precision: got 'fp8'; input should be 'auto', 'bf16', 'fp16' or 'fp32'"),
    ("road/warmup", 2.5, "road: warmup 2.5 is neither a share (0 to 1) nor a whole number of steps"),
    ("train_batch_size", 10**30, "train_batch_size: got 1000000000000000000000000000000; expected a number below 2^63"),
    ("train_batch_size", 10**18, "train_batch_size: got 1000000000000000000; input should be less than 2147483648"),
    ("road/seed", 2**63, "road.seed: got 9223372036854775808; expected a number below 2^63"),
    ("road/datasets/places/sample_seed", -(10**20), "road.datasets.places.sample_seed: got -100000000000000000000; expected"),
    ("road/step_timeout", 1e300, "road.step_timeout: got 1e+300; input should be less than or equal to 1000000000"),
    ("road/epochs", 1e300, "road.epochs: got 1e+300; input should be less than or equal to 10000"),
    ("road/epochs", 3, "road: give either steps or epochs"),
    ("road/steps", None, "road: give either steps or epochs"),
    ("road/sampling", "unifrm", "road.sampling: got 'unifrm'; input should be 'uniform' or 'proportional'"),
    ("road/sampling", {"powr": 1}, 'road.sampling: got {\'powr\': 1}; expected "uniform", "proportional", {"power": 0.5}'),
    ("road/sampling", {"power": 2}, "road.sampling.power: got 2; input should be less than or equal to 1"),
    ("road/sampling", {"power": 1, "alpha": 1}, "road.sampling.alpha: unknown key"),
    ("road/sampling", {"weights": {"places": 1, "peple": 1}}, "road: sampling.weights names ['peple', 'places'], but"),
    ("road/datasets/places/dev", 1.5, "road.datasets.places.dev: got 1.5; input should be a valid string or"),
    ("road/datasets/places/skip_bad", -1, "road.datasets.places.skip_bad: got -1; input should be greater"),
    ("road/datasets/places/task", "qua", "road: datasets.places.task is 'qua', which road.tasks does not define; did you mean 'qa'?"),
    ("road/tasks/spare", {"type": "regression"}, "road: tasks.spare has no data set: add one to road.datasets or"),
    ("road/datasets", {}, "road.datasets: at least one is needed"),
    ("road/model", {}, 'road.model: give either "name" (a hub name or folder) or "architecture"'),
    ("road/model/name", "bert", 'road.model: give either "name" (a hub name or folder) or "architecture"'),
    ("road/model/tokenizer", None, 'road.model: fresh weights need a "tokenizer"'),
    ("road/tasks/qa/type", "span", "road.tasks.qa.type: got 'span'; allowed: span_qa, classification, multi_label, multiple_choice, regression, token_classification, replaced_tokens; did"),
    ("road/tasks/qa/type", ["span_qa"], "road.tasks.qa.type: got ['span_qa']; allowed: span_qa,"),
    ("road/tasks/qa/max_length", 20, "road.tasks.qa: max_length 20 leaves no room for a context"),
    ("road/tasks/inference/labels", ["a", "a"], "road.tasks.inference.labels: expected two or more different label names"),
    ("road/tasks/inference/labels", [0, "b"], "road.tasks.inference.labels.0: got 0; input should be a valid string"),
    ("road/learning_rate", 1e-4, "road.learning_rate: unknown key; here it is optimizer.params.lr"),
    ("learning_rate", 1e-4, "learning_rate: unknown key; here it is optimizer.params.lr"),
    ("optimizer/params/learning_rate", 1e-4, "optimizer.params.learning_rate: unknown key of SGD; here it is optimizer.params.lr"),
    ("road/num_train_epochs", 3, "road.num_train_epochs: unknown key; here it is road.epochs"),
    ("road/per_device_train_batch_size", 8, "road.per_device_train_batch_size: unknown key; here it is train_micro_batch"),
    ("road/weight_decay", 0.1, "road.weight_decay: unknown key; here it is optimizer.params.weight_decay"),
    ("road/tasks/qa/max_seq_length", 384, "road.tasks.qa.max_seq_length: unknown key; here it is road.tasks.TASK.max_length"),
    ("road/fp16", True, 'road.fp16: unknown key; here it is road.precision "fp16"'),
    ("road/train_batch_size", 8, 'road.train_batch_size: unknown key; it belongs beside the "road" block, not inside'),
    ("road/datasets/places/columns/text", "q", "road.datasets.places.columns.text: unknown key; did you mean 'text_a'?"),
    ("road/tasks/qa/type", "masked_lm", "road.tasks.qa.type: got 'masked_lm'; allowed: span_qa, classification, multi_label, multiple_choice, regression"),
    ("road/tasks/qa/type", "question_answering", "road.tasks.qa.type: got 'question_answering'; allowed: span_qa, classification, multi_label, multiple_choice, regression, token_classification, replaced_tokens; here it is span_qa"),
    ("road/steps", 10**30, "road.steps: got 1000000000000000000000000000000; expected a number below 2^63"),
    ("road/datasets/places/max_rows", 10**30, "road.datasets.places.max_rows: got 10000000"),
    ("road/tasks/qa/n_best", 10**30, "road.tasks.qa.n_best: got 10000000"),
    ("road/output", "a\0b", "road.output: holds a NUL or half a character"),
    ("road/cache", "a\ud800b", "road.cache: holds a NUL or half a character"),
    ("road/datasets/places/train", "\0", "road.datasets.places.train: holds a NUL or half a character"),
    ("road/tasks/inference/labels", ["a", "\ud800"], "road.tasks.inference.labels.1: holds a NUL or half a character"),
    ("scheduler", {"type": "WarmupLR"}, "scheduler: the learning-rate schedule is ours"),
    ("amp", {"enabled": True}, "amp: DeepSpeed has removed its amp block: use road.precision"),
    ("activation_checkpointing", {}, "activation_checkpointing: it acts only in models that call"),
    ("seed", 1, 'seed: belongs inside the "road" block'),
    ("sede", 1, "sede: unknown key; did you mean 'seed'? That belongs inside the \"road\" block"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "message"), WRONG)
def test_a_wrong_value_is_named_with_its_key(config_file, path, value, message):
    assert fault(config_file, path, value).startswith(message)


@pytest.mark.parametrize("name", ["../up", "..", ".hidden", "a/b", "a b", "", "x" * 101, "ä"])
@pytest.mark.parametrize("kind", ["tasks", "datasets"])
def test_names_stay_inside_their_folder(config_file, kind, name):
    config = tiny_config()
    config["road"][kind][name] = config["road"][kind]["qa" if kind == "tasks" else "places"]
    with pytest.raises(RoadError, match=r"may hold only letters, digits and \. _ - \(100 at most, no dot in front\)"):
        load_config(config_file(config))


def test_what_is_right_passes(config_file):
    for path, value in [
        ("optimizer", {"type": "AdamW", "params": {"lr": 1, "betas": [0.9, 0.999], "torch_adam": True}}),
        ("optimizer", {"type": "Lamb", "params": {"lr": 1e-3, "max_coeff": 10.0}}),
        ("zero_optimization/reduce_bucket_size", 5e8),
        ("fp16/initial_scale_power", 8),
        ("tensorboard", {"enabled": True, "output_path": "logs"}),
        ("road/sampling", {"power": 0.5}),
        ("road/sampling", {"weights": {"places": 1, "people": 0, "inference": 2.5, "paraphrase": 1}}),
        ("road/warmup", 100),
        ("road/datasets/a.b-c_1", {"task": "qa", "train": "sample:places.train.json"}),
    ]:
        config, _ = load_config(config_file(put(tiny_config(), path, value)))
        assert config.steps == 5, path


def test_nothing_is_suggested_for_a_task_that_is_not_here(config_file):
    assert "mean" not in fault(config_file, "road/tasks/qa/type", "masked_lm")


def test_what_trainer_words_stand_for_is_a_key():
    """Each key of the table is one that a file may hold (or an option of the command line)."""
    known = {
        **{f"road.{key}": 1 for key in RoadConfig.model_fields},
        **{f"road.datasets.NAME.{key}": 1 for key in DatasetSpec.model_fields},
        **{f"road.tasks.TASK.{key}": 1 for kind in TASKS.values() for key in kind.model_fields},
        **{f"optimizer.params.{key}": 1 for key in inspect.signature(torch.optim.AdamW).parameters},
        **{key: 1 for key in Engine.model_fields},
    }
    extra = {
        "optimizer.type",
        "road.model.tokenizer",
        "--overwrite on the command line",
        "--resume on the command line",
    }
    assert {here.partition(' "')[0] for here in HERE.values()} <= known.keys() | extra
    assert set(TASK_HERE.values()) <= TASKS.keys()


FILES = [
    (b'{"road": {"steps": 1,\n  "steps": 2}}', r"run\.json: key 'steps' stands twice in one object; keep one"),
    (b'{"road": {},\n  "x" 1}', r"run\.json:2: malformed JSON at column 7: Expecting ':' delimiter"),
    (b'{"road": {\n  "dropout": NaN}}', r"run\.json: NaN is not JSON; write a number or null"),
    (b'{"a": "caf\xe9"}', r"run\.json:1: byte 0xE9 is not UTF-8; save the file as UTF-8"),
    (b"[1]", r"run\.json: expected an object with DeepSpeed's keys and a \"road\" block"),
    (b'{"raod": {}}', r"run\.json: has no \"road\" block .*; did you mean 'raod'\?"),
    (b"[" * 100_000, r"run\.json: JSON nested too deeply"),
    (None, r"cannot read .*run\.json: No such file or directory; give the path of a JSON file"),
]


@pytest.mark.parametrize(("content", "message"), FILES)
def test_a_file_that_cannot_be_read_is_named(tmp_path, content, message):
    file = tmp_path / "run.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RoadError, match=message):
        load_config(file)


def test_what_is_missing_is_named(config_file):
    config = tiny_config()
    del config["train_batch_size"], config["road"]["model"]
    with pytest.raises(RoadError, match=r"road\.model: is required"):
        load_config(config_file(config))
    with pytest.raises(RoadError, match=r"train_batch_size: is required \(rows per step, over all passes and GPUs\)"):
        load_config(config_file(config), ["road.model=google/electra-small-discriminator"])


def test_numbers_beyond_floats_are_refused(config_file):
    config = json.dumps(tiny_config(steps=None, epochs=123456)).replace("123456", "1e999")
    file = config_file(tiny_config())
    file.write_text(config)
    with pytest.raises(RoadError, match=r"road\.epochs: got inf; input should be a finite number"):
        load_config(file)


# ------------------------------------------------------------------------------------------------------ --set


def test_set_overrides_any_key(config_file):
    file = config_file(tiny_config())
    overrides = [
        "road.steps=7",
        "road.dropout=null",
        "zero_optimization.stage=3",
        "road.tasks.paraphrase.labels=[\"yes\", \"no\"]",
        "road.datasets.places.dev=other=file.json",  # only the first = divides
        "road.schedule=cosine",
        "fp16.loss_scale=128",  # a block that the file does not have
        "road.steps=8",  # the last one counts
    ]  # fmt: skip
    road, ds = load_config(file, overrides)
    assert (road.steps, road.dropout, road.schedule) == (8, None, "cosine")
    assert ds["zero_optimization"]["stage"] == 3 and ds["fp16"] == {"loss_scale": 128}
    assert road.tasks["paraphrase"]["labels"] == ["yes", "no"]
    assert road.datasets["places"].dev == "other=file.json"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("road.steps", r"--set road\.steps: expected KEY=VALUE, for example --set road\.steps=20"),
        ("=3", r"expected KEY=VALUE"),
        ("road.steps.more=3", r"--set road\.steps\.more=3: 'steps' is not a block of settings"),
        ("road.stepz=3", r"road\.stepz: unknown key; did you mean 'steps'\?"),
        ("road.steps=many", r"road\.steps: got 'many'; input should be a valid integer"),
        ("road.seed=[1", r"road\.seed: got '\[1'; input should be a valid integer"),
        ("zero_optimization.stages=1", r"zero_optimization\.stages: unknown key; did you mean 'stage'\?"),
        ("rod.steps=3", r": rod: unknown key"),
        ("road..steps=3", r"--set road\.\.steps=3: expected KEY=VALUE"),
        ("road=5", r": road: got 5; expected a block \{ \}"),
    ],
)
def test_set_is_validated_like_the_file(config_file, assignment, message):
    with pytest.raises(RoadError, match=message):
        load_config(config_file(tiny_config()), [assignment])


# ------------------------------------------------------------------------------- batch, precision, optimizer


def test_batch_sizes_follow_from_each_other():
    assert fit_batch({"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4}, passes=3, world_size=2) == {
        "train_batch_size": 24,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 3,
    }
    auto = {"train_batch_size": 24, "train_micro_batch_size_per_gpu": "auto"}
    assert fit_batch({"train_batch_size": 24}, passes=3, world_size=2) == auto == fit_batch(auto, 3, 2)
    given = {"train_batch_size": 512, "train_micro_batch_size_per_gpu": 16, "gradient_accumulation_steps": 4}
    assert fit_batch(given, passes=4, world_size=8) == given
    assert micro_sizes(24, 3, 2) == [1, 2, 4] and micro_sizes(10**12, 4, 1)[-1] == 25 * 10**10


@pytest.mark.parametrize(
    ("ds", "passes", "world_size", "message"),
    [
        ({"train_batch_size": 25}, 4, 1, r"train_batch_size 25 does not divide into road\.passes 4 equal draws: take 24 or 28 rows"),
        ({"train_batch_size": 3}, 4, 1, r"equal draws: take 4 rows, or passes"),
        (
            {"train_batch_size": 48, "train_micro_batch_size_per_gpu": 5}, 4, 2,
            r"train_micro_batch_size_per_gpu 5 x 2 processes does not divide the 12 rows of a pass \(train_batch_size 48 / "
            r"passes 4\); micro-batch sizes that fit 2 processes: 1, 2, 3, 6$",
        ),
        (
            {"train_batch_size": 12, "train_micro_batch_size_per_gpu": 1}, 4, 2,
            r"fit 2 processes: none: train_batch_size must be a multiple of 8$",
        ),
        (
            {"train_batch_size": 12}, 4, 2,
            r"^train_batch_size 12 / passes 4: 2 processes cannot share the 3 rows of a pass evenly: make .* a multiple of 8$",
        ),
        (
            {"train_batch_size": 24, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 4}, 3, 1,
            r"gradient_accumulation_steps 4 does not fit: train_batch_size 24 / \(micro-batch 4 x 1 processes\) = 6; leave",
        ),
    ],
)  # fmt: skip
def test_batch_sizes_that_do_not_fit_state_those_that_would(ds, passes, world_size, message):
    with pytest.raises(RoadError, match=message):
        fit_batch(ds, passes, world_size)


V100, A100 = ("cuda", (7, 0)), ("cuda", (8, 0))
CPU = ("cpu", None)


@pytest.mark.parametrize(
    ("ds", "wanted", "device", "chosen"),
    [
        ({}, "auto", A100, "bf16"),
        ({}, "auto", V100, "fp16"),
        ({}, "auto", CPU, "fp32"),
        ({}, "fp32", A100, "fp32"),
        ({}, "bf16", CPU, "bf16"),
        ({"fp16": {"enabled": True, "loss_scale": 8}}, "auto", A100, "fp16"),
        ({"fp16": {"loss_scale": 8}}, "fp16", V100, "fp16"),
    ],
)
def test_precision_writes_deepspeeds_block(ds, wanted, device, chosen):
    before = dict(ds.get("fp16", {}))
    assert fit_precision(ds, wanted, *device) == chosen
    assert [kind for kind in ("fp16", "bf16") if ds.get(kind, {}).get("enabled")] == [chosen] * (chosen != "fp32")
    assert before.items() <= ds.get("fp16", {}).items()


@pytest.mark.parametrize(
    ("ds", "wanted", "device", "message"),
    [
        ({}, "bf16", V100, r'bf16 is not supported by this GPU \(compute capability 7\.0, needs 8\.0\): use road\.precision "fp16"'),
        ({"bf16": {"enabled": True}}, "auto", V100, r"bf16 is not supported by this GPU"),
        ({}, "fp16", CPU, r'fp16 does not run on CPU: use road\.precision "fp32" or "bf16"'),
        ({"fp16": {"enabled": True}}, "auto", CPU, r"fp16 does not run on CPU"),
        ({"fp16": {"enabled": True}}, "fp16", V100, r"road\.precision is 'fp16' and the fp16 block is enabled too"),
        ({"fp16": {"enabled": True}}, "fp32", V100, r"road\.precision is 'fp32' and the fp16 block is enabled too"),
        ({"fp16": {"enabled": True}, "bf16": {"enabled": True}}, "auto", A100, r"fp16 and bf16 are both enabled: keep one"),
    ],
)  # fmt: skip
def test_precision_that_does_not_work_is_refused(ds, wanted, device, message):
    with pytest.raises(RoadError, match=message):
        fit_precision(ds, wanted, *device)


def test_what_is_left_out_is_filled_in_and_said():
    ds: dict = {"train_batch_size": 8}
    assert fit_optimizer(ds, "cuda") == [
        'optimizer = {"type": "AdamW", "params": {"lr": 0.0001}}',
        "gradient_clipping = 1.0 (0 is off)",
        'zero_optimization = {"stage": 0}',
        "optimizer.params.weight_decay = 0.01 (none on biases and norms)",
        "optimizer.params.torch_adam = true (AdamW is torch's own: nothing is compiled)",
        "optimizer.params.fused = true",
    ]
    params = {"lr": 1e-4, "weight_decay": 0.01, "torch_adam": True, "fused": True}
    assert ds["optimizer"] == {"type": "AdamW", "params": params}
    assert (ds["gradient_clipping"], ds["zero_optimization"]) == (1.0, {"stage": 0})
    assert fit_optimizer(ds, "cuda") == []
    ds = {"optimizer": {"type": "SGD", "params": {"lr": 1, "weight_decay": 0}}, "gradient_clipping": 0}
    ds["zero_optimization"] = {"stage": 2}
    assert fit_optimizer(ds, "cpu") == ["zero_allow_untested_optimizer = true (SGD under ZeRO)"]


def test_the_resolved_file_of_a_run_is_a_run(config_file, tmp_path):
    """config.json of a run in half precision, with everything filled in, starts the same run again."""
    config = tiny_config(steps=None, epochs=0.1, precision="bf16", sampling={"power": 0.5})
    del config["optimizer"], config["zero_optimization"]
    config["road"]["datasets"]["places"]["dev"] = None
    file = config_file(config)
    done = run_forked("road_ds/train.py", "--deepspeed_config", file)
    assert done.returncode == 0, done.stderr
    assert "filled in: optimizer = " in done.stdout and "warning: places: no dev part" in done.stderr
    written = tmp_path / "run" / "config.json"
    road, ds = load_config(written)
    before, _ = load_config(file)
    assert ds["train_batch_size"] == 24 and ds["gradient_accumulation_steps"] == 6
    assert ds["optimizer"]["params"] == {"lr": 1e-4, "weight_decay": 0.01, "torch_adam": True, "fused": True}
    assert fit_precision(ds, road.precision, "cpu", None) == "bf16"
    same = {"steps": road.steps, "epochs": None, "precision": road.precision}
    assert road.model_dump() == {**before.model_dump(), **same} and road.steps == 1
    assert {key: value for key, value in ds.items() if key not in ("steps_per_print", "bf16")} == {
        key: value for key, value in json.loads(written.read_text()).items() if key not in ("steps_per_print", "bf16", "road")
    }  # fmt: skip


# ------------------------------------------------------------------------------------------------ surroundings


def test_variables_that_the_launcher_exports_are_named_without_their_values(tmp_path):
    (tmp_path / ".deepspeed_env").write_text("NCCL_DEBUG=INFO\nTOKEN = secret=1\n\n")
    (tmp_path / "home").mkdir()
    found = exported_by_launcher([tmp_path, tmp_path, tmp_path / "home"])
    assert found == [f"{tmp_path}/.deepspeed_env makes the launcher export to every host: NCCL_DEBUG, TOKEN"]


def test_a_lock_that_a_killed_compiler_left_is_named(tmp_path):
    import os
    import time

    for name, age in (("py311_cpu/fused_adam", 3600), ("py311_cpu/fresh", 5), ("cpu_adam", 1200)):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "lock").touch()
        os.utime(tmp_path / name / "lock", (time.time() - age,) * 2)
    old, older = stale_locks(tmp_path)
    assert old.startswith(f"{tmp_path}/cpu_adam/lock is 20 minutes old: if nothing is being compiled, remove it")
    assert older.startswith(f"{tmp_path}/py311_cpu/fused_adam/lock is 60 minutes old")
    assert stale_locks(tmp_path / "none") == []


@pytest.mark.parametrize(
    ("zero", "parameters", "expected"),
    [
        ({"stage": 1}, 1000, {"stage": 1, "reduce_bucket_size": 1000}),
        ({"stage": 3}, 10**9, {"stage": 3, "reduce_bucket_size": 5 * 10**8}),
        ({"stage": 2, "reduce_bucket_size": 7}, 1000, {"stage": 2, "reduce_bucket_size": 7}),
        ({"stage": 0}, 1000, {"stage": 0}),
    ],
)
def test_a_bucket_is_no_larger_than_the_model(zero, parameters, expected):
    """For the engine only: a checkpoint's settings stay those of the file."""
    before = dict(zero)
    assert fit_buckets({"zero_optimization": zero}, parameters) == {"zero_optimization": expected}
    assert zero == before


@pytest.mark.parametrize(
    ("zero", "processes", "stage"),
    [
        ({"stage": 3}, 1, 2),
        ({"stage": 3}, 2, 3),
        ({"stage": 3, "offload_param": {"device": "cpu"}}, 1, 3),
        ({"stage": 3, "offload_optimizer": {"device": "cpu"}}, 1, 3),
        ({"stage": 2}, 1, 2),
        ({"stage": 0}, 1, 0),
    ],
)
def test_one_process_shares_no_weights(zero, processes, stage):
    """For the engine only, too."""
    before = dict(zero)
    assert fit_stage({"zero_optimization": zero}, processes) == {"zero_optimization": zero | {"stage": stage}}
    assert zero == before


def test_a_command_in_a_message_names_the_file(config_file, tmp_path):
    """The configuration knows where it was read, narrowed or not, and nothing of that stands in what a run writes."""
    file = config_file(tiny_config(use=["places"]))
    config, _ = load_config(file)
    assert config.file == str(file) and "file" not in config.model_dump()
    origin = Origin(**dict.fromkeys((f.name for f in fields(Origin)), "x"))
    with pytest.raises(RoadError, match=f"are not there; run `python -m road_ds teach --deepspeed_config {file}`"):
        SoftTargets(tmp_path / "none", origin, "t", config=config.file)
