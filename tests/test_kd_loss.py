"""kd_loss: the kernels against the definition in float64, loss and gradient.

Kernel tests run in Triton's interpreter (started by test_interpreter.py) or on a GPU (pytest -m gpu).
"""

import itertools
import os
import random

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from road_kernels import kd_loss, plan
from road_kernels.reference import kl_factor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
kernel = pytest.mark.filterwarnings("ignore") if INTERPRETED else pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Many classes, the same by an odd number, a vocabulary: the interpreter, which pays for each of them, gets the fewest that take
# the same ways: whole tiles and a rest, and several tiles of the gradient.
LONG, ODD, VOCABULARY = (2104, 4097, 16390) if INTERPRETED else (8200, 8193, 30522)

# ---- the grid: every pair of values of two factors comes up in at least one case

FACTORS = {
    "C": [1, 2, 3, 5, 31, 33, 384, 512, 1000, 4096, ODD, VOCABULARY],
    "M": [1, 2, 3, 8],
    "dtype": DTYPES,
    "teacher_dtype": [None, torch.float32, torch.bfloat16],
    "temperature": [1, 2.5, 5],
    "weight": [0, 0.5, 0.9, 1],
    "mixing": [None, 0.75, 1.0, "weights"],
    "lengths": [False, True],
    "layout": ["dense", "list", "padded", "misaligned", "classes apart", "rows reversed in memory"],
    "reduction": ["mean", "sum", "none"],
    "row_weight": [False, True],
    "kl_scale": ["t2", 1],
}


def covering_cases(factors):
    """Cases such that any two values of different factors meet: greedy, with a fixed seed."""
    names = list(factors)
    missing = {
        ((one, a), (two, b))
        for one, two in itertools.combinations(names, 2)
        for a, b in itertools.product(range(len(factors[one])), range(len(factors[two])))
    }
    rng, cases = random.Random(0), []
    while missing:
        fixed = dict(rng.choice(sorted(missing)))
        for name in rng.sample(names, len(names)):
            if name not in fixed:
                gain = [
                    sum(pair in missing for pair in pairs(names, {**fixed, name: i})) for i in range(len(factors[name]))
                ]
                fixed[name] = gain.index(max(gain))
        missing -= set(pairs(names, fixed))
        cases.append({name: factors[name][fixed[name]] for name in names})
    return cases


def pairs(names, fixed):
    chosen = [(name, fixed[name]) for name in names if name in fixed]
    return itertools.combinations(chosen, 2)


def lay_out(logits, layout):
    """The same values in other memory; what lies between them is NaN."""
    if layout == "padded":
        width = -(-logits.shape[-1] // 8) * 8 + 8
        return F.pad(logits, (0, width - logits.shape[-1]), value=torch.nan)[..., : logits.shape[-1]]
    if layout == "misaligned":
        flat = torch.full((logits.numel() + 1,), torch.nan, dtype=logits.dtype, device=logits.device)
        flat[1:] = logits.flatten()
        return flat[1:].view(logits.shape)
    if layout == "classes apart":
        both = torch.stack([logits, torch.full_like(logits, torch.nan)], -1)
        return both[..., 0]
    if layout == "rows reversed in memory":
        return logits.transpose(-1, -2).contiguous().transpose(-1, -2)
    return logits


def problem(C, M, dtype=torch.float32, teacher_dtype=None, N=None, seed=0, scale=3.0):
    """Logits of which some teachers are right and some wrong, and labels of which one row is ignored."""
    generator = torch.Generator().manual_seed(seed + C)
    N = N or (6 if C < 2000 else 3)
    student = torch.randn(N, C, generator=generator) * scale
    teacher = torch.randn(M, N, C, generator=generator) * scale
    labels = torch.randint(0, C, (N,), generator=generator)
    for row in range(N):
        teacher[: row % (M + 1), row, labels[row]] = 4 * scale
    labels[1] = -100
    return student.to(DEVICE, dtype), teacher.to(DEVICE, teacher_dtype or dtype), labels.to(DEVICE)


def loss_and_gradient(student, teacher, labels, upstream=1.0, **options):
    student = student.detach().requires_grad_()
    loss = kd_loss(student, teacher, labels, **options)
    loss.total.backward(torch.full_like(loss.total, upstream))
    return loss, student.grad


def check(student, teacher, labels, **options):
    """Kernel against float64; in half types it may be as far off as PyTorch in the same dtype, and 1e-5 more."""
    came, gradient = loss_and_gradient(student, teacher, labels, impl="triton", **options)
    double = [logits.double() for logits in teacher] if teacher is not None else None
    expected, exact = loss_and_gradient(student.double(), double, labels, impl="torch", **options)
    _, own = loss_and_gradient(student, teacher, labels, impl="torch", **options)
    assert gradient.dtype == student.dtype and gradient.shape == student.shape
    for name, one, other in zip(came._fields, came, expected, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(
            one.double(), other, rtol=2e-5, atol=2e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
    if exact.numel():
        size = exact.abs().max()
        # The interpreter cuts bf16 off where a GPU rounds it: a whole last place instead of half of one.
        cut_off = 2**-7 * size if INTERPRETED and student.dtype == torch.bfloat16 else 0
        allowed = (own - exact).abs().max() + cut_off + 1e-5 * size + 1e-7
        error = (gradient - exact).abs().max()
        assert error <= allowed, f"gradient off by {error:.2g}, allowed {allowed:.2g}, size {size:.2g}"
    return came, gradient


@kernel
@pytest.mark.parametrize("case", covering_cases(FACTORS), ids=lambda case: "-".join(map(str, case.values())))
def test_grid_against_float64(case):
    student, teacher, labels = problem(case["C"], case["M"], case["dtype"], case["teacher_dtype"])
    N, C = student.shape
    generator = torch.Generator().manual_seed(7)
    options = {name: case[name] for name in ("temperature", "weight", "reduction", "kl_scale")}
    if case["lengths"]:
        lengths = torch.maximum(torch.randint(1, C + 1, (N,), generator=generator), labels.cpu() + 1)
        options["lengths"] = lengths.to(DEVICE)
    if case["row_weight"]:
        options["row_weight"] = torch.rand(N, generator=generator).to(DEVICE)
    if case["mixing"] == "weights":
        options["teacher_weights"] = torch.rand(case["M"], N, generator=generator).to(DEVICE)
    else:
        options["wrong_scale"] = case["mixing"] if case["M"] > 1 or case["mixing"] != 1.0 else None
    student, teacher = lay_out(student, case["layout"]), lay_out(teacher, case["layout"])
    check(student, list(teacher) if case["layout"] == "list" else teacher, labels, **options)


def test_the_grid_covers_every_pair():
    met = set()
    for case in covering_cases(FACTORS):
        met |= set(itertools.combinations([(name, str(value)) for name, value in case.items()], 2))
    for one, two in itertools.combinations(FACTORS, 2):
        for a, b in itertools.product(FACTORS[one], FACTORS[two]):
            assert ((one, str(a)), (two, str(b))) in met


# ---- rows that break kernels

SETTINGS = dict(temperature=2.0, weight=0.5)
REGIMES = [3, 40, 1500, LONG]  # one class count for each regime


@kernel
@pytest.mark.parametrize("C", REGIMES)
@pytest.mark.parametrize("scale", [1e4, 1e-4])
def test_huge_and_tiny_logits(C, scale):
    student, teacher, labels = problem(C, 1, seed=3)
    student, teacher = (logits / logits.abs().max() * scale for logits in (student, teacher))
    check(student, teacher, labels, temperature=5.0, weight=0.9)


@kernel
@pytest.mark.parametrize("C", REGIMES)
def test_equal_classes_and_equal_models(C):
    student, teacher, labels = problem(C, 2)
    zeros = torch.zeros_like(student)
    check(zeros, teacher * 0, labels, wrong_scale=0.75, **SETTINGS)
    loss, gradient = check(student, student[None], labels, temperature=2.0, weight=1.0)
    assert loss.soft.abs().max() < 1e-5 and gradient.abs().max() < 1e-6


@kernel
@pytest.mark.parametrize("C", REGIMES)
def test_teachers_wrong_and_right(C):
    student, teacher, labels = problem(C, 3, N=6)
    labels = labels.clamp(min=0)
    # Mild enough that a wrong weight shows in the loss: no softmax is one-hot here.
    mild = dict(temperature=8.0, weight=0.5, wrong_scale=0.75)
    for row in range(4):  # so many teachers are right; the others favour the next class
        favourite = torch.stack([labels[row] if m < row else (labels[row] + 1) % C for m in range(3)])
        teacher[range(3), row, favourite] = 16.0
    for row, label in ((4, 0), (5, 1)):  # of equal logits the first is the answer: the tied teacher is right once
        teacher[0, row, :2] = teacher[1:, row, label] = 16.0
        labels[row] = label
    check(student, teacher, labels, **mild)


@kernel
@pytest.mark.parametrize("C", REGIMES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_all_rows_ignored_and_no_rows(C, reduction):
    student, teacher, labels = problem(C, 2)
    student[0], teacher[:, 1] = torch.nan, torch.inf
    loss, gradient = loss_and_gradient(
        student,
        teacher,
        torch.full_like(labels, -100),
        reduction=reduction,
        wrong_scale=0.75,
        impl="triton",
        **SETTINGS,
    )
    assert all(part.eq(0).all() for part in (*loss, gradient))
    check(student[:0], teacher[:, :0], labels[:0], reduction=reduction, wrong_scale=0.75, **SETTINGS)


@kernel
@pytest.mark.parametrize("C", REGIMES)
def test_what_lies_behind_a_length_is_not_read(C):
    student, teacher, labels = problem(C, 2)
    lengths = torch.tensor([1, C, 2, C - 1, C // 2 + 1, 3][: len(labels)], device=DEVICE)
    labels = torch.minimum(labels, lengths - 1)
    behind = torch.arange(C, device=DEVICE) >= lengths[:, None]
    for fill in (-torch.inf, torch.nan):
        _, gradient = check(
            student.masked_fill(behind, fill), teacher.masked_fill(behind, fill), labels,
            lengths=lengths, wrong_scale=0.75, **SETTINGS,
        )  # fmt: skip
        assert gradient[behind].eq(0).all()


@kernel
@pytest.mark.parametrize("C", REGIMES)
def test_classes_that_teacher_and_student_rule_out(C):
    student, teacher, labels = problem(C, 2)
    student[:, C // 2 + 1 :], teacher[:, :, C // 2 + 1 :] = -torch.inf, -torch.inf
    labels = labels.clamp(max=C // 2)
    _, gradient = check(student, teacher, labels, **SETTINGS)
    assert gradient.isfinite().all()
    teacher[:, :, 0] = -torch.inf  # a share of 0 where the student has one
    check(student, teacher, labels, **SETTINGS)


@kernel
@pytest.mark.parametrize("C", [3, 40, LONG])
def test_a_student_that_rules_out_what_the_teacher_wants_has_an_infinite_loss(C):
    student, teacher, labels = problem(C, 1)
    student[0, C // 2 :] = -torch.inf
    loss = kd_loss(student, teacher, labels, reduction="none", impl="triton", **SETTINGS)
    assert loss.soft[0] == torch.inf and loss.soft[1:].isfinite().all()
    no_weight = torch.tensor([0.0, *[1.0] * (len(labels) - 1)], device=DEVICE)
    check(student, teacher, labels.clamp(max=0), row_weight=no_weight, **SETTINGS)


@kernel
def test_a_label_outside_the_classes_is_not_a_number():
    """Where labels cannot be looked at without waiting for the device, the loss says that one was wrong."""
    student, teacher, labels = problem(40, 1)
    forward = torch.ops.road_kernels.kd_forward
    for wrong in (40, -1, 2**40):
        labels[0] = wrong
        total, hard, *_ = forward(student, [teacher[0]], labels, None, None, None, 2.0, 0.5, 0.5, None, -100, "none")
        assert hard[0].isnan() and total[0].isnan() and total[1:].isfinite().all()


@kernel
@pytest.mark.parametrize("C", REGIMES)
def test_parts_without_teacher_or_labels(C):
    student, teacher, labels = problem(C, 1)
    check(student, None, labels, temperature=3.0, weight=0)
    check(student, teacher, None, temperature=3.0, weight=1)


@kernel
def test_many_small_rows_are_reduced_in_one_program_and_in_many():
    for N in (300, plan.SINGLE_PROGRAM_ROWS + 1):
        student, teacher, labels = problem(3, 2, N=N)
        check(student, teacher, labels, wrong_scale=0.75, row_weight=torch.rand(N, device=DEVICE), **SETTINGS)


# ---- fp16 under a loss scale


@kernel
def test_fp16_gradient_under_loss_scale_and_mean_over_a_large_batch():
    """Loss scale 2^16 and a mean over 2,048 rows x 30,522 classes, on 4 of the rows with the same factor on each row."""
    rows, classes = 4, 30522
    student, teacher, labels = problem(classes, 1, torch.float16, N=rows)
    upstream = 2.0**16 * rows / 2048  # times the mean's 1 / 4 is what a row of the full batch gets
    options = dict(temperature=5.0, weight=0.9)
    labels = labels.clamp(min=0)
    _, gradient = loss_and_gradient(student, teacher, labels, upstream, impl="triton", **options)
    _, own = loss_and_gradient(student, teacher, labels, upstream, impl="torch", **options)
    _, exact = loss_and_gradient(student.double(), teacher.double(), labels, upstream, impl="torch", **options)
    assert (gradient - exact).norm() / exact.norm() < 1e-3
    zeros, own_zeros = (((g == 0) & (exact != 0)).sum() for g in (gradient, own))
    assert zeros <= own_zeros + 5 and zeros < 0.02 * exact.numel()
    _, unscaled = loss_and_gradient(student, teacher, labels, upstream / 2**16, impl="triton", **options)
    assert (unscaled == 0).sum() > 0.2 * exact.numel()  # the test would see a gradient rounded before it is scaled


# ---- properties

property_test = settings(
    max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
)
drawn = given(
    C=st.sampled_from([1, 2, 3, 7, 32, 33, 65, 513, 1025]),
    seed=st.integers(0, 10**6),
    temperature=st.sampled_from([0.7, 1.0, 2.0, 3.3, 8.0]),
    weight=st.floats(0, 1),
)


@kernel
@property_test
@drawn
def test_adding_a_constant_to_all_logits_changes_nothing(C, seed, temperature, weight):
    student, teacher, labels = problem(C, 2, seed=seed, N=3)
    one, g = loss_and_gradient(student, teacher, labels, temperature=temperature, weight=weight, impl="triton")
    two, h = loss_and_gradient(student + 8, teacher - 16, labels, temperature=temperature, weight=weight, impl="triton")
    torch.testing.assert_close(one.total, two.total, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(g, h, rtol=1e-3, atol=1e-4)


@kernel
@property_test
@drawn
def test_permuting_the_classes_permutes_the_gradient(C, seed, temperature, weight):
    student, teacher, labels = problem(C, 2, seed=seed, N=3)
    order = torch.randperm(C, generator=torch.Generator().manual_seed(seed)).to(DEVICE)
    moved = torch.where(labels < 0, labels, order.argsort()[labels.clamp(min=0)])
    options = dict(temperature=temperature, weight=weight, wrong_scale=0.75, impl="triton")
    one, g = loss_and_gradient(student, teacher, labels, **options)
    two, h = loss_and_gradient(student[:, order], teacher[:, :, order], moved, **options)
    torch.testing.assert_close(one.total, two.total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(g[:, order], h, rtol=1e-3, atol=1e-5)


@kernel
@property_test
@drawn
def test_a_rows_gradient_sums_to_zero_and_its_total_is_the_sum_of_its_parts(C, seed, temperature, weight):
    student, teacher, labels = problem(C, 3, seed=seed, N=3)
    options = dict(temperature=temperature, weight=weight, reduction="none", impl="triton")
    loss, gradient = loss_and_gradient(student, teacher, labels, **options)
    assert gradient.sum(1).abs().max() < 1e-5 * (1 + temperature)
    parts = (1 - weight) * loss.hard + weight * kl_factor("t2", temperature) * loss.soft
    torch.testing.assert_close(loss.total, parts)
    assert loss.soft.min() > -1e-5


# ---- operators


@kernel
@pytest.mark.parametrize(
    ("C", "reduction"), [(3, "mean"), (33, "none"), (40, "mean")]
)  # 33: padded rows, also in the fake; 40: reduced by a kernel of its own
def test_operators_keep_their_contract(C, reduction):
    student, teacher, labels = problem(C, 2, N=2)
    student.requires_grad_()
    given = (student, list(teacher), labels, None, None, None, 2.0, 0.5, 2.0, 0.75, -100, reduction)
    torch.library.opcheck(torch.ops.road_kernels.kd_forward.default, given)
    student = student.detach()
    total, _, _, *saved = torch.ops.road_kernels.kd_forward(student, *given[1:])
    backward = (total, *saved, student, *given[1:])
    checks = ("test_schema", "test_faketensor")  # it has no gradient of its own
    torch.library.opcheck(torch.ops.road_kernels.kd_backward.default, backward, test_utils=checks)


@kernel
def test_under_torch_compile():
    student, teacher, labels = problem(40, 2)

    def step(student, teacher, labels):
        return kd_loss(student * 1.5, teacher, labels, wrong_scale=0.75, impl="triton", **SETTINGS).total * 2

    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        leaf = student.clone().requires_grad_()
        total = run(leaf, teacher, labels)
        total.backward()
        results.append((total.detach(), leaf.grad))
    torch.testing.assert_close(results[0], results[1])


# ---- only on a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("C", REGIMES)
def test_no_synchronisation_and_a_cuda_graph(C):
    student, teacher, labels = (tensor.cuda() for tensor in problem(C, 2))
    student.requires_grad_()
    options = dict(wrong_scale=0.75, lengths=torch.full_like(labels, C), **SETTINGS)

    def step():
        loss = kd_loss(student, teacher, labels, **options)
        return loss.total, torch.autograd.grad(loss.total, student)[0]

    # A first step's graph that lives on would keep its node of the student's gradient, on a stream that no capture may join.
    expected = tuple(part.detach().clone() for part in step())
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for tensor in captured:
        tensor.zero_()
    graph.replay()
    torch.cuda.synchronize()
    torch.testing.assert_close(captured, expected)
