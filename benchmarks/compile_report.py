"""Compiles every kernel and shape class for GPUs that are absent and reports registers, spills and load widths.

    python benchmarks/compile_report.py                    # all shapes, sm_70, sm_80 and sm_90
    python benchmarks/compile_report.py --check            # and exit 1 on a spill or a lost 16-byte load or store
    python benchmarks/compile_report.py --only 30522 --architectures 70
    python benchmarks/compile_report.py --tiles 9.0        # with what was measured there, as the GPU itself would launch

It runs the package's own launch code on small CPU tensors with `launch.start` replaced by a recorder, so that what is
compiled is what would be launched: the same tiles, warps, strides and constants. ptxas and nvdisasm come with Triton. The
widths of loads and stores are read from the machine code (LDG.E.128, STG.E.128); Triton's nvdisasm no longer reads sm_70,
so that there they are read from the PTX (ld.global.v4.b32), which ptxas never splits.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)  # the interpreter has no machine code

import torch
import triton
from road_kernels import arguments, combine_teachers, kd_loss, launch, plan
from road_kernels.plan import MOST_REGISTERS, layout, shifted, vector_width, widest
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

ROWS = 17  # no multiple of anything: nothing may depend on a round number of rows
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
NAMES = {torch.int64: "i64", torch.int32: "i32", **{dtype: name for name, dtype in DTYPES.items()}}


class Shape(NamedTuple):
    """One shape class: classes, row stride in elements, teachers, and which options are on."""

    classes: int
    stride: int
    teachers: int = 1
    dtype: str = "fp16"
    wrong_scale: bool = False
    lengths: bool = False
    temperature: float = 5.0

    def __str__(self) -> str:
        options = "".join([" W" * self.wrong_scale, " lengths" * self.lengths, f" T={self.temperature:g}"])
        return f"C={self.classes}/{self.stride} M={self.teachers} {self.dtype}{options}"


class Launch(NamedTuple):
    """A recorded launch: the kernel, what Triton's compiler needs, and the 16-byte accesses it must come out with."""

    shape: str
    kernel: str
    signature: dict
    constants: dict
    attributes: dict
    warps: int
    registers: int
    wide_loads: int
    wide_stores: int


def shapes() -> Iterator[Shape]:
    """Every regime at its ends, the classes of the benchmarks, one and several teachers, each dtype."""
    rows = [(classes, -(-classes // 8) * 8) for classes in (384, 512, 1000, 4096, 8192, 30522, 128256)]
    for classes, stride in [(1, 1), (3, 3), (5, 5), (32, 32), (64, 64), *rows]:
        yield Shape(classes, stride, 1)
        yield Shape(classes, stride, 8)
        yield Shape(classes, stride, 3, wrong_scale=True)
        yield Shape(classes, stride, 8, wrong_scale=True, lengths=True, temperature=2.5)
        yield Shape(classes, stride, 3, "bf16", wrong_scale=True)
        yield Shape(classes, stride, 3, "fp32", wrong_scale=True)
    # Dense rows of odd or barely even length: narrow loads, which must not spill either.
    for classes in (31, 1001, 8191, 30522):
        yield Shape(classes, classes, 1)
        yield Shape(classes, classes, 3, wrong_scale=True, lengths=True, temperature=2.5)
        yield Shape(classes, classes, 8, wrong_scale=True, lengths=True, temperature=2.5)


def quick_shapes() -> Iterator[Shape]:
    """The tightest shapes of each regime, for the tests."""
    for classes, stride in [(3, 3), (1000, 1000), (8192, 8192), (30522, 30528)]:
        yield Shape(classes, stride, 3, wrong_scale=True, lengths=True, temperature=2.5)
    yield Shape(1001, 1001, 8, wrong_scale=True, lengths=True, temperature=2.5)
    yield Shape(30522, 30528, 1, "fp32")


def record(shape: Shape) -> list[Launch]:
    """The launches of a forward and backward pass and of the combination, for tensors of this shape."""
    launches: list[Launch] = []

    def recorder(kernel, grid, *args, warps, registers=MOST_REGISTERS, **constants):
        launches.append(describe(str(shape), kernel, args, warps, registers, constants))

    def logits() -> torch.Tensor:
        return torch.zeros(ROWS, shape.stride, dtype=DTYPES[shape.dtype])[:, : shape.classes]

    student = logits().requires_grad_()
    teacher = [logits() for _ in range(shape.teachers)]
    labels = torch.zeros(ROWS, dtype=torch.int64)
    lengths = torch.ones(ROWS, dtype=torch.int64) if shape.lengths else None
    wrong_scale = 0.75 if shape.wrong_scale else None
    # As if interpreting, CPU tensors are let through to the launch code; nothing is run there.
    before = launch.start, arguments.INTERPRETING
    launch.start, arguments.INTERPRETING = recorder, True
    try:
        loss = kd_loss(
            student,
            teacher,
            labels,
            temperature=shape.temperature,
            weight=0.9,
            lengths=lengths,
            wrong_scale=wrong_scale,
            impl="triton",
        )
        loss.total.backward()
        combine_teachers(teacher, labels, lengths=lengths, wrong_scale=wrong_scale, impl="triton")
    finally:
        launch.start, arguments.INTERPRETING = before
    return launches


def describe(shape: str, kernel, args: tuple, warps: int, registers: int, constants: dict) -> Launch:
    """What Triton's own launcher would tell its compiler about these arguments."""
    signature: dict = {}
    values: dict = {}
    attributes: dict = {}

    def kind(value, path: tuple[int, ...]):
        if isinstance(value, tuple):
            return tuple(kind(item, (*path, index)) for index, item in enumerate(value))
        if value is None or (isinstance(value, int) and value == 1):
            values[path] = value
            return "constexpr"
        if isinstance(value, torch.Tensor):
            if value.data_ptr() % 16 == 0:
                attributes[path] = [["tt.divisibility", 16]]
            return "*" + NAMES[value.dtype]
        if isinstance(value, float):
            return "fp32"
        if value % 16 == 0:
            attributes[path] = [["tt.divisibility", 16]]
        return "i32" if abs(value) < 2**31 else "i64"

    for index, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name] = "constexpr"
            values[(index,)] = constants[name]
        else:
            signature[name] = kind(args[index], (index,))
    named = dict(zip(kernel.arg_names, args, strict=False))
    loads, stores = wide_accesses(named, warps, constants)
    module = kernel.fn.__module__.rpartition(".")[2]
    return Launch(
        shape, f"{module}.{kernel.fn.__name__}", signature, values, attributes, warps, registers, loads, stores
    )


def wide_accesses(named: dict, warps: int, constants: dict) -> tuple[int, int]:
    """16-byte loads and stores that a thread must make for its share of each tile of logits; 0 where rows rule them out."""
    read = [*named.get("teachers", ()), *([named["student"]] if "s_row" in named else [])]
    written = [named[name] for name in ("gradient", "out") if name in named]
    layouts = [layout(logits) for logits in (*read, *written)]
    off = constants.get("SHIFTED") and shifted(*layouts)
    if not read or (widest(*layouts) if off else vector_width(*layouts)) * read[0].element_size() < 16:
        return 0, 0
    lanes = constants.get("B") or constants["U"] * constants["T"] * constants["VEC"]
    elements = constants.get("R", 1) * lanes // (32 * warps)
    each = elements * read[0].element_size() // 16  # 0 where a thread's share of a small tile is less
    return each * len(read), each * len(written)


def compile_launch(job: tuple[Launch, int]) -> dict:
    """Registers, spills and accesses of one launch on one architecture."""
    recorded, architecture = job
    module, name = recorded.kernel.split(".")
    kernel = getattr(__import__(f"road_kernels.{module}", fromlist=[name]), name)
    compiled = triton.compile(
        ASTSource(kernel, recorded.signature, recorded.constants, recorded.attributes),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": recorded.warps, "maxnreg": recorded.registers, **launch.OPTIONS},
    )
    ptx = compiled.asm["ptx"]
    row = {
        "kernel": name,
        "shape": recorded.shape,
        "architecture": architecture,
        "warps": recorded.warps,
        **resources(ptx, architecture),
        **widths(ptx, compiled.asm["cubin"], architecture),
        "wide_loads_expected": recorded.wide_loads,
        "wide_stores_expected": recorded.wide_stores,
    }
    row["faults"] = faults(row)
    return row


def faults(row: dict) -> list[str]:
    found = []
    if row["spilled_bytes"]:
        found.append(f"spills {row['spilled_bytes']} bytes")
    for access in ("loads", "stores"):
        came, expected = row[f"wide_{access}"], row[f"wide_{access}_expected"]
        if came < expected:
            found.append(f"{came} of {expected} {access} of 16 bytes")
    return found


def resources(ptx: str, architecture: int) -> dict:
    """Registers a thread and bytes spilled, as ptxas reports them."""
    target = re.search(r"\.target\s+([\w]+)", ptx)[1]  # type: ignore[index]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "kernel.ptx")
        source.write_text(ptx)
        command = [
            get_ptxas(architecture).path,
            "-v",
            f"--gpu-name={target}",
            str(source),
            "-o",
            str(source) + ".cubin",
        ]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    if registers is None or not spills:
        raise RuntimeError(f"ptxas said nothing of registers and spills: {report}")
    return {"registers": int(registers[1]), "spilled_bytes": sum(map(int, spills))}


def widths(ptx: str, cubin: bytes, architecture: int) -> dict:
    """How many accesses to global memory are 16 bytes wide, how many there are, and where that was read."""
    if architecture >= 80:
        text, source = disassemble(cubin), "SASS"
        loads, stores = re.findall(r"\bLDG\.\S+", text), re.findall(r"\bSTG\.\S+", text)
        wide = r"\.128\b"
    else:
        source = "PTX"
        loads, stores = re.findall(r"\bld\.global\S*", ptx), re.findall(r"\bst\.global\S*", ptx)
        wide = r"\.v4\.[bfu]32|\.v2\.[bfu]64"
    return {
        "loads": len(loads),
        "stores": len(stores),
        "wide_loads": sum(bool(re.search(wide, access)) for access in loads),
        "wide_stores": sum(bool(re.search(wide, access)) for access in stores),
        "read_from": source,
    }


def disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return subprocess.run([str(tool), "-c", file.name], capture_output=True, text=True, check=True).stdout


def jobs(chosen: list[Shape], architectures: list[int]) -> list[tuple[Launch, int]]:
    """Every launch of the shapes on every architecture; what compiles to the same code is compiled once."""
    distinct: dict[str, Launch] = {}
    for shape in chosen:
        for recorded in record(shape):
            key = repr(recorded[1:])
            distinct.setdefault(key, recorded)
    return [(recorded, architecture) for recorded in distinct.values() for architecture in architectures]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", default="70,80,90")
    parser.add_argument("--only", default="", help="compile only shapes whose description contains this")
    parser.add_argument("--quick", action="store_true", help="the tightest shapes of each regime only")
    parser.add_argument("--tiles", help="the compute capability whose measured tiles to take; without, the defaults")
    parser.add_argument("--check", action="store_true", help="exit 1 on a spill or a lost 16-byte access")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if given.tiles:
        tiles = plan.tuned()[given.tiles]
        plan.best = lambda kernel, name, device: tiles.get(kernel, {}).get(name)  # type: ignore[assignment]
    chosen = [shape for shape in (quick_shapes() if given.quick else shapes()) if given.only in str(shape)]
    work = jobs(chosen, [int(name) for name in given.architectures.split(",")])
    print(f"triton {triton.__version__}, {len(work)} compilations")
    print(
        f"{'kernel':16s} {'shape':36s} {'sm':>3s} {'warps':>5s} {'regs':>4s} {'spill':>5s} {'loads':>9s} {'stores':>9s}  16-byte/all"
    )
    with ProcessPoolExecutor(given.workers) as pool:
        rows = []
        for row in pool.map(compile_launch, work):
            rows.append(row)
            print(
                f"{row['kernel']:16s} {row['shape']:36s} {row['architecture']:3d} {row['warps']:5d} {row['registers']:4d} "
                f"{row['spilled_bytes']:5d} {row['wide_loads']:4d}/{row['loads']:<4d} {row['wide_stores']:4d}/{row['stores']:<4d} "
                f" {row['read_from']}  {'; '.join(row['faults'])}"
            )
    if given.json:
        given.json.write_text(json.dumps({"triton": triton.__version__, "rows": rows}, indent=1) + "\n")
    faulty = [row for row in rows if row["faults"]]
    print(f"{len(rows)} compiled, {len(faulty)} with a spill or a lost 16-byte access")
    return 1 if given.check and faulty else 0


if __name__ == "__main__":
    sys.exit(main())
