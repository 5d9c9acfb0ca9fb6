"""Distillation losses for classification heads of any width, as Triton kernels and in plain PyTorch.

from road_kernels import kd_loss, combine_teachers
"""

from .combine import combine_teachers
from .kd_loss import kd_loss
from .reference import KDLoss, weights_from_correctness

__all__ = ["KDLoss", "combine_teachers", "kd_loss", "weights_from_correctness"]
