"""The kernel tests, run where there is no GPU: in a process of its own whose Triton interprets, on CPU tensors.

Triton decides when it is imported whether it interprets, so that this cannot be switched on inside a running test process.
On a machine with a GPU the same tests run on the device: pytest -m gpu
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent


@pytest.mark.parametrize("name", ["kd_loss", "combine", "linear", "guard"])
def test_kernels_in_the_interpreter(name):
    command = [sys.executable, "-m", "pytest", str(HERE / f"test_{name}.py"), "-x", "-p", "no:cacheprovider"]
    run = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True, cwd=HERE.parent
    )
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", run.stdout)[1]) > 0
