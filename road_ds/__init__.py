"""Multi-task pretraining and distillation of NLU encoders under DeepSpeed: `from road_ds import load, train, check, compare`."""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(__name__, **{"train": "train", "commands.python": "check compare load"})
