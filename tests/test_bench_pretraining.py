"""The pretraining benchmark: both sides train on the same rows, and what it says of the heads is right."""

import pytest
from test_bench import load as load


@pytest.fixture
def bench(load, monkeypatch):
    for name in ("measure", "length_mix", "presets", "providers", "apart"):
        load(name)
    bench = load("bench_pretraining")
    narrow = load("presets").electra(16, 16, 1, 2, 1066)
    monkeypatch.setattr(bench, "PRESETS", {"narrow": bench.Preset(narrow, rows=8, micro=4, steps=2)})
    return bench


def test_ours_trains_on_the_rows_of_the_plan(bench):
    ours = bench.Ours("narrow")
    before = [p.detach().clone() for p in ours.engine.module.generators.parameters()]
    assert ours.turn(0) > 0
    assert any((a != b).any() for a, b in zip(before, ours.engine.module.generators.parameters(), strict=True))
    assert ours.tokens(0) == sum(
        int(ours.rows.lengths[taken.rows].sum()) for step in (0, 1) for taken in ours.passes.draw(step)
    )
    assert ours.logits() == pytest.approx(4 * 19 * 1066 * 4 / 1e6)


def test_trainer_does_too(bench):
    pytest.importorskip("accelerate")
    theirs = bench.HuggingFace("narrow")
    assert theirs.turn(0) > 0 and theirs.trainer.state.global_step == 2
    assert theirs.logits() == pytest.approx(bench.Ours("narrow").logits() * 128 / 19)
