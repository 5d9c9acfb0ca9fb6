"""Micro-batches chosen by what fits: the heaviest rows by hand, the trial, and runs that end as with a given size."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import records, tiny_config
from safetensors.torch import load_file

from road_ds import train
from road_ds.common.errors import RoadError
from road_ds.common.ranks import Ranks
from road_ds.config.fit import fit_batch
from road_ds.data.batch import Feature
from road_ds.data.batches import Padding
from road_ds.distillation.guard import Guarded
from road_ds.distillation.lesson import Lesson
from road_ds.distillation.objective import Objective
from road_ds.distillation.teachers import NoTeachers
from road_ds.engine import memory, micro_batch
from road_ds.engine.micro_batch import Demand, choose, fits, on_cpu, refuse_what_cannot_fit
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.tasks.evaluation import MemorySet
from road_ds.tasks.registry import heads

ALONE = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cuda", 0), control=None)
LENGTHS = {"short": np.array([3, 9, 1, 4]), "long": np.array([20, 5])}
MIB = 2**20


def demand(mode="free", held=100.0 * MIB, per_token=10.0 * MIB) -> Demand:
    return Demand(held, per_token, LENGTHS, Padding(mode, 0, {"short": 16, "long": 32}))


def test_the_heaviest_rows_by_hand():
    """Of one row that of 20 tokens; of two 20 + 5; a set with fewer rows than are asked for gives them again."""
    assert [demand().tokens(rows) for rows in (1, 2, 4)] == [20, 25, 50]
    name, rows = demand().heaviest(2)
    assert name == "long" and rows.tolist() == [0, 1]
    assert [demand("grouped").tokens(rows) for rows in (1, 2)] == [24, 48]  # padded to the longest, a multiple of 8
    assert [demand("fixed").tokens(rows) for rows in (1, 2)] == [32, 64]
    assert demand().bytes(2) == (100 + 10 * 25) * MIB


def test_sizes_that_fit_come_largest_first_and_what_cannot_is_refused():
    assert demand().fitting([1, 2, 4], capacity=350 * MIB) == [2, 1]
    with pytest.raises(RoadError, match=r"a micro-batch of 1 rows takes 300\.0 MiB.*which has 299\.0 MiB: raise zero"):
        demand().fitting([1, 2, 4], capacity=299 * MIB)
    refuse_what_cannot_fit(demand(), 2, [1, 2, 4], capacity=350 * MIB)
    with pytest.raises(
        RoadError, match=r"per_gpu 4: its heaviest micro-batch has 50 tokens and takes .* take 2 or less"
    ):
        refuse_what_cannot_fit(demand(), 4, [1, 2, 4], capacity=350 * MIB)


def test_what_is_held_by_hand():
    """Weights, gradients, Adam and one bucket; without Adam's two moments where it is offloaded, or not Adam."""
    adam = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1}}
    assert memory.held(1000, adam, 4, "bf16") == 2000 + 2000 + 12_000 / 4 + 2000
    offloaded = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1, "offload_optimizer": {}}}
    sgd = {"optimizer": {"type": "SGD"}, "zero_optimization": {"stage": 0}}
    assert memory.held(1000, offloaded, 4, "bf16") == 2000 + 2000 + 4_000 / 4 + 2000
    assert memory.held(1000, sgd, 4, "fp32") == 8000


def test_a_layer_keeps_34_bytes_per_token_and_width():
    electra = SimpleNamespace(hidden_size=1024, num_hidden_layers=24, intermediate_size=4096)
    assert memory.activations(electra, "bf16") == 24 * 34 * 1024
    assert memory.activations(electra, "fp32", checkpointing=True) == 2 * 34 * 1024 + 24 * 4 * 1024


def test_the_projection_is_what_a_gpu_had():
    """electra-large, bf16, ZeRO 1, packed: the peaks of an H200 at micro-batches of 32 and 128 (bench_step.json), in GB."""
    electra = SimpleNamespace(hidden_size=1024, num_hidden_layers=24, intermediate_size=4096)
    ds = {"optimizer": {"type": "AdamW"}, "zero_optimization": {"stage": 1}}
    lengths = {"qa": np.full(1000, 384)}
    projected = Demand.of(335_000_000, electra, ds, 1, "bf16", False, lengths, Padding("free", 0, {"qa": 384}))
    assert projected.bytes(32) / 1e9 == pytest.approx(16.0, rel=0.03)
    assert projected.bytes(128) / 1e9 == pytest.approx(47.4, rel=0.03)


def test_on_a_cpu_it_is_the_largest_up_to_sixteen():
    assert on_cpu([1, 2, 3, 4, 6, 12, 24]) == 12 and on_cpu([1, 7]) == 7 and on_cpu([1, 17]) == 1


@pytest.fixture
def gpu(monkeypatch):
    """A GPU of 351 MiB, of which the trial finds less: the sizes that were tried out."""
    tried = []

    def trial(model, lesson, batch, device, dtype, beside):
        tried.append((batch.dataset, len(batch.features), dtype, beside))
        return len(batch.features) < 2

    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (351 * MIB / micro_batch.ROOM, 10**12))
    monkeypatch.setattr(micro_batch, "fits", trial)
    return tried


SOURCES = {
    name: MemorySet(name, [Feature(np.ones(n), np.zeros(n), [0], i) for i, n in enumerate(lengths)])
    for name, lengths in LENGTHS.items()
}


def test_the_trial_takes_the_next_smaller_until_it_fits(gpu):
    assert choose([1, 2, 4], demand(), None, None, SOURCES, ALONE, "bf16") == 1
    assert gpu == [("long", 2, torch.bfloat16, 100.0 * MIB), ("long", 1, torch.bfloat16, 100.0 * MIB)]


def test_what_a_task_draws_is_part_of_the_trial(gpu):
    drawn = []
    choose([1], demand(), None, None, SOURCES, ALONE, "bf16", {"long": lambda batch, *_: drawn.append(batch) or batch})
    assert [batch.dataset for batch in drawn] == ["long"]


def test_no_size_that_fits_is_said_in_one_sentence(gpu):
    with pytest.raises(RoadError, match="ran out of memory on a micro-batch of 2 rows, tried out before the training"):
        choose([2, 4], demand(), None, None, SOURCES, ALONE, "bf16")


def test_all_ranks_take_what_fits_on_the_fullest(gpu):
    """Another rank has room for one row alone, or says that the trial failed there."""

    class Two(SimpleNamespace):
        def gather(self, value):
            return [value, self.free]

        def any(self, flag):
            return flag or self.failed

    two = Two(device=ALONE.device, free=301 * MIB / micro_batch.ROOM, failed=False)
    assert choose([1, 2, 4], demand(), None, None, SOURCES, two, "bf16") == 1
    assert [rows for _, rows, *_ in gpu] == [1]
    two = Two(device=ALONE.device, free=10**12, failed=True)
    with pytest.raises(RoadError, match="1 rows, tried out"):
        choose([1, 2, 4], demand(), None, None, SOURCES, two, "bf16")


@pytest.fixture
def lesson(config_file):
    """A model with dropout, a lesson and a batch of it."""
    from road_ds.config.file import load_config

    config, _ = load_config(config_file(tiny_config(dropout=0.1)))
    found = heads(config)
    model = build_model(config.model, found, load_tokenizer(config.model), dropout=0.1, seed=0)
    rows = [Feature(np.arange(5, 30), np.zeros(25), [1], i) for i in range(4)]
    batch = Padding("grouped", 0, {}).collate(MemorySet("inference", rows), np.arange(4))
    return model, Lesson(Guarded(Objective()), NoTeachers(), found.of, 1), batch


class Told:
    """A lesson that does something else than its own with what it reads."""

    def __init__(self, teach, instead):
        self.read, self.instead = teach.read, instead

    def __call__(self, *arguments):
        return self.instead(*arguments)


def test_a_trial_leaves_weights_gradients_and_random_numbers_as_they_are(lesson):
    model, teach, batch = lesson
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state, seen = torch.get_rng_state(), []

    def watched(own, *arguments):
        loss = teach(own, *arguments)
        seen.append((own is model, next(own.parameters()).dtype, loss.total.requires_grad))
        return loss

    assert fits(model, Told(teach, watched), batch, torch.device("cpu"), torch.bfloat16, 1e6)
    assert seen == [(False, torch.bfloat16, True)]
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.dtype == torch.float32 for p in model.parameters())


def test_only_a_lack_of_memory_is_caught(lesson):
    model, teach, batch = lesson

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    def broken(*_):
        raise ValueError("broken")

    assert not fits(model, Told(teach, full), batch, torch.device("cpu"), torch.float32, 0.0)
    with pytest.raises(ValueError, match="broken"):
        fits(model, Told(teach, broken), batch, torch.device("cpu"), torch.float32, 0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_trial_on_a_gpu_runs_out_of_memory_and_gives_it_back(lesson):
    model, teach, batch = lesson
    device = torch.device("cuda", 0)
    free, total = torch.cuda.mem_get_info(device)
    before = torch.cuda.memory_reserved(device)
    assert fits(model, teach, batch, device, torch.bfloat16, 0.1 * free)  # others may work there, too
    assert not fits(model, teach, batch, device, torch.bfloat16, 1.0 * total)
    assert torch.cuda.memory_reserved(device) <= before + 2**28  # libraries keep workspaces


def run(file, *arguments) -> int:
    return train.main(["--deepspeed_config", str(file), *arguments])


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "qa" / "model.safetensors")


@pytest.mark.parametrize("given", ["auto", None])
def test_auto_trains_on_the_same_rows(given, config_file, tmp_path):
    """8 rows a pass: automatic micro-batches hold them all, given ones two at a time; losses equal to rounding."""
    config = tiny_config(steps=3, log_every=1)
    config["train_micro_batch_size_per_gpu"] = 2
    assert run(config_file(config, "two")) == 0
    config["train_micro_batch_size_per_gpu"] = given
    config = {key: value for key, value in config.items() if value is not None}
    config["road"] |= {"output": str(tmp_path / "auto")}
    assert run(config_file(config, "auto")) == 0
    two, auto = ([line for line in records(tmp_path / name) if "loss" in line] for name in ("two", "auto"))
    assert [line["datasets"] for line in two] == [line["datasets"] for line in auto]
    for a, b in zip(two, auto, strict=True):
        assert {k: v for k, v in a.items() if "loss" in k} == pytest.approx(
            {k: v for k, v in b.items() if "loss" in k}, rel=1e-5
        )
    assert all(
        torch.allclose(value, weights(tmp_path / "auto")[name], atol=1e-6)
        for name, value in weights(tmp_path / "two").items()
    )
    resolved = json.loads((tmp_path / "auto" / "config.json").read_text())
    assert (resolved["train_micro_batch_size_per_gpu"], resolved["gradient_accumulation_steps"]) == (8, 3)


def test_a_resumed_run_takes_the_size_of_its_checkpoint(config_file, tmp_path, monkeypatch):
    """Resumed where other micro-batches would be chosen, it ends with the same bits, dropout included."""
    config = tiny_config(steps=4, dropout=0.1, save_every=2)
    config["train_micro_batch_size_per_gpu"] = "auto"
    file = config_file(config)
    monkeypatch.setattr(micro_batch, "CPU_ROWS", 2)
    assert run(file) == 0
    shutil.copytree(tmp_path / "run", tmp_path / "whole")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    monkeypatch.undo()
    assert run(file, "--resume") == 0
    assert json.loads((tmp_path / "run" / "config.json").read_text())["train_micro_batch_size_per_gpu"] == 2
    whole = weights(tmp_path / "whole")
    assert all(torch.equal(value, whole[name]) for name, value in weights(tmp_path / "run").items())


def test_accumulation_beside_auto_is_refused():
    with pytest.raises(
        RoadError, match=r'gradient_accumulation_steps 6: follows from .*, which is "auto": leave it out'
    ):
        fit_batch({"train_batch_size": 24, "gradient_accumulation_steps": 6}, passes=3, world_size=1)


@pytest.fixture
def here(monkeypatch):
    """A machine with one GPU of so many bytes."""

    def machine(total):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda *_: SimpleNamespace(total_memory=total))

    return machine


def test_check_prints_the_size_and_refuses_what_does_not_fit(here, config_file, command):
    config = tiny_config(precision="bf16", padding="fixed") | {"zero_optimization": {"stage": 1}}
    config["train_micro_batch_size_per_gpu"] = "auto"
    file = config_file(config)
    code, plan, _ = command("check", file, "--gpus", 1)
    assert code == 0 and "each pass: micro-batches of as many rows as fit (auto, see below) on 1 process, bf16" in plan
    assert "rows of a micro-batch  tokens at most  memory on each of 1 GPU under ZeRO 1" in plan
    sizes = [line.split() for line in plan[plan.index("rows of a micro-batch") :].splitlines()[2:6]]
    assert [line[0] for line in sizes] == ["1", "2", "4", "8"] and len({line[2] for line in sizes}) == 4
    tokens, taken = int(sizes[3][1].replace(",", "")), float(sizes[3][2])
    here(2**30)
    code, plan, _ = command("check", file)
    assert code == 0 and "each pass: 1 micro-batch of 8 rows (auto, to be tried out at the start) on 1 process" in plan
    here(int(taken * MIB) - 60_000)  # printed to a tenth of a MiB
    code, plan, _ = command("check", file)
    assert code == 0 and "each pass: 2 micro-batches of 4 rows (auto" in plan
    code, _, err = command("check", file, "--set", "train_micro_batch_size_per_gpu=8")
    assert code == 2 and f"per_gpu 8: its heaviest micro-batch has {tokens:,} tokens and takes {taken}" in err
    assert "take 4 or less" in err and "Traceback" not in err
