"""The kernel benchmarks: they run on a CPU, and what they count and write is right."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as if its folder were the working script's."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    return load


def test_percentiles_and_table(load):
    measure = load("measure")
    assert measure.percentiles(range(10)) == (2, 5, 8)
    table = measure.table([{"a": 1.23456, "b": None}], ["a", "b", "c"])
    assert table.splitlines()[-1] == "| 1.23 | - | - |"


def test_providers_compute_the_same_loss_and_gradient(load):
    load("measure")
    bench = load("bench_kd_loss")
    for shape in (bench.Shape(6, 5, 3), bench.Shape(6, 33, 1, hidden=4)):
        device = torch.device("cpu")
        torch.manual_seed(0)
        results = []
        for name, loss in bench.providers(shape, torch.float32, device):
            if name == "products alone":
                continue
            student, teacher, labels = bench.inputs(shape, torch.float32, device, seed=1)
            total = loss(student, teacher, labels)
            results.append((total, *torch.autograd.grad(total, student)))
        assert len(results) == 2
        torch.testing.assert_close(results[0], results[1])


def test_floor_counts_the_bytes_of_the_notes(load):
    measure = load("measure")
    bench = load("bench_kd_loss")
    machine = measure.Limits(copy_rate=1e12, empty_launch=2.0, exponentials=0.0)
    moved, two_pass, single = bench.floor_us(bench.Shape(2048, 30522, 1), 2, machine)
    assert moved == 2048 * 30522 * 2 * 5 + 92 * 2048
    assert two_pass == pytest.approx(moved / 1e6) and single == pytest.approx((2048 * 30522 * 6 + 20 * 2048) / 1e6)
    assert bench.floor_us(bench.Shape(8, 3, 1), 2, machine)[1:] == (4.0, 2.0)


@pytest.mark.parametrize("name", ["bench_kd_loss", "bench_combine"])
def test_a_run_writes_table_and_json(load, name, monkeypatch, tmp_path, capsys):
    measure = load("measure")
    bench = load(name)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    small = [(4, 3, 2), (4, 40, 1)]
    shapes = small if name == "bench_combine" else [bench.Shape(*sizes) for sizes in small]
    monkeypatch.setattr(bench, "shapes", lambda device, quick: shapes)
    monkeypatch.setattr(bench, "limits", lambda device: measure.Limits(1e10, 0.0, 0.0))
    monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--repeats", "2"])
    bench.main()
    written = json.loads((tmp_path / "cpu" / f"{name}.json").read_text())
    assert [row["provider"] for row in written["rows"]] == ["eager", "ours"] * 2
    assert all(row["p20 us"] <= row["p50 us"] <= row["p80 us"] for row in written["rows"])
    assert written["environment"]["torch"] == torch.__version__
    assert "| eager | 4 | 3 | 2 |" in capsys.readouterr().out


def test_both_ways_of_encoding_make_the_same_windows(load, tmp_path):
    bench = load("bench_encoding")
    text = "Ōsaka castle 🏯 was built in 1583, says the guide. " * 60
    qas = [{"id": f"q{i}", "question": f"Which castle was built in {i} {i}?", "is_impossible": False,
            "answers": [{"text": "1583", "answer_start": text.index("1583", 500 * i)}]} for i in range(4)]  # fmt: skip
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"title": "", "paragraphs": [{"context": text, "qas": qas}]}]}))
    cut = tmp_path / "cut.json"
    assert bench.cut_questions(str(file), cut) == 4
    assert bench.check_same_windows(str(cut), str(tmp_path)) > 8
