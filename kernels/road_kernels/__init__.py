"""Distillation losses for classification heads of any width, as Triton kernels and in plain PyTorch.

from road_kernels import kd_loss, combine_teachers
"""

from .combine import combine_teachers
from .guard import KernelMismatch, check_against_reference
from .kd_loss import kd_loss
from .linear import linear_kd_loss
from .reference import KDLoss, weights_from_correctness

__all__ = [
    "KDLoss",
    "KernelMismatch",
    "check_against_reference",
    "combine_teachers",
    "kd_loss",
    "linear_kd_loss",
    "weights_from_correctness",
]
