"""combine_teachers: against Algorithm 2 of the paper line by line, and the kernel against the definition.

Kernel tests run in Triton's interpreter (started by test_interpreter.py) or on a GPU (pytest -m gpu).
"""

import os

import pytest
import torch
from road_kernels import combine_teachers, weights_from_correctness

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
kernel = pytest.mark.filterwarnings("ignore") if INTERPRETED else pytest.mark.gpu
ODD, VOCABULARY = (4097, 16390) if INTERPRETED else (8193, 30522)  # as in test_kd_loss.py


def algorithm_2(models, input, target, W):
    """ROaD, Algorithm 2, line by line, for one row. Its one gap, no correct teacher, is filled with the plain mean."""
    num_correct = 0
    num_incorrect = 0
    teachers_logits = []
    teachers_correctness = []
    for m in models:
        logits = m(input)
        if logits.argmax() == target:
            num_correct = num_correct + 1
            teachers_logits.append(logits)
            teachers_correctness.append(True)
        else:
            num_incorrect = num_incorrect + 1
            teachers_logits.append(logits * W)
            teachers_correctness.append(False)
    if num_correct == 0:
        return sum(m(input) for m in models) / len(models)
    W_hat = (len(models) - (num_incorrect * W)) / num_correct
    for i in range(len(models)):
        if teachers_correctness[i]:
            teachers_logits[i] = teachers_logits[i] * W_hat
    return sum(teachers_logits) / len(models)


def teachers_and_labels(M, N, C, dtype=torch.float64, seed=0):
    """Logits and labels where each number of right teachers, from 0 to M, comes up."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn(M, N, C, generator=generator, dtype=torch.float64) * 3
    labels = torch.randint(0, C, (N,), generator=generator)
    for row in range(N):
        for m in range(row % (M + 1)):
            teacher[m, row, labels[row]] = 9.0
    return teacher.to(dtype), labels


@pytest.mark.parametrize("W", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("M", [1, 2, 3, 8])
def test_it_is_algorithm_2_of_the_paper(M, W):
    teacher, labels = teachers_and_labels(M, 3 * (M + 1), 6)
    combined = combine_teachers(teacher, labels, wrong_scale=W)
    for row, label in enumerate(labels):
        models = [lambda row, m=m: teacher[m, row] for m in range(M)]
        torch.testing.assert_close(combined[row], algorithm_2(models, row, label, W))


def test_the_papers_factors_for_three_teachers():
    ones = torch.eye(3).expand(3, 3, 3)  # row r of each teacher argues for class r
    for right, factor in ((3, 1.0), (2, 1.125), (1, 1.5)):
        teacher = ones.clone()
        teacher[right:] = teacher[right:].roll(1, dims=2)
        labels = torch.arange(3)
        combined = combine_teachers(teacher, labels, wrong_scale=0.75)
        torch.testing.assert_close(combined.diagonal(), torch.full((3,), right * factor / 3))


def test_every_teacher_wrong_gives_the_plain_mean():
    teacher, _ = teachers_and_labels(3, 4, 5)
    nobody = torch.tensor(
        [next(c for c in range(5) if c not in set(teacher[:, r].argmax(1).tolist())) for r in range(4)]
    )
    torch.testing.assert_close(combine_teachers(teacher, nobody, wrong_scale=0.75), teacher.mean(0))


def test_of_equal_logits_the_first_is_the_answer():
    teacher = torch.tensor([[[1.0, 1.0]], [[0.0, 2.0]]])
    first = combine_teachers(teacher, torch.tensor([0]), wrong_scale=0.5)
    torch.testing.assert_close(first, (teacher[0] * 1.5 + teacher[1] * 0.5) / 2)


def test_lengths_bound_the_argmax_and_mark_absent_classes():
    teacher = torch.tensor([[[1.0, 0.0, 9.0]], [[0.0, 1.0, 9.0]]])
    combined = combine_teachers(teacher, torch.tensor([0]), wrong_scale=0.5, lengths=torch.tensor([2]))
    torch.testing.assert_close(combined, torch.tensor([[0.75, 0.25, -torch.inf]]))


def test_given_weights_and_their_zero():
    teacher, labels = teachers_and_labels(3, 4, 5)
    correct = teacher.argmax(2) == labels
    given = combine_teachers(teacher, teacher_weights=weights_from_correctness(correct, 0.75))
    torch.testing.assert_close(given, combine_teachers(teacher, labels, wrong_scale=0.75))
    teacher[0] = torch.inf
    weights = torch.tensor([0.0, 1.5, 1.5], dtype=torch.float64)[:, None].expand(3, 4)
    torch.testing.assert_close(combine_teachers(teacher, teacher_weights=weights), teacher[1:].mean(0))


def test_bad_input_names_the_argument():
    teacher, labels = teachers_and_labels(3, 4, 5)
    with pytest.raises(ValueError, match=r"^teacher: got None"):
        combine_teachers(None)
    with pytest.raises(ValueError, match=r"^wrong_scale: .*labels"):
        combine_teachers(teacher, wrong_scale=0.75)
    with pytest.raises(ValueError, match=r"^wrong_scale: got 0;"):
        combine_teachers(teacher, labels, wrong_scale=0)
    with pytest.raises(ValueError, match=r"^wrong_scale: got 1\.5; allowed: .* below 1\.5"):
        combine_teachers(teacher, labels, wrong_scale=1.5)
    with pytest.raises(ValueError, match=r"^teacher_weights: got a tensor \[4, 3\].*\[3, 4\]"):
        combine_teachers(teacher, teacher_weights=torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"^teacher\[1\]: .*\[3, 5\]"):
        combine_teachers([teacher[0], teacher[1, :3]])


LAYOUTS = {
    "dense": lambda teacher: teacher,
    "list": lambda teacher: list(teacher.unbind(0)),
    "mixed dtypes": lambda teacher: [logits.to(dtype) for logits, dtype in zip(teacher, MIXED, strict=False)],
    "classes apart": lambda teacher: teacher.repeat_interleave(2, 2)[:, :, ::2],
    "rows first": lambda teacher: teacher.transpose(0, 1).contiguous().transpose(0, 1),
    "padded": lambda teacher: torch.nn.functional.pad(teacher, (0, 6), value=torch.nan)[:, :, : teacher.shape[2]],
}
MIXED = [torch.float32, torch.float16, torch.bfloat16] * 3


@kernel
@pytest.mark.parametrize("mode", ["plain", "wrong_scale", "teacher_weights"])
@pytest.mark.parametrize(
    ("C", "M", "dtype", "layout"),
    [
        (1, 2, torch.float32, "dense"),
        (2, 3, torch.float16, "list"),
        (3, 8, torch.bfloat16, "rows first"),
        (5, 1, torch.float32, "classes apart"),
        (31, 3, torch.float16, "padded"),
        (33, 3, torch.float32, "mixed dtypes"),
        (384, 8, torch.float16, "dense"),
        (512, 2, torch.bfloat16, "list"),
        (1000, 3, torch.float16, "padded"),
        (4096, 3, torch.float32, "classes apart"),
        (ODD, 2, torch.float16, "padded"),
        (VOCABULARY, 3, torch.float16, "list"),
    ],
)
def test_kernel_against_float64(C, M, dtype, layout, mode):
    N = 5 if C < 2000 else 2
    teacher, labels = (tensor.to(DEVICE) for tensor in teachers_and_labels(M, N, C, dtype))
    generator = torch.Generator().manual_seed(C)
    lengths = torch.maximum(torch.randint(1, C + 1, (N,), generator=generator), labels.cpu() + 1).to(DEVICE)
    given = {
        "plain": {},
        "wrong_scale": {"wrong_scale": 0.75, "lengths": lengths},
        "teacher_weights": {"teacher_weights": torch.rand(M, N, generator=generator).to(DEVICE)},
    }[mode]
    laid_out = LAYOUTS[layout](teacher)
    came = combine_teachers(laid_out, labels, impl="triton", **given)
    values = [logits.double() for logits in laid_out]
    expected = combine_teachers(values, labels, impl="torch", **given)
    own = combine_teachers(laid_out, labels, impl="torch", **given)
    assert came.dtype == own.dtype and came.shape == (N, C)
    finite = expected.isfinite()
    assert torch.equal(came.isfinite(), finite) and torch.equal(came[~finite].double(), expected[~finite])
    error = (came - expected)[finite].abs().max()
    size = expected[finite].abs().max()
    # The interpreter cuts bf16 off where a GPU rounds it: a whole last place instead of half of one.
    cut_off = 2**-7 * size if INTERPRETED and own.dtype == torch.bfloat16 else 0
    assert error <= (own - expected)[finite].abs().max() + cut_off + 2e-6 * size


@kernel
def test_kernel_leaves_out_a_teacher_of_weight_zero_and_takes_no_rows():
    teacher = torch.randn(2, 3, 40, device=DEVICE)
    teacher[0] = torch.inf
    weights = torch.tensor([[0.0] * 3, [2.0] * 3], device=DEVICE)
    torch.testing.assert_close(combine_teachers(teacher, teacher_weights=weights, impl="triton"), teacher[1])
    assert combine_teachers(teacher[:, :0], impl="triton").shape == (0, 40)


@kernel
def test_kernel_operator_keeps_its_contract():
    teacher, labels = teachers_and_labels(3, 4, 40, torch.float32)
    arguments = (list(teacher.to(DEVICE)), labels.to(DEVICE), None, None, 0.75)
    torch.library.opcheck(torch.ops.road_kernels.combine.default, arguments)
