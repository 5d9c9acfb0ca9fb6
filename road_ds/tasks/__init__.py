"""What a head answers, a file per task; metrics, and the evaluation of a split. A new task: a file here and a line
in registry.py. It imports common, config and data.
"""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(__name__, base="Task", outputs="Outputs", registry="Heads TASKS", text="TextTask")
