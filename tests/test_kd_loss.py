"""kd_loss: the kernels against the definition in float64, loss and gradient, and the door in front of both.

Kernel tests run in Triton's interpreter (started by test_interpreter.py) or on a GPU (pytest -m gpu).
"""

import ast
import itertools
import os
import random
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from road_kernels import arguments, kd_loss, launch, plan
from road_kernels.reference import kl_factor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
kernel = pytest.mark.filterwarnings("ignore") if INTERPRETED else pytest.mark.gpu
DTYPES = [torch.float32, torch.float16, torch.bfloat16]

# ---- the grid: every pair of values of two factors comes up in at least one case

FACTORS = {
    "C": [1, 2, 3, 5, 31, 33, 384, 512, 1000, 4096, 8193, 30522],
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
    N = N or (6 if C < 5000 else 3)
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
REGIMES = [3, 40, 1500, 8200]  # one class count for each regime


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
def test_every_teacher_wrong_or_right(C):
    student, teacher, labels = problem(C, 3)
    labels = labels.clamp(min=0)
    for favourite in ((labels + 1) % C, labels):
        pushed = teacher.scatter(2, favourite.expand(3, -1)[..., None], 50.0)
        check(student, pushed, labels, wrong_scale=0.75, **SETTINGS)
    for label in (0, 1):  # of equal logits the first is the answer: the tied teacher is right once, the others always
        tied = teacher.clone()
        tied[0, :, :2] = 60.0
        tied[1:, :, label] = 60.0
        check(student, tied, torch.full_like(labels, label), wrong_scale=0.75, **SETTINGS)


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
@pytest.mark.parametrize("C", [3, 40, 8200])
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
    max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True, database=None
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


# ---- operators, graphs, launches, no word to the host


@kernel
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("C", [3, 33, 8200])  # 33: the gradient's rows are padded, and the fake one's must be, too
def test_operators_keep_their_contract(C, reduction):
    student, teacher, labels = problem(C, 2)
    student.requires_grad_()
    given = (student, list(teacher), labels, None, None, None, 2.0, 0.5, 2.0, 0.75, -100, reduction)
    torch.library.opcheck(torch.ops.road_kernels.kd_forward.default, given)


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


class NoWordToTheHost(TorchDispatchMode):
    """Fails on an operation that reads a value, or a shape that depends on values, from the device; remembers the others."""

    FORBIDDEN = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.names.add(name)
        assert name not in self.FORBIDDEN, f"{name} makes the host wait for the device"
        return func(*args, **(kwargs or {}))


@pytest.fixture
def launches(monkeypatch):
    """The kernels that would be launched, by name; none is."""
    names = []
    monkeypatch.setattr(launch, "start", lambda kernel, grid, *args, **options: names.append(kernel.fn.__name__))
    return names


def every_option(C, N=6, device="cpu"):
    student = torch.zeros(N, C, device=device, requires_grad=True)
    teacher, labels = torch.zeros(2, N, C, device=device), torch.zeros(N, dtype=torch.int64, device=device)
    lengths, row_weight = torch.ones(N, dtype=torch.int64, device=device), torch.ones(N, device=device)
    return student, teacher, labels, lengths, row_weight


@pytest.mark.parametrize("C", REGIMES)
def test_launch_code_reads_nothing_from_the_device(C, launches):
    """From inside the operators, which a dispatch mode around them cannot see into."""
    pytest.importorskip("triton")
    from road_kernels.backward import backward
    from road_kernels.forward import forward

    student, teacher, labels, lengths, row_weight = every_option(C)
    teacher = list(teacher)
    with torch.no_grad(), NoWordToTheHost() as seen:
        total, _, _, statistics, judged, inverse = forward(
            student, teacher, labels, lengths, None, row_weight, 2.0, 0.5, 2.0, 0.75, -100, "mean"
        )
        backward(total, student, teacher, labels, lengths, judged, row_weight, statistics, inverse, 2.0, 0.5, 2.0, -100)
    assert launches[-1] == "gradient_kernel"
    assert seen.names <= {"empty", "new_empty", "slice", "alias"}  # anything else would be a launch that nobody counted
    with pytest.raises(AssertionError, match="wait for the device"), NoWordToTheHost():
        total.item()


@pytest.mark.parametrize("C", REGIMES)
def test_around_the_operators_nothing_is_launched(C, launches, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(arguments, "INTERPRETING", True)
    monkeypatch.setattr(arguments, "check_values", lambda *ranges: None)  # what looks into CPU tensors only
    student, teacher, labels, lengths, row_weight = every_option(C)
    with NoWordToTheHost() as seen:
        options = dict(lengths=lengths, row_weight=row_weight, wrong_scale=0.75, impl="triton", **SETTINGS)
        torch.autograd.grad(kd_loss(student, teacher, labels, **options).total, student)
    # ones_like is autograd's own start
    assert seen.names <= {"kd_forward", "kd_backward", "unbind", "detach", "ones_like"}


@pytest.mark.parametrize("mixing", ["wrong_scale", "teacher_weights"])
def test_the_door_reads_nothing_from_the_device(mixing):
    """On fake CUDA tensors, which have no values: reading one is an error there."""
    with FakeTensorMode(), torch.no_grad():
        student, teacher, labels, lengths, row_weight = every_option(40, device="cuda")
        mixed = (
            {"wrong_scale": 0.75} if mixing == "wrong_scale" else {"teacher_weights": torch.ones(2, 6, device="cuda")}
        )
        loss = kd_loss(student, teacher, labels, lengths=lengths, row_weight=row_weight, **mixed, **SETTINGS)
        assert loss.total.device.type == "cuda" and loss.hard.shape == (6,)


def test_no_file_of_the_package_asks_for_a_value():
    """Statically: no .item(), .tolist(), .cpu() or bool(tensor) outside the checks of CPU tensors and the guard."""
    package = Path(sys.modules["road_kernels"].__file__).parent
    for path in package.glob("*.py"):
        if path.name == "guard.py":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                assert node.attr not in ("item", "tolist", "cpu", "numpy", "synchronize"), f"{path.name}:{node.lineno}"


@pytest.mark.parametrize(
    ("N", "C", "expected"),
    [
        (128, 3, ["rows_kernel", "gradient_kernel"]),
        (1024, 32, ["rows_kernel", "gradient_kernel"]),
        (64, 384, ["rows_kernel", "reduce_kernel", "gradient_kernel"]),
        (4, 30522, ["judge_kernel", "chunk_kernel", "merge_kernel", "reduce_kernel", "gradient_kernel"]),
    ],
)
def test_number_of_launches(N, C, expected, launches, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(arguments, "INTERPRETING", True)
    student, teacher, labels, _, _ = every_option(C, N)
    kd_loss(student, teacher, labels, wrong_scale=0.75, impl="triton", **SETTINGS).total.backward()
    assert launches == expected


# ---- the door


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


@pytest.mark.parametrize("vec", [1, 2, 4, 8])
@pytest.mark.parametrize("teachers", [0, 1, 3, 8])
def test_regimes(teachers, vec):
    each = plan.classes_per_thread(teachers, vec)
    for C in (1, 2, 3, 5, 31, 32, 33, 64, 384, 512, 1000, 1024, 4096, 8192):
        tile = plan.row_tile(C, teachers, vec)
        if plan.fits_registers(C, teachers, vec):
            assert tile.classes >= C and tile.rows * tile.classes <= 32 * each * tile.warps and tile.warps <= 16
        assert plan.gradient_tile(C, teachers, vec).warps <= 4
    assert plan.fits_registers(8192, 3, 8) and not plan.fits_registers(8193, 1, 8)
    assert plan.chunk_tile(1, 8) == plan.Tile(1, 4096, 8)


def test_vector_width_follows_the_memory():
    rows = torch.zeros(4, 64, dtype=torch.float16)
    assert plan.vector_width(rows) == 8 and plan.vector_width(rows.float()) == 4
    assert plan.vector_width(rows, rows.float()) == 4
    assert plan.vector_width(rows[:, 1:]) == 1 and plan.vector_width(rows[:, ::2]) == 1
    assert plan.vector_width(torch.zeros(4, 30522, dtype=torch.float16)) == 2
    assert plan.vector_width(plan.padded_logits(torch.zeros(4, 30522, dtype=torch.float16))) == 8


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

    expected = step()
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
