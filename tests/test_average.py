"""The run's own average as teacher, against a plain loop that averages by hand; what a checkpoint keeps of it."""

import json

import pytest
import torch
from forked import run_forked
from runs import records, tiny_config
from safetensors.torch import load_file
from torch.nn import functional as F

from road_ds import train
from road_ds.config.file import load_config
from road_ds.data.batch import collate
from road_ds.data.passes import plan
from road_ds.data.rows import Rows
from road_ds.distillation.average import Average
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.tasks.registry import heads

DECAY, STEPS, WEIGHT, TEMPERATURE = 0.7, 6, 0.6, 2.0
SETTINGS = {"objective": "kd", "source": "average", "decay": DECAY, "weight": WEIGHT, "temperature": TEMPERATURE}


def average_config(stage: int = 0, **road) -> dict:
    config = tiny_config(distill={**SETTINGS}, steps=STEPS, **road)
    config["zero_optimization"] = {"stage": stage}
    return config


@pytest.fixture(scope="module")
def plain(tmp_path_factory, cache):
    """The weights and losses of a plain loop with a second model whose weights are the average."""
    folder = tmp_path_factory.mktemp("plain")
    config = average_config(cache=str(cache))
    (folder / "run.json").write_text(json.dumps(config))
    settings, _ = load_config(folder / "run.json")
    tokenizer, tasks = load_tokenizer(settings.model), heads(settings)
    rows = Rows.load(settings.datasets, tasks.by_dataset(), tokenizer, settings.cache).train
    passes, steps = plan(settings, 24, {name: source.lengths for name, source in rows.items()})
    model, mean = (build_model(settings.model, tasks, tokenizer, dropout=0.0, seed=0) for _ in range(2))
    model.train(), mean.eval()
    losses = []
    for step in range(steps):
        if step:
            kept = min(DECAY, 1 - 1 / (step + 1))
            for own, weight in zip(mean.parameters(), model.parameters(), strict=True):
                own.data = kept * own.data + (1 - kept) * weight.data
        total = torch.zeros(())
        for taken in passes.draw(step):
            for row in taken.rows:
                batch = collate(rows[taken.dataset], [row], tokenizer.pad_token_id)
                head = settings.head_of(taken.dataset)
                found = model(batch, head)
                with torch.no_grad():
                    target = mean(batch, head).logits
                if found.lengths is not None:
                    length = int(found.lengths[0])
                    logits, target = found.logits[:, :length], target[:, :length]
                else:
                    logits = found.logits
                soft = F.kl_div(
                    (logits / TEMPERATURE).log_softmax(1), (target / TEMPERATURE).softmax(1), reduction="batchmean"
                )
                loss = (1 - WEIGHT) * F.cross_entropy(logits, batch.labels) + WEIGHT * TEMPERATURE**2 * soft
                total = total + loss / len(taken.rows) / settings.passes
        model.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.grad is not None:
                    weight -= 0.1 * weight.grad
        losses.append(total.item())
    return dict(model.state_dict()), losses


def compare(folder, plain, tolerance: float = 1e-6) -> None:
    weights, losses = plain
    lines = [line for line in records(folder) if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=10 * tolerance)
    found = load_file(folder / "model" / "inference" / "model.safetensors")
    assert not any("average" in name for name in found)
    checked = 0
    for name, value in found.items():
        key = name.replace("electra.", "encoder.") if name.startswith("electra.") else f"heads.inference.{name}"
        assert float((weights[key] - value).abs().max()) < tolerance, name
        checked += 1
    assert checked > 30


@pytest.mark.parametrize(("stage", "micro"), [(0, 8), (1, 2), (2, 4)])
def test_training_equals_a_plain_loop_that_averages_by_hand(plain, config_file, tmp_path, stage, micro):
    config = average_config(stage, evaluate_every=2)  # what it reads is no part of a step's costs
    config["train_micro_batch_size_per_gpu"] = micro
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 0
    compare(tmp_path / "run", plain)
    lines = [line for line in records(tmp_path / "run") if "loss" in line]
    assert all(line["soft/inference"] < 1e-6 for line in lines[:1] if "soft/inference" in line), "it begins as its own"
    assert all(line["rows_of_teachers"] == line["rows_trained"] == 24 and "rows_asked" not in line for line in lines)


@pytest.mark.parametrize("stage", [0, 2])
def test_two_processes_give_the_same(plain, config_file, tmp_path, stage):
    config = average_config(stage)
    config["train_micro_batch_size_per_gpu"] = 2
    result = run_forked("road_ds/train.py", "--deepspeed_config", config_file(config), ranks=2)
    assert result.returncode == 0, result.stderr[-3000:]
    compare(tmp_path / "run", plain)


def test_a_resumed_run_goes_on_with_its_average(config_file, tmp_path):
    for name, every in (("whole", 0), ("halves", 3)):
        config = average_config(1, dropout=0.1, save_every=every, output=str(tmp_path / name))
        path = config_file(config, name)
        assert train.main(["--deepspeed_config", str(path)]) == 0
    (tmp_path / "halves" / "checkpoints" / "step-00000006").rename(tmp_path / "moved")
    assert train.main(["--deepspeed_config", str(path), "--resume"]) == 0
    ends = [load_file(tmp_path / name / "model" / "inference" / "model.safetensors") for name in ("whole", "halves")]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_the_average_reads_without_dropout_and_leaves_the_model_as_it_was(config_file):
    settings, _ = load_config(config_file(average_config()))
    tokenizer, tasks = load_tokenizer(settings.model), heads(settings)
    rows = Rows.load(
        {"inference": settings.datasets["inference"]}, {"inference": tasks["inference"]}, tokenizer, settings.cache
    )
    batch = collate(rows.train["inference"], range(4), tokenizer.pad_token_id)
    model = build_model(settings.model, tasks, tokenizer, dropout=0.5, seed=0)
    expected = model.eval()(batch, "inference").logits
    mean = Average(model.train())
    with torch.no_grad():
        for weight in model.parameters():
            weight += 1
    before = [(weight.data_ptr(), weight.detach().clone()) for weight in model.parameters()]
    found = [mean(batch, "inference", model).logits for _ in range(2)]
    assert torch.equal(found[0], expected) and torch.equal(found[0], found[1]) and not found[0].requires_grad
    assert model.training
    assert all(
        w.data_ptr() == at and torch.equal(w, was) for w, (at, was) in zip(model.parameters(), before, strict=True)
    )


@pytest.mark.parametrize(("stage", "changes", "said"), [
    (3, {}, "road.distill.source: average is not there under ZeRO 3, whose weights are partitioned"),
    (0, {"teachers": {"places": ["x"]}}, "the source average is the run's own and teaches all its data sets"),
    (0, {"source": "cached"}, 'decay is of the source "average", got source cached'),
    (0, {"decay": 1.0}, "road.distill.decay: got 1.0"),
    (0, {"layers": {"method": "alp"}}, "the source average gives no states of layers: leave layers out, or name teachers"),
    (0, {"source": "averag", "decay": None}, "road.distill.source: got 'averag'; did you mean 'average'?; allowed: cached, online, average"),
])  # fmt: skip
def test_bad_settings_are_one_error(config_file, capsys, stage, changes, said):
    config = average_config(stage)
    block = config["road"]["distill"] | changes
    config["road"]["distill"] = {key: value for key, value in block.items() if value is not None}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 2
    assert said in capsys.readouterr().err
