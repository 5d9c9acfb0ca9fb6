"""check_against_reference: silent on a right kernel, loud on a gradient that is slightly wrong.

Kernel tests run in Triton's interpreter (started by test_interpreter.py) or on a GPU (pytest -m gpu).
"""

import os

import pytest
import torch
from road_kernels import KernelMismatch, check_against_reference, kd_loss

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
kernel = pytest.mark.filterwarnings("ignore") if INTERPRETED else pytest.mark.gpu
OPTIONS = dict(temperature=5.0, weight=0.9, wrong_scale=0.75)


def batch(dtype=torch.float32, device="cpu", N=20, C=40, scale=3.0):
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(N, C, generator=generator) * scale, torch.randn(2, N, C, generator=generator) * scale
    labels = torch.randint(0, C, (N,), generator=generator)
    labels[3] = -100
    return student.to(device, dtype), teacher.to(device, dtype), labels.to(device)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.1, 3.0, 30.0])
def test_the_reference_agrees_with_itself(dtype, scale):
    student, teacher, labels = batch(dtype, scale=scale)
    rows = torch.linspace(0, 100, len(labels))
    agreement = check_against_reference(student, teacher, labels, row_weight=rows, reduction="mean", **OPTIONS)
    assert agreement.gradient_error <= agreement.tolerance
    assert student.grad is None


@kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("C", [3, 40, 2104 if INTERPRETED else 8200])
def test_the_kernel_agrees(dtype, C):
    student, teacher, labels = batch(dtype, DEVICE, N=5, C=C)
    lengths = torch.full_like(labels, C)
    check_against_reference(student, teacher, labels, lengths=lengths, impl="triton", **OPTIONS)


def wrong_by(change):
    def loss(student, *args, **options):
        return kd_loss(change(student), *args, **options)

    return loss


class SlightlyOff(torch.autograd.Function):
    """The identity, with one gradient entry in ten off by 5 %."""

    @staticmethod
    def forward(ctx, logits):
        return logits.clone()

    @staticmethod
    def backward(ctx, gradient):
        off = torch.ones_like(gradient)
        off[:, ::10] = 1.05
        return gradient * off


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_wrong_gradient_is_seen_where_the_loss_is_right(dtype):
    student, teacher, labels = batch(dtype)
    with pytest.raises(KernelMismatch, match=r"\(gradient\).*\[20, 40\]"):
        check_against_reference(student, teacher, labels, loss=wrong_by(SlightlyOff.apply), **OPTIONS)


def test_a_wrong_loss_and_a_loss_that_is_not_a_number_are_seen():
    student, teacher, labels = batch()
    for change in (lambda logits: logits * 1.01, lambda logits: logits * torch.nan):
        with pytest.raises(KernelMismatch):
            check_against_reference(student, teacher, labels, loss=wrong_by(change), **OPTIONS)


def test_only_the_first_rows_are_looked_at():
    student, teacher, labels = batch()
    weights = torch.ones(2, 20)
    student[10:] = torch.nan
    check_against_reference(student, teacher, labels, rows=10, teacher_weights=weights, temperature=5.0, weight=0.9)
    with pytest.raises(KernelMismatch):
        check_against_reference(student, teacher, labels, teacher_weights=weights, temperature=5.0, weight=0.9)
