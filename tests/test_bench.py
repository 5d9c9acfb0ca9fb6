"""The kernel benchmarks: they run on a CPU, and what they count and write is right."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch

CUDA = torch.cuda.is_available()
BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture
def load(monkeypatch):
    """Imports a benchmark as if its folder were the working script's."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name):
        for known in [module for module in sys.modules if module == name or module.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, known)
        return importlib.import_module(name)

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
        for _, loss, parameters in bench.providers(shape, torch.float32, device):
            problem = bench.inputs(shape, torch.float32, device, seed=1)
            results.append((loss(*problem), *bench.both(loss, problem, parameters, torch.ones(()))))
        assert len(results) == 2
        torch.testing.assert_close(results[0], results[1])


def test_floor_counts_the_bytes_of_the_notes(load):
    load("measure")
    bench = load("bench_kd_loss")
    assert bench.moved_bytes(bench.Shape(2048, 30522, 1), 2) == 2048 * 30522 * 2 * 5 + 92 * 2048
    assert bench.moved_bytes(bench.Shape(8, 3, 3), 4) == 8 * 3 * 4 * 9 + 92 * 8


def test_the_products_of_a_head(load):
    load("measure")
    bench = load("bench_kd_loss")
    hidden = torch.randn(6, 4)
    for padded in (False, True):
        products = bench.Products(bench.Shape(6, 33, 1, hidden=4), torch.float32, torch.device("cpu"), padded)
        states, weight = products(hidden)
        torch.testing.assert_close(products.logits, hidden @ products.weight.t())
        assert (
            states.shape == (6, 4) and weight.shape == (33, 4) and products.logits.stride(0) == (40 if padded else 33)
        )


@pytest.mark.parametrize("name", ["bench_kd_loss", "bench_combine"])
def test_a_run_writes_table_and_json(load, name, monkeypatch, tmp_path, capsys):
    measure = load("measure")
    bench = load(name)
    small = [(4, 3, 2), (4, 40, 1)]
    shapes = small if name == "bench_combine" else [bench.Shape(*sizes) for sizes in small]
    monkeypatch.setattr(bench, "shapes", lambda device, quick: shapes)
    monkeypatch.setattr(bench, "limits", lambda device: measure.Limits(1e10, 0.0, 0.0))
    monkeypatch.setattr(sys, "argv", [name, "--device", "cpu", "--repeats", "2", "--output", str(tmp_path)])
    bench.main()
    written = json.loads((tmp_path / f"{name}.json").read_text())
    assert [row["provider"] for row in written["rows"]] == ["eager", "ours"] * 2
    assert all(
        row["host p20"] <= row["host us"] <= row["host p80"] and row["device us"] is None for row in written["rows"]
    )
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


def test_the_rates_of_text_are_of_all_of_it(load, tmp_path, monkeypatch):
    bench = load("bench_encoding")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # which the turn changes
    bench.write_text(tmp_path / "text.txt", 1)
    documents = (tmp_path / "text.txt").read_text().strip().split("\n\n")
    found = bench.turn("text", str(tmp_path / "text.txt"))
    assert (found["mib"], found["documents"]) == (1, len(documents)) and len(documents) > 300
    assert found["tokens"] > found["features"] * bench.PACKED * 0.9 and found["kept_mib"] >= 2
    assert found["documents_per_second"] == pytest.approx(len(documents) / found["seconds"], rel=0.02)
    words = [word for document in documents for word in document.split()]
    assert 0.03 < len(set(words)) / len(words) < 0.1, "new words among them"


def test_the_attention_benchmark_tells_first_calls_from_others(load, tmp_path, capsys):
    load("measure")
    bench = load("bench_attention")
    bench.main(["--rows", "2", "--tokens", "8", "--tokens", "12", "--repeats", "2", "--output", str(tmp_path)])
    rows = json.loads((tmp_path / "bench_attention.json").read_text())["rows"]
    assert [(row["kernel"], row["tokens"]) for row in rows] == [
        (kernel, tokens)
        for tokens in (8, 12)
        for kernel in (["math", "packed"] if not CUDA else [*bench.KERNELS, "packed"])
    ]
    assert all(row["first ms"] > 0 and row["ms"] > 0 for row in rows)
    assert capsys.readouterr().out.startswith("| kernel | rows | tokens | first ms | ms |")
