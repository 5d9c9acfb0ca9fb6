"""The training benchmark: its rows, its counts and its ratios are right, and its loops train on the same rows."""

import json
import sys
from functools import partial

import numpy as np
import pytest
import torch
from forked import forkserver, run_forked
from runs import ROOT
from test_bench import load as load

from road_ds.common.ranks import Ranks
from road_ds.data.batches import assemble
from road_ds.data.passes import Passes
from road_ds.distillation.objective import supervised
from road_ds.models.build import build_model
from road_ds.models.configuration import load_tokenizer
from road_ds.tasks.registry import heads


@pytest.fixture
def mix(load):
    load("measure")
    return load("length_mix")


@pytest.fixture
def presets(load, mix):
    return load("presets")


@pytest.fixture
def providers(load, presets):
    return load("providers")


@pytest.fixture
def bench(load, providers):
    load("apart")
    forkserver()  # with the path of the tests' own; providers' processes come from it, too
    return load("bench_train")


def test_rows_are_as_long_as_stated(mix):
    generator = np.random.default_rng(0)
    for mixed in mix.MIX.values():
        drawn = mix.lengths(mixed, 4000, 10**6, generator)  # neither cut nor split
        assert drawn.mean() == pytest.approx(mixed.mean, rel=0.05)
    assert np.mean([mixed.mean for mixed in mix.MIX.values()]) == pytest.approx(234, rel=0.01)


def test_long_rows_become_windows_of_the_maximum_and_one_rest(mix):
    long = mix.Mixed("mrc", 1050, windows=True)
    windows = mix.lengths(long, 3000, 384, np.random.default_rng(0))
    assert len(windows) == 3000 and windows.max() == 384 and windows.min() > 0
    rests = windows[windows < 384]
    assert 0.05 < len(rests) / 3000 < 0.3 and (rests > 384 - mix.STRIDE).mean() > 0.9
    assert mix.lengths(mix.Mixed("nli", 1050), 100, 384, np.random.default_rng(0)).max() == 384


def test_the_files_hold_what_a_run_reads(mix, tmp_path):
    sources = mix.write_mix(tmp_path / "mix", 40, 160, 1000)
    again = mix.write_mix(tmp_path / "again", 40, 160, 1000)
    assert list(sources) == list(mix.MIX)
    for name, source in sources.items():
        assert len(source) == 40 and source.lengths.max() <= 160
        assert [len(source[i].input_ids) for i in range(40)] == source.lengths.tolist()
        assert np.array_equal(source[7].input_ids, again[name][7].input_ids)
        spans = mix.MIX[name].task == "mrc"
        assert all(len(source[i].labels) == (2 if spans else 1) for i in range(40))
        assert all(max(source[i].labels) < (source.lengths[i] if spans else 5) for i in range(40))


def test_operations_by_hand(bench, presets):
    config = presets.electra(8, 8, 1, 1)  # 4 x 8 x 8 + 2 x 8 x 32 = 768 weights
    assert bench.flops(config, np.array([10, 20])) == 6 * 768 * 30 + 12 * 8 * (100 + 400)
    assert bench.flops(presets.electra(4, 8, 1, 1), np.array([10])) == 6 * (768 + 32) * 10 + 12 * 8 * 100


def test_ratios_are_taken_turn_by_turn(bench):
    works = {
        "ours free": [bench.Work(1.0, 1), bench.Work(2.0, 1), bench.Work(4.0, 1)],
        "ours grouped": [bench.Work(2.0, 1), bench.Work(3.0, 1), bench.Work(5.0, 1)],
        "bare loop": [bench.Work(4.0, 1), bench.Work(3.0, 1), bench.Work(10.0, 1)],
        "bare loop, our layers": [bench.Work(2.0, 1), bench.Work(2.0, 1), bench.Work(5.0, 1)],
        "Trainer": [bench.Work(3.0, 1), bench.Work(4.0, 1), bench.Work(16.0, 1)],
    }
    assert bench.ratios(works) == {
        "ours free against Trainer": {"median": 3.0, "least": 2.0, "most": 4.0},
        "time of ours grouped / bare loop": {"median": 0.5, "least": 0.5, "most": 1.0},
        "time of ours grouped / bare loop, our layers": {"median": 1.0, "least": 1.0, "most": 1.5},
    }
    assert "ours free against Trainer 3.00x (2.00-4.00)" in bench.summary({"tiny": {"ratios": bench.ratios(works)}})


@pytest.mark.parametrize("own", [True, False])
def test_the_bare_loop_computes_our_losses(own, providers, presets, mix, tmp_path, monkeypatch):
    """The same weights, rows and losses; without dropout and without our idle heads."""
    monkeypatch.setattr(sys.modules["providers.bare"], "DROPOUT", 0.0)
    config = presets.electra(16, 16, 2, 2, 1066)
    preset = presets.Preset(config, rows=8, micro=2, steps=1, quick_steps=1)
    road = presets.bench_config(preset)
    sources = mix.write_mix(tmp_path / "mix", 20, 384, 1066)
    tokenizer = load_tokenizer(road.model)
    ranks = Ranks(rank=0, world_size=1, local_rank=0, device=torch.device("cpu"), control=None)
    lengths = {name: source.lengths for name, source in sources.items()}
    passes = Passes(lengths, np.full(9, 1 / 9), passes=4, rows=2, seed=0, window=16)
    rows = providers.Rows(sources, passes, road, preset, ranks, "fp32", tokenizer)
    bare = providers.Bare(rows, own)
    model = build_model(road.model, heads(road), tokenizer, dropout=0.0, seed=0)
    compared = set()
    for _, batches in assemble(passes, sources, bare.padding, ranks, 2, range(4)):
        for batch in batches:
            outputs = model(batch, road.head_of(batch.dataset))
            ours = supervised(outputs, batch.labels).total
            # A plain loop lets the softmax of a span see the padding: it is no part of the comparison.
            if road.head_of(batch.dataset) != "mrc" or batch.full:
                assert bare.loss(batch).item() == pytest.approx(ours.item(), abs=1e-5)
                compared.add(road.head_of(batch.dataset))
    assert compared == {"mrc", "nli", "paraphrase", "sentiment"}
    assert bare.turn(range(2)).computed > rows.lengths(range(2)).sum()


def test_a_run_tells_and_writes_every_provider(bench, tmp_path, capsys, monkeypatch):
    pytest.importorskip("accelerate")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    file = tmp_path / "found.json"
    settings = ("--preset", "tiny", "--rows", "8", "--turns", "2", "--steps", "1", "--json", str(file))
    bench.main([*settings, "--precision", "bf16", "--only", "bare loop"])
    bench.main([*settings])
    both = json.loads(file.read_text())
    assert {name: one["precision"] for name, one in both.items()} == {"tiny": "fp32", "tiny bf16": "bf16"}
    assert [row["provider"] for row in both["tiny bf16"]["rows"]] == ["bare loop"]
    found = both["tiny"]
    rows = {row["provider"]: row for row in found["rows"]}
    bare = ["bare loop", "bare loop, our layers"]
    assert list(rows) == ["ours free", "ours grouped", "ours fixed", *bare, "Trainer", "Trainer by length"]
    assert rows["ours free"]["padding"] == 0 < rows["ours grouped"]["padding"] < rows["ours fixed"]["padding"]
    assert rows["bare loop"]["padding"] == pytest.approx(rows["ours grouped"]["padding"], abs=1e-3)
    assert rows["Trainer"]["padding"] == pytest.approx(rows["ours fixed"]["padding"], abs=1e-3)
    assert all(row["peak GB"] > 0.1 for row in rows.values()), "a process each"
    assert all(row["examples/s"] > 0 and len(row["seconds per turn"]) == 2 for row in rows.values())
    split = rows["ours free"]
    assert all(split[f"{part} ms"] > 0 for part in ("forward", "backward", "step"))
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith("tiny: ours ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--micro", "5", "--json", "x"), "64 rows a step are not 4 passes of whole micro-batches of 5 rows"),
        (("--rows", "2", "--json", "x"), "change --rows or --micro"),
        (("--rows", "128"), "need --json FILE"),
    ],
)
def test_rows_that_do_not_divide_and_results_that_are_not_a_presets_are_refused(options, message):
    pytest.importorskip("accelerate")
    done = run_forked(ROOT / "benchmarks" / "bench_train.py", "--preset", "tiny", *options)
    assert done.returncode != 0 and message in done.stderr


def test_a_provider_that_dies_is_named(load, bench, tmp_path):
    presets = sys.modules["presets"]
    case = bench.Case(presets.PRESETS["tiny"], "fp32", "wall", ["free"], [0], 0, tmp_path)  # there are no rows
    with pytest.raises(SystemExit, match=r"bare loop: its process ended with 1$"):
        bench.Apart(partial(bench.provider_of, case, "bare loop"), "bare loop").ready()


def test_an_unknown_provider_is_named_beside_the_known(tmp_path):
    pytest.importorskip("accelerate")
    done = run_forked(
        ROOT / "benchmarks" / "bench_train.py",
        "--preset",
        "tiny",
        "--only",
        "Trainer by lenght",
        "--json",
        tmp_path / "found.json",
    )
    assert done.returncode != 0 and "--only Trainer by lenght: there are ours free, " in done.stderr


def test_passes_are_counted_from_the_plan(load, providers, capsys):
    load("count_passes").main(["--steps", "3", "--micro", "64"])
    *_, row = capsys.readouterr().out.splitlines()
    micro, pieces, passes, least, most, full = (float(cell) for cell in row.strip("| ").split("|"))
    assert (micro, pieces) == (64, 8) and 1 <= least <= passes <= most <= 8 and full <= passes < 8
