"""A shared encoder with one head per task, its layers, exported folders, and what they predict alone or together.
It imports the rooms up to tasks.
"""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(
    __name__,
    build="build_model",
    ensemble="Ensemble",
    multi_task="MultiTaskModel",
    predictor="Predictor",
    states="Shape States Wanted",
)
