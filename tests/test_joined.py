"""Micro-batches that one forward pass reads: which they are, and that they learn as if each were read alone."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import records, tiny_config
from safetensors.torch import load_file

from road_ds import train
from road_ds.common.errors import Faults
from road_ds.common.ranks import Ranks
from road_ds.config.file import load_config
from road_ds.data.batch import Feature
from road_ds.data.batches import Padding, assemble, read_together, readings
from road_ds.data.packing import Packing
from road_ds.data.passes import Pass
from road_ds.engine.settled import Machine, settle
from road_ds.tasks.evaluation import MemorySet


@pytest.mark.parametrize(
    ("tokens", "most", "expected"),
    [
        ([49, 46, 8, 3], 50, [0, 1, 2, 1]),  # what is left beside the second is filled first
        ([5, 5, 5, 5], 20, [0, 0, 0, 0]),
        ([5, 5, 5, 6], 11, [0, 1, 1, 0]),
        ([30, 30], 30, [0, 1]),
        ([7], 7, [0]),
    ],
)
def test_short_micro_batches_share_a_pass(tokens, most, expected):
    found = readings([(count, 1) for count in tokens], most, 1)
    assert found == expected
    assert all(sum(t for t, at in zip(tokens, found, strict=True) if at == number) <= most for number in found)


def test_what_is_padded_again_has_a_limit():
    """Many short rows beside a long one: few tokens, and each would be padded to the long one's width."""
    most, micro = 400, 4
    sizes = [(390, 100), *[(1, 1)] * 9]  # 4 x 400 places: 16 rows of 100
    assert readings(sizes, most, micro) == [0, 0, 0, 0, *[1] * 6]
    assert readings([(390, 10), *[(1, 1)] * 9], most, micro) == [0] * 10


class Drawn:
    """A plan of one step."""

    seed = 0

    def __init__(self, *taken: Pass):
        self.taken = list(taken)

    def draw(self, step: int) -> list[Pass]:
        return self.taken


def rows_of(name: str, *lengths: int) -> MemorySet:
    return MemorySet(name, [Feature(np.arange(5, 5 + n), np.zeros(n), [1], i) for i, n in enumerate(lengths)])


def test_all_ranks_join_the_same_micro_batches():
    """By the tokens of the rank that has the most, which differ; no pass is heavier than the heaviest micro-batch that can come."""
    sources = {"long": rows_of("long", 3, 30, 4, 40), "short": rows_of("short", 2, 3, 2, 9)}
    passes = Drawn(Pass("short", np.array([0, 2, 1, 3])), Pass("long", np.array([0, 2, 1, 3])))
    padding, ranks = Padding("free", 0, dict.fromkeys(sources, 64)), []
    for rank in range(2):
        one = Ranks(rank, 2, rank, torch.device("cpu"), None)
        ((_, batches),) = assemble(passes, sources, padding, one, 1, range(1), joined=True)
        ranks.append([batch.reading for batch in batches])
        assert [sum(b.tokens) for b in batches] == ([2, 3, 3, 30] if rank == 0 else [2, 9, 4, 40])
    assert ranks[0] == ranks[1] == [1, 1, 1, 0], "40 is all that a pass may hold"
    assert read_together(batches) == [[0, 1, 2], [3]]
    ((_, alone),) = assemble(passes, sources, padding, one, 1, range(1))
    assert read_together(alone) == [[0], [1], [2], [3]]


def test_packings_of_different_widths_follow_each_other():
    narrow, wide = Packing.of(np.array([2, 3]), 4), Packing.of(np.array([5, 1]), 8)
    for first, second in ((narrow, wide), (wide, narrow)):
        both = first.joined(second)
        assert both.shape == (4, 8) and both.longest == 5 and both.bounds.tolist()[-1] == 11
        values = torch.arange(11.0)[None, :, None]
        padded, at = both.unpack(values), 0
        for row, length in enumerate([n for run in both.runs for n in [run[1]] * run[0]]):
            assert (
                padded[row, :length, 0].tolist() == values[0, at : at + length, 0].tolist()
                and not padded[row, length:].any()
            )
            at += length
        assert torch.equal(both.pack(padded), values)


TASKS = {
    "tags": {"type": "token_classification", "labels": ["O", "B-PER"], "max_length": 32},
    "asked": {"type": "multiple_choice", "max_length": 32},
    "score": {"type": "regression", "max_length": 32},
    "moods": {"type": "multi_label", "labels": ["good", "bad"], "max_length": 32},
}


@pytest.fixture
def mixed(config_file, tmp_path):
    """A run over every kind of rows of logits, by settings of its road block; dropout off."""
    numbers = np.random.default_rng(0)

    def text() -> str:
        return " ".join(numbers.choice(["the", "fair", "sells", "rope", "Ada", "canal"], numbers.integers(2, 20)))

    def row(kind: str, at: int) -> dict:
        words = text().split()
        return {
            "tags": {"tokens": words, "tags": ["B-PER" if word == "Ada" else "O" for word in words]},
            "asked": {"text": text(), "choices": [text() for _ in range(2 + at % 3)], "label": at % 2},
            "score": {"text": text(), "label": at / 40},
            "moods": {"text": text(), "label": [["good"], [], ["good", "bad"]][at % 3]},
        }[kind]

    for kind in TASKS:
        (tmp_path / f"{kind}.jsonl").write_text("".join(json.dumps(row(kind, at)) + "\n" for at in range(40)))

    def config(name: str, **road) -> dict:
        made = tiny_config(output=str(tmp_path / name), passes=6, steps=6, **road)
        made["road"]["tasks"] |= TASKS
        made["road"]["datasets"] |= {kind: {"task": kind, "train": str(tmp_path / f"{kind}.jsonl")} for kind in TASKS}
        return made | {
            "train_micro_batch_size_per_gpu": 2,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-2, "eps": 1e-3}},
        }

    def run(name: str, stage: int = 0, resume: bool = False, **road) -> Path:
        path = config_file(config(name, **road) | {"zero_optimization": {"stage": stage}})
        assert train.main(["--deepspeed_config", str(path), *(["--resume"] if resume else [])]) == 0
        return tmp_path / name

    run.config = config
    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted((folder / "model").rglob("model.safetensors"))
    return {f"{file.parent.name}/{name}": value for file in files for name, value in load_file(file).items()}


def measured(folder: Path) -> list[dict]:
    """What is measured of each step, times aside."""
    timed = ("per_second", "seconds")
    return [{k: v for k, v in line.items() if not k.endswith(timed)} for line in records(folder) if "loss" in line]


@pytest.mark.parametrize(("precision", "stage", "tolerance"), [("fp32", 0, 1e-5), ("bf16", 1, 2e-2)])
def test_every_kind_of_rows_learns_as_if_read_alone(mixed, precision, stage, tolerance):
    """Sequences of choices, tags of words, spans, numbers and several labels in one pass."""
    alone, joined = (mixed(f"joined-{on}", stage, precision=precision, join_micro_batches=on) for on in (False, True))
    for one, other in zip(measured(alone), measured(joined), strict=True):
        assert one.keys() == other.keys()
        assert other == {
            k: v if isinstance(v, list) else pytest.approx(v, rel=tolerance, abs=tolerance) for k, v in one.items()
        }
    expected, found = weights(alone), weights(joined)
    assert (
        max(float((found[name].float() - value.float()).abs().max()) for name, value in expected.items())
        < 10 * tolerance
    )


def test_a_resumed_run_of_joined_micro_batches_ends_with_the_same_bits(mixed):
    settings = {"join_micro_batches": True, "dropout": 0.1, "save_every": 3, "keep": 9}
    whole = mixed("whole", **settings)
    shutil.copytree(whole, whole.with_name("again"))
    for left in ("checkpoints/step-00000006", "model"):
        shutil.rmtree(whole.with_name("again") / left)
    status = whole.with_name("again") / "status.json"
    status.write_text(json.dumps(json.loads(status.read_text()) | {"status": "preempted"}))
    again = mixed("again", resume=True, **settings)
    expected, found = weights(whole), weights(again)
    assert expected.keys() == found.keys() and all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(("settings", "name"), [
    ({"freelb": {"steps": 2}}, "road.freelb"),
    ({"distill": {"layers": {"method": "pkd"}, "source": "online"}}, "road.distill.layers"),
    ({"distill": {"adversarial": {}, "source": "online"}}, "road.distill.adversarial"),
    ({"tasks": {"text": {"type": "replaced_tokens", "generator": 0.5}}}, "pretraining"),
])  # fmt: skip
def test_what_takes_each_micro_batch_by_itself_is_refused(settings, name, mixed, config_file, capsys):
    config = mixed.config("refused", join_micro_batches=True)
    if "distill" in settings:
        settings = {"distill": {"objective": "kd", "teachers": {"places": ["nobody"]}, **settings["distill"]}}
    if "tasks" in settings:
        config["road"]["datasets"]["text"] = {"task": "text", "train": "text.txt"}
    config["road"] |= {**settings, "tasks": config["road"]["tasks"] | settings.get("tasks", {})}
    assert train.main(["--deepspeed_config", str(config_file(config))]) == 2
    assert (
        f"road.join_micro_batches: not with {name}, which takes each micro-batch by itself" in capsys.readouterr().err
    )


def test_several_processes_under_zero_3_refuse_it(mixed, config_file):
    """Whose weights are fetched in one order of modules; one process has none to fetch."""
    path = config_file(mixed.config("refused", join_micro_batches=True) | {"zero_optimization": {"stage": 3}})
    for processes, expected in ((1, 0), (2, 1)):
        faults = Faults()
        settle(*load_config(path), Machine("cpu", None, processes), faults)
        assert len(faults._found) == expected
    assert "road.join_micro_batches: not with ZeRO 3" in str(faults.all())


def test_rows_that_are_not_packed_are_not_joined(mixed, capsys):
    mixed("padded", join_micro_batches=True, padding="grouped")
    assert "road.join_micro_batches does nothing: rows are not packed (grouped padding)" in capsys.readouterr().out
