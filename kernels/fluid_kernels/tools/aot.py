"""Compile every kernel ahead of time for chips that this machine lacks, and check the result against limits.

    python -m fluid_kernels.tools.aot [--target sm_80 sm_90 gfx942] [--only WORD]

Prints registers, shared memory and tensor-core instructions of each kernel. Exits with 1 if a kernel spills registers,
needs more shared memory than the chip gives a block, or multiplies blocks without tensor cores. It cannot show speed,
nor numbers on the device. Compiled kernels are kept in TRITON_CACHE_DIR.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from fluid_kernels.tools.aot_cases import Case, cases

# Bytes of shared memory that one block may use: CUDA C programming guide, compute capabilities; CDNA 3 ISA guide.
SHARED_LIMIT = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "gfx942": 64 * 1024}
TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32), "sm_90": GPUTarget("cuda", 90, 32), "gfx942": GPUTarget("hip", "gfx942", 64)
}  # fmt: skip
NVIDIA_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Resources:
    """Resources that a compiled case uses on a target."""

    case: str
    target: str
    registers: int  # of a thread; VGPRs on AMD
    spilled: int  # bytes on NVIDIA, registers on AMD
    shared: int  # bytes a block
    tensor_ops: int  # HMMA, HGMMA or MFMA instructions
    faults: tuple[str, ...]


def compile_case(case: Case, target: str) -> Resources:
    """Compile one kernel as its wrapper would launch it, and read its resources from the binary."""
    signature = {**case.arguments, **dict.fromkeys(case.constants, "constexpr")}
    order = case.kernel.arg_names
    divisible = [
        (i,) for i, name in enumerate(order)
        if case.arguments.get(name, "").startswith("*") or (name in case.aligned and name in case.arguments)
    ]  # fmt: skip
    source = ASTSource(
        fn=case.kernel, signature={name: signature[name] for name in order}, constexprs=case.constants,
        attrs={key: [["tt.divisibility", 16]] for key in divisible},
    )  # fmt: skip
    options = {"num_warps": case.warps, "num_stages": case.stages}
    kernel = triton.compile(source, target=TARGETS[target], options=options)
    amd = target.startswith("gfx")
    registers, spilled, tensor_ops = _read_amd(kernel.asm["amdgcn"]) if amd else _read_nvidia(kernel.asm, target)
    shared = kernel.metadata.shared
    faults = find_faults(target, spilled, shared, tensor_ops, case.dot)
    return Resources(case.name, target, registers, spilled, shared, tensor_ops, faults)


def find_faults(target: str, spilled: int, shared: int, tensor_ops: int, dot: bool) -> tuple[str, ...]:
    """The limits that these resources exceed, in words; empty if there are none."""
    faults = [f"spills {spilled}"] if spilled else []
    if shared > SHARED_LIMIT[target]:
        faults.append(f"{shared} bytes of shared memory, over {SHARED_LIMIT[target]}")
    if dot and not tensor_ops:
        faults.append("no tensor-core instructions")
    return tuple(faults)


def _read_nvidia(asm: dict[str, bytes | str], target: str) -> tuple[int, int, int]:
    """Registers, spilled bytes and tensor-core instructions of a cubin."""
    with tempfile.TemporaryDirectory() as folder:
        cubin, ptx = Path(folder, "k.cubin"), Path(folder, "k.ptx")
        cubin.write_bytes(asm["cubin"])  # type: ignore[arg-type]
        usage = _tool("cuobjdump", "-res-usage", str(cubin))
        code = _tool("nvdisasm", "-c", str(cubin))
        registers = int(re.findall(r"REG:(\d+)", usage)[-1])
        spilled = 0
        if max(int(size) for size in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)):
            # A stack may also hold a local array; ptxas reports spills separately.
            ptx.write_text(str(asm["ptx"]))
            name = re.search(r"\.target (sm_\w+)", str(asm["ptx"]))
            log = _tool("ptxas", "-v", "--gpu-name", name[1] if name else target, str(ptx), "-o", str(cubin))
            spilled = sum(int(size) for size in re.findall(r"(\d+) bytes spill", log))
    return registers, spilled, len(re.findall(r"\b(?:HMMA|HGMMA)\b", code))


def _read_amd(code: str) -> tuple[int, int, int]:
    """VGPRs, spilled VGPRs and matrix instructions of an assembly text."""
    counts = [int(re.findall(rf"\.{name}:\s+(\d+)", code)[-1]) for name in ("vgpr_count", "vgpr_spill_count")]
    return counts[0], counts[1], len(re.findall(r"\bv_mfma", code))


def _tool(name: str, *arguments: str) -> str:
    done = subprocess.run([NVIDIA_TOOLS / name, *arguments], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def main(argv: Sequence[str] | None = None) -> int:
    """Compile, print the table, and return the number to exit with."""
    parser = argparse.ArgumentParser(prog="python -m fluid_kernels.tools.aot", description=__doc__.split("\n\n")[0])
    parser.add_argument("--target", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--only", default="", help="compile the kernels whose name contains this")
    parser.add_argument("--processes", type=int, default=2)
    options = parser.parse_args(argv)
    work = [
        (case, target) for target in options.target
        for case in cases("hip" if target.startswith("gfx") else "cuda") if options.only in case.name
    ]  # fmt: skip
    print(f"{'kernel':<42}{'target':<8}{'registers':>10}{'spilled':>9}{'shared KiB':>12}{'tensor ops':>12}")
    faulty = 0
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        for r in pool.map(_compile_indexed, [(case.name, target) for case, target in work]):
            faulty += bool(r.faults)
            row = f"{r.case:<42}{r.target:<8}{r.registers:>10}{r.spilled:>9}{r.shared / 1024:>12.1f}{r.tensor_ops:>12}"
            print(row, *(f"  FAULT: {fault}" for fault in r.faults), flush=True)
    print(f"{len(work)} compiled, {faulty} faulty")
    return 1 if faulty else 0


def _compile_indexed(key: tuple[str, str]) -> Resources:
    """Compile by name: kernels cannot be pickled for the pool, names can."""
    name, target = key
    backend = "hip" if target.startswith("gfx") else "cuda"
    return compile_case(next(case for case in cases(backend) if case.name == name), target)


if __name__ == "__main__":
    sys.exit(main())
