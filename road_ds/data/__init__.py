"""What users bring, up to the micro-batches of a step: files, rows, features, the plan of passes, batches. It
imports common and config.
"""

from road_ds.common.exports import exports

__getattr__, __all__ = exports(
    __name__, batch="Batch Feature", features="FeatureSet", passes="Pass Passes", readers="Example", rows="Rows"
)
