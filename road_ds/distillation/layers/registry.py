"""The methods on layers by name. A new one is a class in a file beside this one and a line here."""

from typing import Any

from road_ds.common.errors import RoadError, nearest
from road_ds.common.strict_json import quote
from road_ds.config.settings import validated
from road_ds.distillation.layers.alp import ALP
from road_ds.distillation.layers.base import LayerMethod
from road_ds.distillation.layers.ckd import CKD
from road_ds.distillation.layers.hidden import Hidden
from road_ds.distillation.layers.maps import WHERE
from road_ds.distillation.layers.pkd import PKD, RKD
from road_ds.distillation.layers.tinybert import TinyBERT

METHODS: dict[str, type[LayerMethod]] = {
    "hidden": Hidden,
    "pkd": PKD,
    "rkd": RKD,
    "ckd": CKD,
    "alp": ALP,
    "tinybert": TinyBERT,
}


def method_from(block: Any) -> LayerMethod:
    """The method that `road.distill.layers` says. RoadError for what does not hold there."""
    kind = block.get("method") if isinstance(block, dict) else None
    if not isinstance(kind, str) or kind not in METHODS:
        came = f"got {quote(kind)}{nearest(str(kind), METHODS)}" if kind is not None else "is required"
        raise RoadError(f"{WHERE}.method: {came}; allowed: {', '.join(METHODS)}")
    return validated(METHODS[kind], block, WHERE)
