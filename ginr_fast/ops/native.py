"""The typed door to the compiled extension: nothing else in the library calls ``ginr_fast._C`` than
this module, and native_field.py, native_render.py and native_cuda.py for fields.

The extension knows addresses and sizes, not tensors. What reaches it from here is contiguous, of a
dtype and on a device it was compiled for, and lives until the call (or, on a GPU, the stream) is
done with it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch

try:
    from ginr_fast import _C
except ImportError as error:
    raise ImportError(
        "ginr_fast: the compiled extension is missing or was built for another Python; "
        "build it with `pip install -e .` in the source tree"
    ) from error

CPU_ENVIRONMENT_VARIABLE = "GINR_FAST_CPU"

_CUDA_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_CPU_DTYPES = (torch.float32, torch.float64)
# The launch grids have at most 65,535 tiles of 128 columns.
_CUDA_MOST_PARAMETERS = 65_535 * 128


class BuildInfo(TypedDict):
    """What the extension was built with, and what it does on this processor."""

    compiler: str
    cpu_paths: list[str]
    """Vector paths compiled in."""
    cpu_paths_usable: list[str]
    """Those this processor can run."""
    cpu_path: str
    """The one in use."""
    cuda: str | None
    """Version of nvcc, or None: built for CPU only."""
    cuda_archs: list[str]


def build_info() -> BuildInfo:
    """What the extension was built with, and which vector path it takes here."""
    info = _C.build_info()
    return BuildInfo(
        compiler=info["compiler"],
        cpu_paths=info["cpu_paths"],
        cpu_paths_usable=info["cpu_paths_usable"],
        cpu_path=_C.cpu_path(),
        cuda=info["cuda"],
        cuda_archs=info["cuda_archs"].split(),
    )


def force_cpu_path(path: str | None) -> None:
    """Make the CPU kernels take one vector path, process-wide.

    Args:
        path: ``"amx"``, ``"avx512"``, ``"avx2"`` or ``"portable"``; None for the fastest there is.
            "amx" is "avx512" for all but wide float32 fields, and matrix products where PyTorch's
            precision for them is "high".

    Raises:
        ValueError: the build or the processor has no such path.
    """
    try:
        _C.force_cpu_path(path or "")
    except ValueError as error:
        raise ValueError(f"path: {error}") from None


def _force_from_environment() -> None:
    path = os.environ.get(CPU_ENVIRONMENT_VARIABLE)
    try:
        _C.force_cpu_path(path or "")
    except ValueError as error:
        raise ValueError(f"{CPU_ENVIRONMENT_VARIABLE}: {error}") from None


_force_from_environment()


# Read once: torch.compile can trace plain values, not calls into the extension.
_BUILT_WITH_CUDA = _C.build_info()["cuda"] is not None
_ARCHS = [int(digits) for digits in re.findall(r"\d+", _C.build_info()["cuda_archs"])]
_LEAST_CAPABILITY = divmod(min(_ARCHS, default=0), 10)


def cuda_refusal(dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the extension's CUDA kernels cannot serve a dtype on a device, or None if they can."""
    if device.type != "cuda":
        return f"it serves CPU and CUDA devices, not {device.type}"
    if not _BUILT_WITH_CUDA:
        return "the extension was built without CUDA"
    if dtype not in _CUDA_DTYPES:
        return f"on CUDA it serves float32, float16 and bfloat16, not {_name(dtype)}"
    # Not traceable; a compiled call on an older GPU fails at the launch instead.
    if not torch.compiler.is_compiling():
        capability = torch.cuda.get_device_capability(device)
        if capability < _LEAST_CAPABILITY:
            return f"the extension was built for compute capability {_LEAST_CAPABILITY} and later"
    return None


def mixture_average_refusal(dtype: torch.dtype, device: torch.device, packed: int) -> str | None:
    """Why the extension cannot serve ``mixture_average``, or None if it can.

    Args:
        dtype: of coefficients and bases.
        device: of the same.
        packed: P.
    """
    if device.type == "cpu":
        if dtype not in _CPU_DTYPES:
            return f"on CPU it serves float32 and float64, not {_name(dtype)}"
        return None
    reason = cuda_refusal(dtype, device)
    if reason is not None:
        return reason
    if packed > _CUDA_MOST_PARAMETERS:
        return f"on CUDA it serves at most {_CUDA_MOST_PARAMETERS} parameters a field"
    return None


def mixture_average(coefficients: torch.Tensor, bases: Sequence[torch.Tensor]) -> torch.Tensor:
    """``(B, L, M)`` and one ``(M, size)`` a parameter -> ``(B, P)``."""
    coefficients = coefficients.contiguous()
    bases = [base.contiguous() for base in bases]
    batch, layers, mixtures = coefficients.shape
    sizes = [base.shape[1] for base in bases]
    out = coefficients.new_empty(batch, sum(sizes))
    if batch:
        problem = _C.MixtureAverageProblem(batch, layers, mixtures, sizes)
        _call("mixture_average", out, problem, _at(coefficients), _all_at(bases), _at(out))
    return out


def mixture_average_grad_coefficients(
    grad: torch.Tensor, bases: Sequence[torch.Tensor], layers: int
) -> torch.Tensor:
    """``(B, P)`` and one ``(M, size)`` a parameter -> ``(B, L, M)``."""
    grad = grad.contiguous()
    bases = [base.contiguous() for base in bases]
    batch, mixtures = grad.shape[0], bases[0].shape[0]
    name = "mixture_average_grad_coefficients"
    problem = _C.MixtureAverageProblem(batch, layers, mixtures, [base.shape[1] for base in bases])
    if grad.device.type == "cpu":
        out = grad.new_empty(batch, layers, mixtures)
        _call(name, grad, problem, _at(grad), _all_at(bases), _at(out))
        return out
    # On a GPU blocks leave partial sums over columns; adding them up afterwards rather than with
    # atomics keeps the result the same from run to run.
    parts = _C.mixture_average_grad_coefficients_parts(problem)
    partial = grad.new_zeros(parts, batch, layers, mixtures, dtype=torch.float32)
    if batch:
        _call(name, grad, problem, _at(grad), _all_at(bases), _at(partial))
    return partial.sum(0).to(grad.dtype)


def mixture_average_grad_bases(
    grad: torch.Tensor, coefficients: torch.Tensor, sizes: Sequence[int], wanted: Sequence[int]
) -> list[torch.Tensor]:
    """``(B, P)`` and ``(B, L, M)`` -> ``(M, size)`` for each parameter of ``wanted``."""
    grad = grad.contiguous()
    coefficients = coefficients.contiguous()
    batch, layers, mixtures = coefficients.shape
    if batch == 0:
        return [grad.new_zeros(mixtures, sizes[index]) for index in wanted]
    out = [grad.new_empty(mixtures, sizes[index]) for index in wanted]
    addresses = [0] * len(sizes)
    for index, tensor in zip(wanted, out, strict=True):
        addresses[index] = _at(tensor)
    problem = _C.MixtureAverageProblem(batch, layers, mixtures, list(sizes))
    _call("mixture_average_grad_bases", grad, problem, _at(grad), _at(coefficients), addresses)
    return out


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _at(tensor: torch.Tensor) -> int:
    return tensor.data_ptr()


def _all_at(tensors: Sequence[torch.Tensor]) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _call(name: str, like: torch.Tensor, *arguments: object) -> None:
    """Call the variant of an extension function for the device and dtype of ``like``."""
    device = like.device
    function: Callable[..., None] = getattr(_C, f"{name}_{device.type}_{_name(like.dtype)}")
    if device.type == "cpu":
        function(*arguments, torch.get_num_threads())
        return
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        function(*arguments, device.index, stream)
