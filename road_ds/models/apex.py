"""NVIDIA Apex's fused layer norms in place of PyTorch's, where it is installed and wanted."""

import importlib
import importlib.util
from pathlib import Path
from typing import Literal

from torch import nn

from road_ds.common.errors import RoadError
from road_ds.models.exchange import exchange

PARTS = ("normalization", "optimizers")  # the folders by which NVIDIA's package is known


def installed() -> Literal["nvidia", "other", "none"]:
    """Whose package the name apex stands for here; found by its folders, none of its code is run."""
    found = importlib.util.find_spec("apex")
    if found is None:
        return "none"
    folders = [Path(location) for location in found.submodule_search_locations or ()]
    return "nvidia" if any(all((folder / part).is_dir() for part in PARTS) for folder in folders) else "other"


def use_apex(asked: str, device: str) -> tuple[bool, str]:
    """Whether Apex's kernels are used, and what to say about it. RoadError where they are asked for and cannot be."""
    if asked == "off":
        return False, ""
    package = installed()
    fault = {
        "nvidia": "" if device == "cuda" else "Apex's kernels run on a GPU, this run is on CPU",
        "none": "NVIDIA Apex is not installed",
        "other": "the installed package apex is another project, not NVIDIA Apex (which has apex.normalization and "
        "apex.optimizers): uninstall it, and build NVIDIA's from its source",
    }[package]
    if fault and asked == "on":
        raise RoadError(f'road.apex is "on": {fault}; or set road.apex "off"')
    return not fault, fault if package == "other" else ""


def fuse_norms(encoder: nn.Module) -> int:
    """How many layer norms of an encoder now are Apex's, on the same weights; those without a bias stay PyTorch's."""
    fused = importlib.import_module("apex.normalization").FusedLayerNorm

    def apex(norm: nn.LayerNorm) -> nn.Module | None:
        if norm.bias is None:
            return None
        other = fused(norm.normalized_shape, eps=norm.eps)
        other.weight, other.bias = norm.weight, norm.bias
        return other

    return exchange(encoder, nn.LayerNorm, apex)
