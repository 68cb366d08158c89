"""The compiled extension's door for float32 products as three bfloat16 products on AMX.

``x = hi + lo`` with ``hi = bfloat16(x)`` and ``lo = bfloat16(x − hi)``;
``a·b = hi_a·hi_b + lo_a·hi_b + hi_a·lo_b``, accumulated in float32. The relative error of a product
of random matrices is 4.5e-6, where float32's own is 3e-7. Numbers below 2⁻¹²⁶ count as zero, a lo
(of a number below 2⁻¹¹⁷) too; infinities and NaN come out as they would in float32, or as NaN.

This is what PyTorch calls the precision "high": "treat each float32 number as the sum of two
bfloat16 numbers" (``torch.set_float32_matmul_precision``).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ginr_fast import _C

# A product with a shorter side is left to other libraries: a panel of the kernel has 32 rows, and
# it would be mostly padding.
_SHORTEST_SIDE = 24


def serves(x: Tensor, y: Tensor, bias: Tensor | None = None) -> bool:
    """Whether ``x @ y.T + bias`` may and can run on AMX, and is then faster."""
    return (
        x.dtype == torch.float32
        and x.device.type == "cpu"
        and high_precision_allowed()
        and present()
        and min(*x.shape, y.shape[0]) >= _SHORTEST_SIDE
        and y.dtype == torch.float32
        and (bias is None or bias.dtype == torch.float32)
    )


def present() -> bool:
    """Whether the vector path in use is that of a processor with AMX."""
    return _C.cpu_path() == "amx"


def high_precision_allowed() -> bool:
    """Whether PyTorch's precision of float32 products on CPUs is "high".

    "medium" is not: oneDNN then takes plain bfloat16 products, coarser and faster than these.
    """
    try:
        return torch.get_float32_matmul_precision() == "high"
    except RuntimeError:  # it was set for each library apart, in torch.backends, as from torch 2.9
        return bool(torch.backends.mkldnn.matmul.fp32_precision == "tf32")  # type: ignore[attr-defined]


def product(x: Tensor, y: Tensor, bias: Tensor | None = None, relu: bool = False) -> Tensor:
    """``x @ y.T + bias``, optionally ReLU, of float32 CPU tensors on a processor with AMX.

    ``(m, k)``, ``(n, k)`` and ``(n,)``, any strides, none of them empty, to ``(m, n)``.

    Raises:
        ValueError: the sizes do not match, or the vector path in use is not "amx".
    """
    (rows, depth), columns = x.shape, y.shape[0]
    if y.shape[1] != depth:
        raise ValueError(f"y: expected {depth} columns, as x has, got {y.shape[1]}")
    if bias is not None and bias.shape != (columns,):
        raise ValueError(f"bias: expected shape ({columns},), got {tuple(bias.shape)}")
    x, y = _unit_strided(x), _unit_strided(y)
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty(rows, columns)
    served = _C.split_gemm(
        rows,
        columns,
        depth,
        x.data_ptr(),
        *_strides(x),
        y.data_ptr(),
        *_strides(y),
        0 if bias is None else bias.data_ptr(),
        relu,
        out.data_ptr(),
        columns,
        torch.get_num_threads(),
    )
    if not served:
        raise ValueError(f"x: expected the vector path amx in use, got {_C.cpu_path()}")
    return out


def _strides(x: Tensor) -> tuple[int, int]:
    """Both strides, of a matrix one of whose sizes or strides is 1; one of them is 1."""
    row, step = x.stride()
    if x.shape[1] == 1:
        return row, 1
    return (1, step) if x.shape[0] == 1 else (row, step)


def _unit_strided(x: Tensor) -> Tensor:
    return x if 1 in (*x.shape, *x.stride()) else x.contiguous()
