"""compile_report: the tightest shapes of each regime compile for absent GPUs without a spill and with 16-byte loads."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"


@pytest.fixture(scope="module")
def report():
    spec = importlib.util.spec_from_file_location("compile_report", BENCHMARKS / "compile_report.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # a NamedTuple looks its module up
    spec.loader.exec_module(module)
    return module


def run(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(BENCHMARKS / "compile_report.py"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_no_spill_and_no_lost_wide_load():
    done = run("--quick", "--check")
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) compiled, 0 with", done.stdout)[1]) >= 57
    for kernel in ("rows", "stream", "reduce", "gradient", "combine_rows", "combine_stream"):
        assert re.search(rf"^{kernel}_kernel .* 70 ", done.stdout, re.M), kernel


def test_a_lost_wide_load_is_a_fault(report):
    """The same launch, compiled as if rows did not start at 16-byte boundaries."""
    recorded = next(one for one in report.record(report.Shape(512, 512)) if one.kernel == "backward.gradient_kernel")
    assert recorded.wide_loads > 0 and recorded.wide_stores > 0
    assert report.compile_launch((recorded, 90))["faults"] == []
    attributes = {path: hints for path, hints in recorded.attributes.items() if path[0] != 1}  # the student's pointer
    row = report.compile_launch((recorded._replace(attributes=attributes), 90))
    assert any("loads of 16 bytes" in fault for fault in row["faults"])


def test_a_spill_is_a_fault(report):
    """A tile of 2,048 classes and 3 teachers in a single warp."""
    recorded = next(one for one in report.record(report.Shape(4096, 4096, 3)) if "gradient" in one.kernel)
    row = report.compile_launch((recorded._replace(warps=1), 70))
    assert any("spills" in fault for fault in row["faults"])


def test_machine_code_is_read_where_it_can_be(report):
    recorded = next(one for one in report.record(report.Shape(512, 512)) if "gradient" in one.kernel)
    assert [report.compile_launch((recorded, sm))["read_from"] for sm in (70, 80)] == ["PTX", "SASS"]


def test_dense_vocabulary_rows_are_read_whole_forward_and_narrow_backward(report):
    """Around the rows, as all are equally far off a boundary; the gradient is laid out at boundaries, so that there they are not."""
    dense = {one.kernel: one for one in report.record(report.Shape(30522, 30522))}
    padded = {one.kernel: one for one in report.record(report.Shape(30522, 30528))}
    stream, gradient = "forward.stream_kernel", "backward.gradient_kernel"
    assert dense[stream].wide_loads == padded[stream].wide_loads > 0
    assert dense[gradient].wide_loads == 0 < padded[gradient].wide_loads
    assert report.compile_launch((dense[stream], 90))["faults"] == []
