"""Runs of runs, and what they say side by side. It imports all rooms but commands."""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(__name__, comparison="compare", recipe="load_recipe plan")
