"""Matrix products for the blocked backends, through the fastest library at hand.

On x86 CPUs oneDNN's inner product runs float32 with AVX-512 where PyTorch's default BLAS, MKL, may
stay at AVX2, and fuses bias and ReLU. PyTorch exposes it as ``torch.ops.mkldnn._linear_pointwise``;
where that is missing, or for other devices and dtypes, ordinary PyTorch serves. On Intel's
processors MKL runs at their peak whatever the strides, and takes the products that oneDNN would
have to copy operands for. Where ``torch.set_float32_matmul_precision("high")`` allows it and the
processor has AMX, float32 products run there as three bfloat16 products (``native_gemm.py``). The
choice depends on the machine, the installation, that setting and the sizes alone, so results are
the same from run to run.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ginr_fast.ops import native_gemm

_ONEDNN_DTYPES = (torch.float32, torch.bfloat16)


def _onednn_present() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _mkl_at_peak() -> bool:
    """Whether PyTorch's products are those of MKL, on a processor of the vendor it is made for."""
    try:
        processor = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return torch.backends.mkl.is_available() and "GenuineIntel" in processor


_PRESENT = _onednn_present()
_MKL = _mkl_at_peak()


def uses_onednn(x: Tensor) -> bool:
    """Whether products of tensors like ``x`` go through oneDNN."""
    return (
        _PRESENT
        and x.device.type == "cpu"
        and x.dtype in _ONEDNN_DTYPES
        and bool(torch.backends.mkldnn.enabled)
    )


def compute_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype in which to compute: float32 for half precisions a CPU has no instructions for."""
    if device.type != "cpu" or dtype in (torch.float32, torch.float64):
        return dtype
    if dtype == torch.bfloat16 and _PRESENT and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return dtype
    return torch.float32


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """``x @ weight.T + bias``, optionally ReLU.

    ``(rows, k)``, ``(n, k)`` and ``(n,)`` to ``(rows, n)``.

    Operands may be strided views. Not differentiable.
    """
    if native_gemm.serves(x, weight, bias):
        return native_gemm.product(x, weight, bias, relu)
    contiguous = x.is_contiguous() and (weight.is_contiguous() or weight.t().is_contiguous())
    fused = contiguous and (bias is not None or relu)
    if uses_onednn(x) and (fused or not _prefers_mkl(x)):
        if not (weight.is_contiguous() or weight.t().is_contiguous()):
            weight = weight.contiguous()  # oneDNN falls back to plain loops on padded rows
        if bias is not None:
            bias = bias.contiguous()  # it is read as if it were
        return torch.ops.mkldnn._linear_pointwise(
            x, weight, bias, "relu" if relu else "none", [], ""
        )
    y = F.linear(x, weight, bias)
    return y.relu_() if relu else y


def linear_into(out: Tensor, x: Tensor, weight: Tensor) -> None:
    """``out = x @ weight.T``, where ``out`` may be some columns of a tensor."""
    if _prefers_mkl(x) and not native_gemm.serves(x, weight):
        torch.mm(x, weight.t(), out=out)
    else:
        out.copy_(linear(x, weight))


def add_linear(total: Tensor, x: Tensor, weight: Tensor) -> None:
    """``total += x @ weight.T``."""
    if _prefers_mkl(x) and not native_gemm.serves(x, weight):
        total.addmm_(x, weight.t())
    else:
        total += linear(x, weight)


def one_at_a_time(x: Tensor) -> bool:
    """Whether products like those of ``x`` are faster one by one than as a batch: oneDNN's beat a
    batched one that has no AVX-512."""
    return uses_onednn(x) and x.dtype == torch.float32 and not _prefers_mkl(x)


def _prefers_mkl(x: Tensor) -> bool:
    return _MKL and x.dtype == torch.float32 and x.device.type == "cpu"


def transposed_product(x: Tensor, y: Tensor) -> Tensor:
    """``x.T @ y``: ``(rows, m)`` and ``(rows, n)`` to ``(m, n)``. Not differentiable."""
    if native_gemm.serves(x.t(), y.t()):
        return native_gemm.product(x.t(), y.t())
    if not uses_onednn(x) or x.dtype != torch.float32 or _prefers_mkl(x):
        return torch.mm(x.t(), y)
    # One operand has to be copied transposed; take the narrower.
    if x.shape[1] > y.shape[1]:
        return linear(y.t().contiguous(), x.t()).t()
    return linear(x.t().contiguous(), y.t())
