"""What a run leaves, where its numbers were not finite."""

from road_ds.engine.curves import plot_curves
from road_ds.engine.results import highest
from road_ds.engine.run_folder import RunFolder

LINES = [
    {"step": 1, "loss": 1.0, "lr": None, "loss/a": 1.0},
    {"step": 2, "loss": float("nan"), "lr": 0.1, "loss/a": float("inf"), "loss/b": float("nan")},
    {"step": 2, "a/pearson": float("nan"), "b/f1": 50.0},
    {"step": 3, "a/pearson": None, "b/f1": 40.0},
]


def test_a_data_set_without_a_finite_loss_has_no_curve(tmp_path):
    folder = RunFolder(tmp_path)
    folder.record(*LINES)
    for records in (folder.records(), folder.records()[1:2], []):
        plot_curves(records, ["a/pearson", "b/f1"], tmp_path / "curves.png")
        assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_the_highest_of_a_metric_is_of_what_was_finite(tmp_path):
    folder = RunFolder(tmp_path)
    folder.record(*LINES)
    assert highest(folder, "b/f1") == {"metric": "b/f1", "value": 50.0, "step": 2}
    assert highest(folder, "a/pearson") == {"metric": "a/pearson", "value": None, "step": None}
