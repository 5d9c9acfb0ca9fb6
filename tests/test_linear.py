"""linear_kd_loss: against the same loss on logits that are stored whole.

Kernel tests run in Triton's interpreter (started by test_interpreter.py) or on a GPU (pytest -m gpu).
"""

import os

import pytest
import torch
import torch.nn.functional as F
from road_kernels import arguments, kd_loss, launch, linear_kd_loss
from torch.utils._python_dispatch import TorchDispatchMode

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
kernel = pytest.mark.filterwarnings("ignore") if INTERPRETED else pytest.mark.gpu

N, C, WIDTH = 11, 53, 8


def head(seed=0, width=WIDTH, dtype=torch.float64, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    sizes = (N, width), (C, width), (C,)
    return [torch.randn(*size, generator=generator, dtype=torch.float64).to(device, dtype) for size in sizes]


def labels_for(device="cpu"):
    labels = torch.arange(N, device=device) * 5 % C
    labels[4] = -100
    return labels


def gradients(total, parameters):
    return torch.autograd.grad(total.sum(), parameters)


def options_for(case, device="cpu"):
    rows = torch.linspace(0, 1, N, device=device)
    return {
        "plain": {},
        "sum": {"reduction": "sum", "row_weight": rows},
        "none": {"reduction": "none"},
        "row weights": {"row_weight": rows, "kl_scale": 1},
        "wrong teachers": {"wrong_scale": 0.75, "lengths": torch.full((N,), C - 2, device=device)},
        "teacher weights": {"teacher_weights": torch.stack([rows, 2 - rows])},
    }[case]


@pytest.mark.parametrize("chunk_rows", [1, 4, 11, 64, None])
@pytest.mark.parametrize("case", ["plain", "sum", "none", "row weights", "wrong teachers", "teacher weights"])
def test_it_is_the_loss_of_the_whole_logits(case, chunk_rows):
    parameters = [tensor.requires_grad_() for tensor in head()]
    hidden, weight, bias = parameters
    heads = [head(1, 6), head(2, 6)]
    labels = labels_for()
    given = dict(temperature=2.0, weight=0.7, **options_for(case))
    whole = kd_loss(F.linear(hidden, weight, bias), [F.linear(*one) for one in heads], labels, **given)
    states, weights, biases = zip(*heads, strict=True)
    chunked = linear_kd_loss(
        hidden, weight, labels, bias=bias, chunk_rows=chunk_rows,
        teacher_hidden=states, teacher_head_weight=weights, teacher_bias=biases, **given,
    )  # fmt: skip
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(gradients(chunked.total, parameters), gradients(whole.total, parameters))
    from_logits = linear_kd_loss(
        hidden, weight, labels, bias=bias, teacher=[F.linear(*one) for one in heads], chunk_rows=chunk_rows, **given
    )
    torch.testing.assert_close(from_logits, whole)


class LargestTensor(TorchDispatchMode):
    """Remembers how many rows the largest tensor of logits had."""

    rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.dim() == 2 and out.shape[1] == C:
            self.rows = max(self.rows, out.shape[0])
        return out


@pytest.mark.parametrize("chunk_rows", [4, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_visitor_sees_each_chunk_of_logits_once(chunk_rows, dtype):
    """In the forward pass, also where the backward pass computes chunks again (float16); without a graph."""
    hidden, weight, bias = (tensor.requires_grad_() for tensor in head(dtype=dtype))
    seen = []
    found = linear_kd_loss(
        hidden, weight, labels_for(), bias=bias, temperature=1.0, weight=0.0, chunk_rows=chunk_rows, reduction="sum",
        visit=lambda rows, logits: seen.append((rows, logits.clone())),
    )  # fmt: skip
    gradients(found.total, [hidden, weight, bias])
    assert len(seen) == (3 if chunk_rows == 4 else 1) and not any(logits.requires_grad for _, logits in seen)
    whole = F.linear(hidden, weight, bias)
    for rows, logits in seen:
        torch.testing.assert_close(logits, whole[rows].detach())


def test_logits_are_never_stored_whole():
    hidden, weight, bias = (tensor.requires_grad_() for tensor in head(width=2))
    with LargestTensor() as largest:
        loss = linear_kd_loss(hidden, weight, labels_for(), bias=bias, temperature=1.0, weight=0.0, chunk_rows=3)
        loss.total.backward()
    assert largest.rows == 3


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("chunk_rows", [4, None])
def test_a_kept_graph_gives_the_same_gradient_twice(chunk_rows, reduction):
    parameters = [tensor.requires_grad_() for tensor in head()]
    hidden, weight, bias = parameters
    total = linear_kd_loss(
        hidden, weight, labels_for(), bias=bias, temperature=1.0, weight=0.0, chunk_rows=chunk_rows, reduction=reduction
    ).total.sum()
    first = torch.autograd.grad(total, parameters, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, parameters), first)


class Operations(TorchDispatchMode):
    """The names of all operations that would be a launch on a device."""

    VIEWS = (
        "slice",
        "t",
        "transpose",
        "unbind",
        "expand",
        "detach",
        "alias",
        "select",
        "view",
        "empty",
        "new_empty",
        "empty_like",
    )

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name not in self.VIEWS:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "chunk_rows", "reduction", "products"),
    [
        (torch.float16, None, "mean", 3),
        (torch.bfloat16, None, "none", 3),
        (torch.bfloat16, 4, "mean", 9),
        (torch.float32, 4, "sum", 9),
        (torch.float16, 4, "mean", 12),  # the loss scale is not known when the loss is computed
        (torch.bfloat16, 4, "none", 12),  # nor is what each row's loss will be multiplied by
    ],
)
def test_products_and_launches(dtype, chunk_rows, reduction, products, monkeypatch):
    pytest.importorskip("triton")
    launches = []
    monkeypatch.setattr(launch, "start", lambda kernel, *rest, **options: launches.append(kernel.fn.__name__))
    monkeypatch.setattr(arguments, "INTERPRETING", True)
    monkeypatch.setattr(arguments, "check_values", lambda *ranges: None)  # what looks into CPU tensors only
    hidden, weight, _ = (tensor.requires_grad_() for tensor in head(dtype=dtype))
    teacher, labels = torch.zeros(N, C, dtype=dtype), labels_for()
    upstream = torch.ones(N if reduction == "none" else ())
    with Operations() as seen:
        loss = linear_kd_loss(
            hidden, weight, labels, teacher=teacher, temperature=2.0, weight=0.7, chunk_rows=chunk_rows, reduction=reduction,
            impl="triton",
        )  # fmt: skip
        torch.autograd.grad(loss.total, [hidden, weight], upstream)
    assert sum(name in ("mm", "addmm_") for name in seen.names) == products
    if chunk_rows is None:
        expected = (
            ["stream_kernel", "gradient_kernel"]
            if reduction == "none"
            else ["stream_kernel", "reduce_kernel", "gradient_kernel"]
        )
        assert launches == expected and set(seen.names) == {"mm"}


@pytest.mark.parametrize(("chunk_rows", "pieces"), [(4, 3), (None, 1)])
def test_without_kernels_a_chunks_loss_and_gradient_are_one_pass(chunk_rows, pieces):
    hidden, weight, _ = (tensor.requires_grad_() for tensor in head(dtype=torch.float32))
    with Operations() as seen:
        loss = linear_kd_loss(hidden, weight, labels_for(), temperature=1.0, weight=0.0, chunk_rows=chunk_rows)
        torch.autograd.grad(loss.total, [hidden, weight])
    assert seen.names.count("_log_softmax") == pieces
    assert sum(name in ("mm", "addmm_") for name in seen.names) == 3 * pieces


def test_no_rows_and_no_teacher():
    hidden, weight, _ = head()
    loss = linear_kd_loss(hidden[:0], weight, labels_for()[:0], temperature=1.0, weight=0.0)
    assert loss.total == 0 and loss.hard.shape == (0,)


def test_bad_input_names_the_argument():
    hidden, weight, bias = head()
    good = dict(hidden=hidden, head_weight=weight, labels=labels_for(), temperature=2.0, weight=0.0)
    states, teacher_weight, _ = head(1, 6)
    bad = [
        (dict(hidden=hidden[0]), r"^hidden: got a tensor \[8\]"),
        (dict(head_weight=weight[:, :7]), r"^head_weight: got a tensor \[53, 7\].*\[classes, 8\]"),
        (dict(head_weight=weight.float()), r"^head_weight: got torch.float32; .*torch.float64"),
        (dict(bias=bias[:5]), r"^bias: got a tensor \[5\].*\[53\]"),
        (dict(labels=labels_for()[:4]), r"^labels: got a tensor \[4\].*\[11\]"),
        (dict(labels=labels_for() + 40), r"^labels: got .*0 \.\.\. 52"),
        (dict(row_weight=torch.ones(3)), r"^row_weight: "),
        (dict(lengths=torch.ones(3).long()), r"^lengths: "),
        (dict(teacher=torch.zeros(3, C)), r"^teacher\[0\]: got a tensor \[3, 53\]"),
        (dict(teacher_head_weight=teacher_weight), r"^teacher_head_weight: .*together with teacher_hidden"),
        (dict(teacher_hidden=states), r"^teacher_head_weight: got 0 for 1"),
        (dict(teacher_hidden=states[:3], teacher_head_weight=teacher_weight), r"^teacher_hidden: got 3 rows"),
        (
            dict(teacher=torch.zeros(N, C), teacher_hidden=states, teacher_head_weight=teacher_weight),
            r"^teacher_hidden: got both",
        ),
        (dict(chunk_rows=0), r"^chunk_rows: got 0"),
        (dict(temperature=0), r"^temperature: got 0"),
        (dict(weight=0.5), r"^weight: got 0.5 without a teacher"),
        (dict(reduction="batchmean"), r"^reduction: "),
    ]
    linear_kd_loss(**good)
    for change, message in bad:
        with pytest.raises(ValueError, match=message):
            linear_kd_loss(**{**good, **change})


@kernel
@pytest.mark.parametrize("chunk_rows", [4, None])
@pytest.mark.parametrize("case", ["plain", "row weights", "teacher weights", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_kernel_against_float64(dtype, case, chunk_rows):
    """As close as PyTorch on whole logits in the same dtype, within the rounding of one more sum per chunk."""
    parameters = [tensor.requires_grad_() for tensor in head(dtype=dtype, device=DEVICE)]
    teacher = torch.stack([F.linear(*head(seed, 6, dtype, DEVICE)) for seed in (1, 2)])
    labels = labels_for(DEVICE)
    given = dict(temperature=2.0, weight=0.7, **options_for(case, DEVICE))
    hidden, weight, bias = parameters
    loss = linear_kd_loss(
        hidden, weight, labels, bias=bias, teacher=teacher, chunk_rows=chunk_rows, impl="triton", **given
    )
    came = gradients(loss.total, parameters)
    double = [parameter.detach().double().requires_grad_() for parameter in parameters]
    exact_loss = kd_loss(F.linear(*double), teacher.double(), labels, **given)
    exact = gradients(exact_loss.total, double)
    own = gradients(kd_loss(F.linear(*parameters), teacher, labels, impl="torch", **given).total, parameters)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.total.double(), exact_loss.total, rtol=4 * step, atol=1e-5)
    for one, other, reference in zip(came, own, exact, strict=True):
        size = reference.abs().max()
        assert (one - reference).abs().max() <= 2 * (other - reference).abs().max() + 2 * step * size + 1e-5 * size


@kernel
def test_under_torch_compile():
    parameters = [tensor.requires_grad_() for tensor in head(dtype=torch.float32, device=DEVICE)]
    states, teacher_weight, _ = head(1, 6, torch.float32, DEVICE)
    labels = labels_for(DEVICE)

    def step(hidden, weight, bias):
        return linear_kd_loss(
            hidden, weight, labels, bias=bias, teacher_hidden=states, teacher_head_weight=teacher_weight, temperature=2.0,
            weight=0.7, impl="triton",
        ).total  # fmt: skip

    results = []
    for run in (step, torch.compile(step, backend="aot_eager", fullgraph=True)):
        total = run(*parameters)
        results.append((total.detach(), *gradients(total, parameters)))
    torch.testing.assert_close(results[0], results[1])
