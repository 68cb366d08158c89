"""Compiles Triton kernels ahead of time, as a launch on a GPU would, and reads what came out.

No GPU is needed: Triton's own code turns the arguments of a recorded launch into a specialisation
(pointer types, divisibility by 16, integers equal to 1), and brings its own assembler, whose log
names registers and spills. ``TRITON_INTERPRET`` must not be set when the kernels are imported.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import multiprocessing
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler.compiler import make_backend
from triton.compiler.errors import CompilationError
from triton.runtime.cache import get_cache_manager
from triton.runtime.errors import PTXASError
from triton.runtime.jit import JITFunction, create_function_from_signature

from ginr_fast.ops.kernels.launch import Launch

OPCODES: dict[str, str] = {
    "tensor": r"(?:H|I|Q|D|O)G?MMA|UTC\w*MMA",
    "special": r"MUFU",
    "global_load": r"LDG|LDGSTS|UTMALDG|UBLKCP",
    "global_store": r"STG|UTMASTG",
    "global_atomic": r"RED|REDG|ATOM|ATOMG",
    "shared_load": r"LDS|LDSM",
    "shared_store": r"STS|STSM",
    "tensor_memory": r"LDTM|STTM|UTCCP",
    "local": r"LDL|STL",
}
"""Which instructions of the machine code each count of a report takes together."""

_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?([A-Z][A-Z0-9]*)")
_HALF_DOT = re.compile(r"tt\.dot .*x(?:bf16|f16)>")


@dataclass(frozen=True)
class Specialization:
    """All that decides what Triton compiles for a launch; equal ones share their machine code."""

    module: str
    kernel: str
    signature: tuple[tuple[str, Any], ...]
    constants: tuple[tuple[tuple[int, ...], Any], ...]
    attributes: tuple[tuple[tuple[int, ...], tuple[tuple[str, int], ...]], ...]
    arch: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        return {"num_warps": self.warps, "num_stages": self.stages}


@dataclass(frozen=True)
class Report:
    """What one kernel needs of a chip.

    ``counts`` are instructions in the machine code, by the names of ``OPCODES``; empty where the
    code was not disassembled.
    """

    registers: int
    spill_store_bytes: int
    spill_load_bytes: int
    stack: int
    shared_bytes: int
    tensor_memory_columns: int
    wgmma: int
    """Asynchronous warp-group products in the PTX (sm_90 only)."""
    half_dots: int
    """Products of 16-bit operands in the kernel's source, after unrolling."""
    counts: dict[str, int]


def specialize(launch: Launch, arch: int) -> Specialization:
    """What Triton would compile for ``launch`` on a chip of compute capability ``arch``.

    Raises:
        TypeError: the kernel was imported with ``TRITON_INTERPRET`` set.
    """
    kernel = launch.kernel
    if not isinstance(kernel, JITFunction):
        raise TypeError(
            f"launch: {launch.name} is a {type(kernel).__name__}, which cannot be compiled; "
            "import the kernels without TRITON_INTERPRET"
        )
    backend = make_backend(GPUTarget("cuda", arch, 32))
    given = {
        **launch.arguments,
        **launch.constants,
        "num_warps": launch.warps,
        "num_stages": launch.stages,
    }
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(**given)
    _, signature, constants, attributes = kernel._pack_args(
        backend, given, bound, specialization, options
    )
    return Specialization(
        kernel.fn.__module__,
        kernel.fn.__qualname__,
        tuple(signature.items()),
        tuple(constants.items()),
        tuple((path, tuple(map(tuple, found))) for path, found in attributes.items()),
        arch,
        launch.warps,
        launch.stages,
    )


def compile_launch(launch: Launch, arch: int) -> Report:
    """Compile ``launch`` for compute capability ``arch`` (80, 90, 100, ...) and read the result."""
    return compile_specialization(specialize(launch, arch))


def compile_specialization(which: Specialization, disassemble: bool = True) -> Report:
    """Compile and read one specialisation; Triton's cache keeps the result and the log."""
    kernel = importlib.import_module(which.module)
    for part in which.kernel.split("."):
        kernel = getattr(kernel, part)
    attributes = {path: [list(pair) for pair in found] for path, found in which.attributes}
    source = ASTSource(kernel, dict(which.signature), dict(which.constants), attributes)
    target = GPUTarget("cuda", which.arch, 32)
    compiled, log = _compile(source, target, which.options, always=False)
    kept = get_cache_manager(compiled.hash)
    name = "assembler.log"
    if "Used" in log:
        kept.put(log, name, binary=False)
    elif path := kept.get_file(name):
        log = open(path).read()  # noqa: SIM115 - a cache entry of a few lines
    else:  # compiled before by someone who kept no log
        compiled, log = _compile(source, target, which.options, always=True)
        kept.put(log, name, binary=False)
    return read(compiled, log, disassemble)


def _compile(
    source: ASTSource, target: GPUTarget, options: dict[str, int], *, always: bool
) -> tuple[Any, str]:
    """The compiled kernel and the assembler's log, empty if Triton's cache had the kernel."""
    with triton.knobs.nvidia.scope(), triton.knobs.compilation.scope():
        triton.knobs.nvidia.dump_ptxas_log = True
        triton.knobs.compilation.always_compile = always
        with contextlib.redirect_stdout(io.StringIO()) as log:
            try:
                compiled = triton.compile(source, target=target, options=options)
            except (CompilationError, PTXASError) as error:
                given = f"{source.name} for sm_{target.arch}, {source.constants}, {options}"
                raise RuntimeError(f"cannot compile {given}: {error}") from error
    return compiled, log.getvalue()


def read(compiled: Any, log: str, disassemble: bool = True) -> Report:
    """The report of a compiled kernel from its code and the log of the assembler."""

    def total(pattern: str) -> int:
        return sum(int(number) for number in re.findall(pattern, log))

    registers = re.findall(r"Used (\d+) registers", log)
    if not registers:
        raise ValueError(f"log: no registers named in what the assembler said: {log!r}")
    return Report(
        registers=max(map(int, registers)),
        spill_store_bytes=total(r"(\d+) bytes spill stores"),
        spill_load_bytes=total(r"(\d+) bytes spill loads"),
        stack=total(r"(\d+) bytes stack frame"),
        shared_bytes=compiled.metadata.shared,
        tensor_memory_columns=getattr(compiled.metadata, "tmem_size", None) or 0,
        wgmma=compiled.asm["ptx"].count("wgmma.mma_async"),
        half_dots=len(_HALF_DOT.findall(compiled.asm["ttir"])),
        counts=count(_disassembly(compiled.asm["cubin"])) if disassemble else {},
    )


def _disassembly(cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def count(disassembly: str) -> dict[str, int]:
    """Instructions of each kind of ``OPCODES`` in a disassembly."""
    found = Counter(_INSTRUCTION.findall(disassembly))
    return {
        kind: sum(number for code, number in found.items() if re.fullmatch(pattern, code))
        for kind, pattern in OPCODES.items()
    }


def compile_all(
    wanted: Iterable[Specialization],
    processes: int = 2,
    not_disassembled: Collection[int] = (),
) -> dict[Specialization, Report]:
    """The report of every distinct specialisation, ``processes`` at a time.

    Disassembling takes a good part of the time; architectures whose counts nobody reads can be
    left out of it.
    """
    distinct = list(dict.fromkeys(wanted))
    disassembled = [which.arch not in not_disassembled for which in distinct]
    if processes <= 1 or len(distinct) <= 1:
        reports = list(map(compile_specialization, distinct, disassembled))
    else:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context) as pool:
            reports = list(pool.map(compile_specialization, distinct, disassembled))
    return dict(zip(distinct, reports, strict=True))
