"""Small things that everybody uses: errors, lines and tables, JSON, hashes, sealed folders, the processes of a
run, names of models and files. It imports nothing of road_ds.
"""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(__name__, errors="RoadError", ranks="Ranks")
