"""What a run leaves, where its numbers were not finite."""

import pytest

from road_ds.engine import curves
from road_ds.engine.curves import plot_curves
from road_ds.engine.results import highest
from road_ds.engine.run_folder import RunFolder

LINES = [
    {"step": 1, "loss": 1.0, "lr": None, "loss/a": 1.0},
    {"step": 2, "loss": float("nan"), "lr": 0.1, "loss/a": float("inf"), "loss/b": float("nan")},
    {"step": 2, "a/pearson": float("nan"), "b/f1": 50.0},
    {"step": 3, "a/pearson": None, "b/f1": 40.0},
]


@pytest.mark.drawn
def test_a_data_set_without_a_finite_loss_has_no_curve(tmp_path):
    """And names are drawn as they are, whatever they would be as a formula."""
    folder = RunFolder(tmp_path)
    folder.record(*LINES)
    for records in (folder.records(), folder.records()[1:2], []):
        of = {"a": "$x_$", "b": "_y", "$z^$": "_y"}
        plot_curves(records, of, {"a": "pearson", "b": "f1", "$z^$": "$f1_$"}, {"b": 30.0}, tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
        assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_each_head_has_panels_of_its_own(tmp_path, monkeypatch):
    """However many data sets there are; the parts of the loss have one where teachers gave any."""
    drawn = []
    monkeypatch.setattr(curves, "_write", lambda figure, _: drawn.append(figure))
    of = {f"set_{i}": f"head {i % 9}" for i in range(14)}
    records = [
        {"step": s, "lr": 0.1, "grad_norm": 1.0, **{f"loss/{name}": 1 / s for name in of}} for s in range(1, 1000)
    ]
    plot_curves(records, of, dict.fromkeys(of, "f1"), {"set_0": 20.0}, tmp_path / "c.png")
    plot_curves([{**r, "soft/set_3": 1.0, "hard/set_3": 0.5} for r in records], of, {}, {}, tmp_path / "c.png")
    (plain, taught) = ([axes for axes in figure.axes] for figure in drawn)
    assert len(plain) == 2 * 10 and len(taught) == 3 * 10
    assert [axes.get_title() for axes in plain[:3]] == [
        "head 0: training loss",
        "head 0: dev f1",
        "head 1: training loss",
    ]
    named = [[text.get_text() for text in axes.get_legend().get_texts()] for axes in plain[1:18:2]]
    assert named[0] == ["set_0", "set_9"] and sorted(name for of_head in named for name in of_head) == sorted(of)
    (loss, _) = plain[0].lines
    assert len(loss.get_xdata()) == 400 and (loss.get_xdata()[0], loss.get_xdata()[-1]) == (1, 999)
    (base,) = plain[1].lines
    assert [*base.get_ydata()] == [20.0, 20.0] and base.get_linestyle() == "--"
    assert [line.get_linestyle() for line in taught[3 * 3 + 1].lines] == ["--", ":"]


def test_the_highest_of_a_metric_is_of_what_was_finite(tmp_path):
    folder = RunFolder(tmp_path)
    folder.record(*LINES)
    assert highest(folder, "b/f1") == {"metric": "b/f1", "value": 50.0, "step": 2}
    assert highest(folder, "a/pearson") == {"metric": "a/pearson", "value": None, "step": None}
