"""The host's benchmark: what it counts holds for every stage, and the run writes what it says."""

import json

import pytest
import torch
from test_bench import load as load


@pytest.fixture
def bench(load):
    for name in ("measure", "length_mix", "presets", "providers", "apart"):
        load(name)
    return load("bench_host")


@pytest.mark.parametrize("stage", range(4))
def test_a_micro_batch_and_a_step_have_few_operators(bench, stage):
    """More than the bare loop's: what the engine adds, whatever the number of layers, and one operation for each rate.

    Under ZeRO 1 and 2 each gradient is taken up once in a step.
    """
    layers = 3
    found = {}
    for name, made in (("bare", bench.Bare(layers, "fp32")), ("ours", bench.Ours(layers, "fp32", stage))):
        made.turn()
        found[name] = made.counts()
    parameters = len([p for p in made.engine.module.parameters()])
    assert (
        found["ours"]["operators per micro-batch"] <= found["bare"]["operators per micro-batch"] + 12 + parameters / 8
    )
    assert found["bare"]["operators per micro-batch"] > 300
    rates = 2 * (layers + 3)
    assert found["ours"]["operators per step"] < 70 + parameters + 4 * rates
    assert found["ours"]["waits per micro-batch"] == 0 and found["ours"]["waits per step"] <= 3


def test_operators_inside_of_others_are_not_counted(bench):
    values = [torch.ones(3) for _ in range(5)]
    assert bench.counted(lambda: torch._foreach_norm(values)) == {"operators": 1, "waits": 0}
    assert bench.counted(lambda: [value.sum().item() for value in values]) == {"operators": 10, "waits": 5}


def test_a_run_writes_table_and_json(bench, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(bench, "makers", lambda layers, precision: makers(layers, precision))
    makers = lambda layers, precision: {"bare loop": Made(bench.Bare(layers, precision))}  # noqa: E731
    monkeypatch.setattr(bench, "Apart", Here)
    monkeypatch.setattr(bench, "CALLS", 2)
    bench.main(["--layers", "1", "--turns", "2", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    (row,) = found["rows"]
    assert set(row) == set(bench.COLUMNS) and row["/ bare"] == row["/ bare step"] == 1
    assert all(set(loss) == set(bench.LOSS_COLUMNS) for loss in found["losses"])
    printed = capsys.readouterr().out
    assert printed.startswith("| provider | micro-batch ms |")
    assert len(found["losses"]) == (4 if bench.checks.TRITON else 0) == printed.count("| kd_loss |")


def test_a_loss_without_launches_goes_through_all_of_the_host_and_leaves_nothing_behind(bench):
    """What is timed is the way of a GPU's loss: it plans what would be launched, and launches nothing."""
    pytest.importorskip("triton")
    from road_kernels.forward import launches
    from road_kernels.launch import Launch

    launches.cache_clear()
    before = Launch.__call__
    ours, eager = bench.Losses(3, torch.float16).turn()
    found = launches.cache_info()
    assert ours > 0 < eager
    assert (found.misses, found.hits) == (1, bench.CALLS - 1)
    assert Launch.__call__ is before


class Made:
    def __init__(self, provider):
        self.provider = provider


class Here:
    """A provider in this process."""

    def __init__(self, made, label):
        self.provider = made.provider if isinstance(made, Made) else made()

    def ready(self):
        return self

    def ask(self, what):
        return getattr(self.provider, what)()

    def close(self):
        pass
