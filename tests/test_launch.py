"""What is launched: which kernels, which tiles, and no word from the device to the host. Nothing runs here."""

import ast
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from road_kernels import arguments, combine_teachers, kd_loss, launch, plan
from road_kernels.problem import Problem
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

SETTINGS = dict(temperature=2.0, weight=0.5)
REGIMES = [3, 40, 1500, 8200]  # one class count for each regime


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
    problem = Problem(student, list(teacher), labels, lengths, None, row_weight, 2.0, 0.5, 2.0, 0.75, -100, "mean")
    with torch.no_grad(), NoWordToTheHost() as seen:
        total, _, _, saved = forward(problem)
        backward(problem, saved, total)
    assert launches[-1] == "gradient_kernel"
    assert seen.names <= {"empty", "new_empty", "slice", "alias"}  # anything else would be a launch that nobody counted
    with pytest.raises(AssertionError, match="wait for the device"), NoWordToTheHost():
        total.item()


@pytest.mark.parametrize("C", REGIMES)
def test_around_the_launches_nothing_is_launched(C, launches, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(arguments, "INTERPRETING", True)
    monkeypatch.setattr(arguments, "check_values", lambda *ranges: None)  # what looks into CPU tensors only
    student, teacher, labels, lengths, row_weight = every_option(C)
    with NoWordToTheHost() as seen:
        options = dict(lengths=lengths, row_weight=row_weight, wrong_scale=0.75, impl="triton", **SETTINGS)
        torch.autograd.grad(kd_loss(student, teacher, labels, **options).total, student)
    # ones_like is autograd's own start
    assert seen.names <= {"unbind", "detach", "ones_like", "empty", "new_empty", "slice", "alias"}


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
        (64, 384, ["stream_kernel", "reduce_kernel", "gradient_kernel"]),
        (4, 30522, ["stream_kernel", "reduce_kernel", "gradient_kernel"]),
    ],
)
def test_number_of_launches(N, C, expected, launches, monkeypatch):
    pytest.importorskip("triton")
    monkeypatch.setattr(arguments, "INTERPRETING", True)
    student, teacher, labels, _, _ = every_option(C, N)
    kd_loss(student, teacher, labels, wrong_scale=0.75, impl="triton", **SETTINGS).total.backward()
    assert launches == expected


@pytest.mark.parametrize("vec", [1, 2, 4, 8])
@pytest.mark.parametrize("teachers", [0, 1, 3, 8])
def test_regimes(teachers, vec):
    each = plan.classes_per_thread(teachers, vec)
    cpu = torch.device("cpu")
    for C in (1, 2, 3, 5, 31, 32, 33, 64, 384, 512, 1000, 1024, 4096, 8192, 30522, 128256):
        tile = plan.row_tile(C, teachers, vec)
        if C <= plan.LARGEST_SMALL:
            assert tile.classes >= C and tile.rows * tile.classes <= 32 * each * tile.warps
        assert plan.gradient_tile(C, teachers, vec, cpu).warps <= 4
        for stream in (plan.stream_tile(C, teachers, vec, cpu), plan.combine_tile(C, teachers, vec, cpu)):
            assert stream.rows * stream.lanes == 32 * stream.warps <= 32 * plan.MOST_WARPS
            assert stream.groups * vec == max(vec, each)
    assert plan.stream_tile(512, 1, 8, cpu) == plan.Stream(2, 4, 32, 4)
    assert plan.stream_tile(30522, 1, 8, cpu) == plan.Stream(2, 1, 256, 8)
    assert plan.combine_tile(30522, 3, 8, cpu) == plan.Stream(2, 1, 512, 16)


def test_vector_width_follows_the_memory():
    rows = plan.layout(torch.zeros(4, 64, dtype=torch.float16))
    floats = plan.layout(torch.zeros(4, 64))
    assert plan.vector_width(rows) == 8 and plan.vector_width(floats) == 4
    assert plan.vector_width(rows, floats) == 4
    for apart in (torch.zeros(4, 64)[:, 1:], torch.zeros(4, 64)[:, ::2]):
        assert plan.vector_width(plan.layout(apart)) == 1 and not plan.shifted(plan.layout(apart))
    dense = torch.zeros(4, 30522, dtype=torch.float16)
    assert plan.vector_width(plan.layout(dense)) == 2
    assert plan.vector_width(plan.layout(plan.padded_logits(dense))) == 8


def test_rows_are_shifted_where_all_start_equally_far_from_a_boundary():
    dense, padded = (
        plan.layout(logits) for logits in (torch.zeros(4, 30522), plan.padded(4, 30522, torch.float32, "cpu"))
    )
    half = plan.layout(torch.zeros(4, 30522, dtype=torch.float16))
    assert plan.shifted(dense) and plan.shifted(dense, half) and not plan.shifted(padded)
    assert not plan.shifted(dense, padded)


# ---- kept launches, on a driver for a GPU that is absent: Triton compiles, and what would be started is written down


class Started(NamedTuple):
    """What a launcher was called with; `launcher` is one for each compiled kernel."""

    launcher: object
    grid: tuple
    args: tuple


class AbsentGPU:
    """As much of a driver as a launch needs. The index is one that no GPU of this machine has."""

    def __init__(self, index):
        self.started, self.index = [], index
        self.utils = SimpleNamespace(
            load_binary=lambda *_: (1, 1, 32, 0, 1024), get_device_properties=lambda _: {"max_shared_mem": 2**17}
        )

    def get_current_device(self):
        return self.index

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def launcher_cls(self, source, metadata):
        def launcher(*call):
            self.started.append(Started(launcher, call[:3], call[-len(source.fn.arg_names) :]))

        return launcher


def clear_kept():
    from road_kernels.backward import gradient_launch
    from road_kernels.forward import launches
    from road_kernels.mixture import combination

    for kept in (launches, gradient_launch, combination):
        kept.cache_clear()


@pytest.fixture
def absent_gpu(monkeypatch):
    pytest.importorskip("triton")
    from triton.runtime import driver

    gpu = AbsentGPU(index=999)
    # Triton 3.4 has no property there
    monkeypatch.setattr(driver, "_active" if hasattr(driver, "_active") else "active", gpu)
    monkeypatch.setattr(arguments, "INTERPRETING", True)
    monkeypatch.setattr(arguments, "check_values", lambda *ranges: None)  # what looks into CPU tensors only
    clear_kept()
    yield gpu
    clear_kept()


def work(student, teacher, labels, **options):
    options = {**SETTINGS, **options}
    kd_loss(student, teacher, labels, impl="triton", **options).total.sum().backward()
    combine_teachers(teacher, labels, wrong_scale=options.get("wrong_scale"), impl="triton")


def off(shape, dtype=torch.float16):
    """Zeros that start one value behind a 16-byte boundary."""
    flat = torch.zeros(shape[0] * shape[1] + 1, dtype=dtype)
    return flat[1:].view(shape)


def test_a_kept_launch_says_what_triton_would_say(absent_gpu):
    student, teacher, labels, _, row_weight = every_option(40)
    for _ in range(2):
        work(student, teacher, labels, row_weight=row_weight, wrong_scale=0.75)
    half = len(absent_gpu.started) // 2
    assert half == 4  # stream, reduce, gradient, combine

    def told(call):
        # Only what a call makes for itself is somewhere else in the next.
        return [tuple(one.shape) if isinstance(one, torch.Tensor) else one for one in call.args]

    for first, second in zip(absent_gpu.started[:half], absent_gpu.started[half:], strict=True):
        assert second.launcher is first.launcher and second.grid == first.grid
        assert [told_by for told_by in map(repr, told(second))] == [told_by for told_by in map(repr, told(first))]


def test_what_triton_compiles_for_is_not_mixed_up(absent_gpu):
    """Each problem, as it comes after all the others, gets the kernels that it gets with nothing kept."""
    student, teacher, labels, _, _ = every_option(40)
    half = student.detach().half()
    problems = [
        (student, teacher, labels, {}),
        (student, teacher, labels, {"ignore_index": 1}),
        (student, teacher, labels, {"temperature": 2.5}),
        (half, teacher, labels, {}),
        (off((6, 40)), teacher, labels, {}),
        (half, teacher, labels.int(), {}),
        (half, torch.zeros(6, 80)[:, ::2], labels, {}),
        (half, teacher, labels, {"row_weight": off((1, 6), torch.float32)[0]}),
        (half, teacher, labels, {"reduction": "sum"}),
        (torch.zeros(6, 48).half(), torch.zeros(2, 6, 48), labels, {}),
    ]

    def kernels(problem, forget):
        if forget:
            clear_kept()
        begin = len(absent_gpu.started)
        logits, teachers, rows, options = problem
        work(logits.detach().requires_grad_(), teachers, rows, **options)
        return [call.launcher for call in absent_gpu.started[begin:]]

    for _ in range(2):
        kept = [kernels(problem, forget=False) for problem in problems]
    assert kept == [kernels(problem, forget=True) for problem in problems]
    assert len({tuple(map(id, some)) for some in kept}) > 7, "most of them need other kernels"


def test_what_a_loss_costs_the_host(absent_gpu):
    """Calls of Python functions, which the same work has on every machine: 117 when this was written, 210 without kept launches."""
    student, teacher, labels, _, _ = every_option(40)
    calls = []

    def count(frame, event, function):
        if event == "call":
            calls.append(frame.f_code.co_name)

    loss = lambda: kd_loss(student, teacher, labels, impl="triton", **SETTINGS).total.backward()  # noqa: E731
    loss()
    sys.setprofile(count)
    try:
        loss()
    finally:
        sys.setprofile(None)
    assert "dynamic_func" not in calls, "Triton has looked at every argument again"
    assert len(calls) <= 122, sorted(calls)
