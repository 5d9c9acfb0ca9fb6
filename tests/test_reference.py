"""The definition itself: against PyTorch's own losses, by finite differences, and where it differs from them on purpose."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from road_kernels import kd_loss
from road_kernels.reference import kl_factor, reduce_rows, weights_from_correctness

N, C, M = 5, 7, 3


def tensors(seed=0, rows=N, classes=C, teachers=M):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(rows, classes, generator=generator, dtype=torch.float64) * 2
    teacher = torch.randn(teachers, rows, classes, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, classes, (rows,), generator=generator)
    return student, teacher, labels


@pytest.mark.parametrize("kl_scale", ["t2", 1, 0.5])
@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_it_is_pytorchs_cross_entropy_and_kl_div(weight, kl_scale):
    student, teacher, labels = tensors()
    T = 2.5
    log_student = F.log_softmax(student / T, 1)
    soft = F.kl_div(log_student, F.softmax(teacher[0] / T, 1), reduction="batchmean")
    expected = (1 - weight) * F.cross_entropy(student, labels) + weight * {"t2": T * T}.get(kl_scale, kl_scale) * soft
    loss = kd_loss(student, teacher[0], labels, temperature=T, weight=weight, kl_scale=kl_scale)
    torch.testing.assert_close(loss.total, expected)
    torch.testing.assert_close(loss.hard.mean(), F.cross_entropy(student, labels))
    torch.testing.assert_close(loss.soft.mean(), soft)


def options(case):
    lengths = torch.tensor([7, 3, 1, 5, 7])
    weights = torch.rand(M, N, dtype=torch.float64)
    rows = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0], dtype=torch.float64)
    return {
        "plain": {},
        "wrong_scale": {"wrong_scale": 0.75},
        "teacher_weights": {"teacher_weights": weights},
        "lengths": {"lengths": lengths, "wrong_scale": 0.75},
        "row_weight": {"row_weight": rows},
        "none": {"reduction": "none"},
        "sum": {"reduction": "sum", "row_weight": rows, "lengths": lengths},
    }[case]


@pytest.mark.parametrize("case", ["plain", "wrong_scale", "teacher_weights", "lengths", "row_weight", "none", "sum"])
def test_gradient_by_finite_differences(case):
    torch.manual_seed(1)
    student, teacher, labels = tensors(1)
    labels = torch.tensor([0, 2, 0, -100, 6])
    given = options(case)

    def total(student):
        return kd_loss(student, teacher, labels, temperature=2.0, weight=0.7, **given).total

    assert torch.autograd.gradcheck(total, student.requires_grad_())


def test_only_the_total_has_a_gradient_and_only_the_student_gets_one():
    student, teacher, labels = tensors()
    teacher.requires_grad_()
    loss = kd_loss(student.requires_grad_(), teacher, labels, temperature=2.0, weight=0.5)
    loss.total.backward()
    assert teacher.grad is None and student.grad is not None
    assert not loss.hard.requires_grad and not loss.soft.requires_grad


def test_no_teacher_is_cross_entropy_and_no_labels_is_kl_alone():
    student, teacher, labels = tensors()
    torch.testing.assert_close(
        kd_loss(student, None, labels, temperature=2.0, weight=0.0).total, F.cross_entropy(student, labels)
    )
    with_labels = kd_loss(student, teacher, labels, temperature=2.0, weight=1.0)
    without = kd_loss(student, teacher, None, temperature=2.0, weight=1.0)
    torch.testing.assert_close(without.total, with_labels.total)
    assert without.hard.eq(0).all()


def test_a_loss_without_any_term_has_a_gradient_of_zero():
    """Both factors are 0: the gradient is zero, not missing, whatever the logits are."""
    student, teacher, labels = tensors()
    student[0, 0], teacher[0, 1, 1] = -torch.inf, torch.nan
    for options_of_case in ({}, {"reduction": "none"}, {"row_weight": torch.ones(N)}):
        leaf = student.clone().requires_grad_()
        loss = kd_loss(leaf, teacher, labels, temperature=2.0, weight=1.0, kl_scale=0, **options_of_case)
        loss.total.sum().backward()
        assert loss.total.eq(0).all() and leaf.grad.eq(0).all()


def test_an_ignored_row_contributes_nothing_even_when_it_is_not_a_number():
    student, teacher, labels = tensors()
    labels[1] = -100
    kept = torch.tensor([0, 2, 3, 4])
    expected = kd_loss(student[kept], teacher[:, kept], labels[kept], temperature=2.0, weight=0.5).total
    student[1], teacher[:, 1] = torch.nan, torch.inf
    loss = kd_loss(student.requires_grad_(), teacher, labels, temperature=2.0, weight=0.5)
    torch.testing.assert_close(loss.total, expected)
    loss.total.backward()
    assert student.grad[1].eq(0).all() and loss.hard[1] == 0 and loss.soft[1] == 0


def test_a_mean_over_nothing_is_zero():
    student, teacher, labels = tensors()
    student.requires_grad_()
    loss = kd_loss(student, teacher, torch.full_like(labels, -100), temperature=2.0, weight=0.5)
    loss.total.backward()
    assert loss.total == 0 and student.grad.eq(0).all()
    empty = kd_loss(student[:0], teacher[:, :0], labels[:0], temperature=2.0, weight=0.5)
    assert empty.total == 0 and empty.hard.shape == (0,)


def test_mean_divides_by_the_row_weights():
    student, teacher, labels = tensors()
    labels[0] = -100
    rows = torch.tensor([9.0, 1.0, 2.0, 0.0, 4.0], dtype=torch.float64)
    settings = dict(temperature=2.0, weight=0.5, row_weight=rows)
    losses = kd_loss(student, teacher, labels, reduction="none", **settings).total
    torch.testing.assert_close(kd_loss(student, teacher, labels, **settings).total, losses.sum() / 7.0)


def test_classes_behind_a_length_are_never_read():
    student, teacher, labels = tensors()
    lengths, labels = torch.tensor([7, 3, 1, 5, 7]), torch.tensor([6, 2, 0, 1, 0])
    settings = dict(temperature=2.0, weight=0.5, lengths=lengths, reduction="none", wrong_scale=0.75)
    expected = kd_loss(student, teacher, labels, **settings).total
    for row, length in enumerate(lengths):
        alone = kd_loss(
            student[row : row + 1, :length], teacher[:, row : row + 1, :length], labels[row : row + 1],
            temperature=2.0, weight=0.5, wrong_scale=0.75,
        )  # fmt: skip
        torch.testing.assert_close(alone.total, expected[row])
        student[row, length:], teacher[:, row, length:] = torch.nan, torch.inf
    student.requires_grad_()
    loss = kd_loss(student, teacher, labels, **settings)
    torch.testing.assert_close(loss.total, expected)
    loss.total.sum().backward()
    assert student.grad[1, 3:].eq(0).all() and student.grad.isfinite().all()


def test_a_class_masked_in_teacher_and_student_costs_nothing():
    student, teacher, labels = tensors()
    labels = labels.clamp(max=3)
    expected = kd_loss(student[:, :4], teacher[:, :, :4], labels, temperature=2.0, weight=0.5)
    student[:, 4:], teacher[:, :, 4:] = -torch.inf, -torch.inf
    student.requires_grad_()
    loss = kd_loss(student, teacher, labels, temperature=2.0, weight=0.5)
    torch.testing.assert_close(loss.total, expected.total)
    loss.total.backward()
    assert student.grad.isfinite().all()


def test_weights_of_a_row_sum_to_the_number_of_teachers():
    correct = torch.tensor([[True, True, False, False], [True, False, False, False], [True, False, True, False]])
    weights = weights_from_correctness(correct, 0.75)
    torch.testing.assert_close(weights.sum(0), torch.full((4,), 3.0))
    torch.testing.assert_close(weights[:, 2], torch.tensor([0.75, 0.75, 1.5]))
    torch.testing.assert_close(weights[:, 3], torch.ones(3))


def test_a_row_of_weight_zero_hides_an_infinite_loss():
    losses = torch.tensor([torch.inf, 1.0])
    student = torch.tensor([[-torch.inf, 0.0], [0.0, 0.0]])
    labels = torch.tensor([0, 0])
    loss = kd_loss(student, None, labels, temperature=1.0, weight=0.0, row_weight=torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(loss.total, torch.tensor(2.0).log())
    assert reduce_rows(losses, torch.ones(2), "none") is losses
    assert kl_factor("t2", 3.0) == 9 and kl_factor(1, 3.0) == 1


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), rows=st.integers(1, 5), classes=st.integers(1, 9), T=st.floats(0.5, 8))
def test_soft_is_a_divergence(seed, rows, classes, T):
    student, teacher, labels = tensors(seed, rows, classes)
    settings = dict(temperature=T, weight=0.5)
    assert kd_loss(student, teacher, labels, **settings).soft.min() > -1e-12
    assert kd_loss(student, student, labels, **settings).soft.abs().max() < 1e-12
    moved = kd_loss(student + 3, teacher - 5, labels, **settings)
    torch.testing.assert_close(moved.total, kd_loss(student, teacher, labels, **settings).total)


def test_the_package_works_without_triton():
    program = """
import sys
sys.modules["triton"] = None
import torch
from road_kernels import combine_teachers, kd_loss
logits, labels = torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)
assert kd_loss(logits, logits, labels, temperature=2.0, weight=0.5).total > 0
combine_teachers([logits, logits])
try:
    kd_loss(logits, logits, labels, temperature=2.0, weight=0.5, impl="triton")
except ValueError as error:
    assert "not installed" in str(error)
else:
    raise SystemExit("no error")
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
