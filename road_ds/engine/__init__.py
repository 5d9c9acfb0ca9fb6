"""A run under DeepSpeed: its settings on a machine, the engine, checkpoints, the run folder, what happens between
steps, what it leaves. It imports the rooms up to distillation.
"""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(__name__, run_folder="RunFolder", settled="Machine Settled settle", start="start")
