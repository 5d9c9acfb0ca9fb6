"""One JSON file as settings: the road block, DeepSpeed's part, what is filled in, and the catalog of data sets
(catalog.json). It imports common.
"""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(__name__, file="load_config", road="RoadConfig DatasetSpec")
