"""Bad input to kd_loss: a ValueError that names the argument, what came and what is allowed."""

import os

import pytest
import torch
from road_kernels import kd_loss

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def test_bad_input_names_the_argument():
    student, labels = torch.zeros(4, 5), torch.tensor([0, 1, 2, 3])
    teacher = torch.zeros(3, 4, 5)
    good = dict(student=student, teacher=teacher, labels=labels, temperature=2.0, weight=0.5)
    bad = [
        (dict(student=student[0]), r"^student: got a tensor \[5\].*\[rows, classes\]"),
        (dict(student=student.long()), r"^student: "),
        (dict(teacher=teacher[:, :3]), r"^teacher\[0\]: got a tensor \[3, 5\].*\[4, 5\]"),
        (dict(teacher=[]), r"^teacher: got \[\]"),
        (dict(teacher=[student, student[:, :4]]), r"^teacher\[1\]: "),
        (dict(teacher=teacher.to("meta")), r"^teacher\[0\]: .*on meta; .*on cpu"),
        (dict(teacher=None), r"^weight: got 0.5 without a teacher"),
        (dict(labels=labels[:3]), r"^labels: got a tensor \[3\].*\[4\]"),
        (dict(labels=labels.float()), r"^labels: .*integer"),
        (dict(labels=labels.to("meta")), r"^labels: .*on meta; .*on cpu"),
        (dict(labels=torch.tensor([0, 1, 5, 3])), r"^labels: got 5 in row 2; allowed: 0 \.\.\. 4"),
        (dict(labels=torch.tensor([0, -1, 2, 3])), r"^labels: got -1 in row 1"),
        (dict(labels=None), r"^labels: got None with weight 0.5"),
        (dict(temperature=0), r"^temperature: got 0; allowed: a Python number above 0"),
        (dict(temperature=float("nan")), r"^temperature: got nan"),
        (dict(temperature=torch.tensor(2.0)), r"^temperature: got a tensor"),
        (dict(weight=1.5), r"^weight: got 1.5; allowed: .* 0 to 1"),
        (dict(weight=-0.1), r"^weight: got -0.1"),
        (dict(kl_scale="T2"), r"^kl_scale: got 'T2'"),
        (dict(kl_scale=-1), r"^kl_scale: got -1"),
        (dict(wrong_scale=0), r"^wrong_scale: got 0; .*above 0"),
        (dict(wrong_scale=-0.75), r"^wrong_scale: got -0.75"),
        (dict(wrong_scale=1.5), r"^wrong_scale: got 1.5; .*below 1.5"),
        (dict(wrong_scale=0.75, teacher_weights=torch.ones(3, 4)), r"^teacher_weights: got both"),
        (dict(teacher_weights=torch.ones(4, 3)), r"^teacher_weights: got a tensor \[4, 3\].*\[3, 4\]"),
        (dict(lengths=torch.tensor([0, 5, 5, 5])), r"^lengths: got 0 in row 0; allowed: 1 \.\.\. 5"),
        (dict(lengths=torch.tensor([5, 5, 6, 5])), r"^lengths: got 6 in row 2"),
        (dict(lengths=torch.tensor([5, 5, 2, 5])), r"^labels: got 2 in row 2; allowed: 0 \.\.\. 1"),
        (dict(lengths=torch.ones(4)), r"^lengths: .*integer"),
        (dict(row_weight=torch.ones(5)), r"^row_weight: got a tensor \[5\].*\[4\]"),
        (dict(reduction="batchmean"), r"^reduction: got 'batchmean'; allowed: mean, sum, none"),
        (dict(impl="cuda"), r"^impl: got 'cuda'; allowed: auto, triton, torch"),
    ]
    kd_loss(**good)
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            kd_loss(**{**good, **change})


@pytest.mark.skipif(INTERPRETED, reason="in the interpreter it is allowed")
def test_triton_on_a_cpu_tensor_says_what_to_do():
    pytest.importorskip("triton")
    with pytest.raises(ValueError, match=r"^impl: got 'triton' for tensors on cpu; .*TRITON_INTERPRET=1"):
        kd_loss(torch.zeros(2, 3), None, torch.zeros(2, dtype=torch.long), temperature=1.0, weight=0.0, impl="triton")
