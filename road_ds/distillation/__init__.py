"""Losses against labels and teachers, a file per family; soft targets and where teachers come from. A new
objective: a class in a file here and a line in registry.py. It imports the rooms up to models.
"""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(
    __name__,
    **{"layers.base": "Comparison LayerMethod", "layers.registry": "METHODS"},
    objective="Fused Loss Objective Taught Teaching supervised",
    registry="OBJECTIVES",
    teachers="SOURCES",
)
