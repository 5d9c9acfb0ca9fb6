"""What is launched: which kernels, which tiles, and no word from the device to the host. Nothing runs here."""

import ast
import sys
from pathlib import Path

import pytest
import torch
from road_kernels import arguments, kd_loss, launch, plan
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
        if plan.fits_registers(C, teachers, vec):
            assert tile.classes >= C and tile.rows * tile.classes <= 32 * each * tile.warps and tile.warps <= 16
        assert plan.gradient_tile(C, teachers, vec, cpu).warps <= 4
        stream = plan.stream_tile(C, teachers, vec, cpu)
        assert stream.rows * stream.lanes == 32 * stream.warps
        assert stream.groups * vec == max(vec, each)
    assert plan.stream_tile(512, 1, 8, cpu) == plan.Stream(2, 4, 32, 4)
    assert plan.stream_tile(30522, 1, 8, cpu) == plan.Stream(2, 1, 256, 8)
    assert plan.fits_registers(8192, 3, 8) and not plan.fits_registers(8193, 1, 8)
    assert plan.chunk_tile(1, 8) == plan.Tile(1, 4096, 8)


def test_vector_width_follows_the_memory():
    rows = torch.zeros(4, 64, dtype=torch.float16)
    assert plan.vector_width(rows) == 8 and plan.vector_width(rows.float()) == 4
    assert plan.vector_width(rows, rows.float()) == 4
    assert plan.vector_width(rows[:, 1:]) == 1 and plan.vector_width(rows[:, ::2]) == 1
    assert plan.vector_width(torch.zeros(4, 30522, dtype=torch.float16)) == 2
    assert plan.vector_width(plan.padded_logits(torch.zeros(4, 30522, dtype=torch.float16))) == 8
