"""The kernel tests, run where there is no GPU: in one process of its own whose Triton interprets, on CPU tensors.

Triton decides when it is imported whether it interprets, so that this cannot be switched on inside a running test process.
On a machine with a GPU the same tests run on the device: pytest -m gpu
"""

import re
from pathlib import Path

from runs import run_python

HERE = Path(__file__).resolve().parent


def test_kernels_in_the_interpreter():
    files = [f"tests/test_{name}.py" for name in ("kd_loss", "combine", "linear", "guard")]
    run = run_python(HERE / "interpreted.py", *files, "-n", "0", "-x", "-p", "no:cacheprovider", "-rp", timeout=600)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert set(re.findall(r"^PASSED (.*)::", run.stdout, re.M)) == {*files}
