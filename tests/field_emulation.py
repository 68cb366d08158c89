"""The CUDA kernels of field_mlp and volume_render on the CPU, each GPU thread a coroutine."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec
from ginr_fast.ops.volume_render.convention import Rendering

ROOT = Path(__file__).parents[1]
COMPILER = os.environ.get("CXX") or shutil.which("c++")
NUMBERS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
ACTIVATIONS = {"none": 0, "relu": 1, "sine": 2}
A100 = 163 << 10
"""Bytes of shared memory a block can have on compute capability 8.0."""
H100 = 227 << 10
"""The same on 9.0."""


class Call(ctypes.Structure):
    """Twin of the struct in field.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("coord_dim", "out_dim", "width", "hidden_layers")),
        *((name, ctypes.c_int64) for name in ("frequencies", "activation", "out_activation")),
        *((name, ctypes.c_int64) for name in ("bias", "weight_type", "operand_type")),
        *((name, ctypes.c_int64) for name in ("batch", "count", "shared")),
        ("w0", ctypes.c_double),
        ("omega", ctypes.POINTER(ctypes.c_double)),
    ]


class RenderCall(ctypes.Structure):
    """Twin of the struct in field.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("samples", "color", "density", "scale_by_norm")),
        *((name, ctypes.c_int64) for name in ("white_background", "jitter")),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_double) for name in ("near", "far", "last_interval", "epsilon")),
        ("bits", ctypes.c_void_p),
        ("resolution", ctypes.c_int64),
        *((name, ctypes.c_double) for name in ("low", "high", "stop")),
        ("first_rays", ctypes.c_void_p),
    ]


def build(folder: Path) -> ctypes.CDLL:
    """field.cpp, compiled and loaded."""
    library = folder / "field.so"
    headers = ROOT / "tests/cuda_emulation"
    # A checked longjmp does not know that other stacks exist.
    options = f"-std=c++17 -O2 -U_FORTIFY_SOURCE -fPIC -shared -w -I{headers} -I{ROOT / 'csrc'}"
    command = [str(COMPILER), *options.split(), str(headers / "field.cpp"), "-o", str(library)]
    subprocess.run(command, check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.field_refused.restype = ctypes.c_int64
    return loaded


def operand_of(spec: FieldSpec, dtype: torch.dtype) -> torch.dtype:
    """What products multiply: sines want the precision of float16, ReLUs the range of bfloat16."""
    if dtype == torch.bfloat16 and spec.activation == "sine":
        return torch.float16
    return dtype


def call_of(
    spec: FieldSpec, dtype: torch.dtype, batch: int, count: int, shared: bool = False
) -> Call:
    """A call with weights of a dtype."""
    omega = [] if spec.encoding is None else list(spec.encoding.frequencies)
    return Call(
        spec.coord_dim,
        spec.out_dim,
        spec.hidden_dim,
        spec.hidden_layers,
        len(omega),
        ACTIVATIONS[spec.activation],
        ACTIVATIONS[spec.out_activation],
        spec.bias,
        NUMBERS[dtype],
        NUMBERS[operand_of(spec, dtype)],
        batch,
        count,
        shared,
        spec.w0,
        (ctypes.c_double * max(1, len(omega)))(*omega),
    )


def render_call(
    rendering: Rendering,
    bits: Tensor | None = None,
    first_rays: Tensor | None = None,
    **grid: float,
) -> RenderCall:
    """A rendering, with an occupancy grid (resolution, low, high, stop) or without."""
    rule = rendering.convention
    jitter = {"midpoints": 1, "forward": 2}[rule.jitter] if rendering.seed is not None else 0
    return RenderCall(
        rendering.samples,
        {"none": 0, "sigmoid": 1}[rule.color],
        {"relu": 0, "shifted_elu": 1, "none": 2}[rule.density],
        rule.scale_by_norm,
        rule.white_background,
        jitter,
        rendering.seed or 0,
        rendering.near,
        rendering.far,
        rule.last_interval,
        rule.epsilon,
        None if bits is None else bits.data_ptr(),
        int(grid.get("resolution", 1)),
        grid.get("low", 0.0),
        grid.get("high", 1.0),
        grid.get("stop", 0.0),
        None if first_rays is None else first_rays.data_ptr(),
    )


@functools.cache
def emulated() -> Emulated:
    """The operators, compiled once a process; skips where they cannot be."""
    if COMPILER is None or os.uname().sysname != "Linux":
        pytest.skip("needs a C++ compiler on Linux")
    with tempfile.TemporaryDirectory() as folder:
        return Emulated(build(Path(folder)))


def at(tensor: Tensor | None) -> ctypes.c_void_p:
    """A tensor's address, null for None."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def numbers(count: int) -> ctypes.Array:
    """Space for results that are integers."""
    return (ctypes.c_int64 * count)()


def nan(*shape: int) -> Tensor:
    """What is not written shows."""
    return torch.full(shape, float("nan"))


class Emulated:
    """The operators, on float32 coordinates and weights of any type."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library

    def device(self, shared: int, multiprocessors: int = 2, reversed: bool = False) -> None:
        """What the device has from now on; ``reversed``: threads take their turns from the last."""
        self.library.set_device(shared, multiprocessors, reversed)

    def plan(self, call: Call, backward: bool) -> tuple[bool, bool, int]:
        """Whether operand blocks are resident, kept activations shared; bytes."""
        result = numbers(3)
        self.library.field_plan(ctypes.byref(call), ctypes.c_int64(backward), result)
        return bool(result[0]), bool(result[1]), result[2]

    def refused(self, call: Call, backward: bool) -> bool:
        """Whether the device cannot serve a call."""
        return bool(self.library.field_refused(ctypes.byref(call), ctypes.c_int64(backward)))

    def field(self, spec: FieldSpec, coords: Tensor, weights: Tensor) -> Tensor:
        """field_mlp."""
        batch, count = weights.shape[0], coords.shape[1]
        call = call_of(spec, weights.dtype, batch, count, coords.shape[0] == 1 < batch)
        out = nan(batch, count, spec.out_dim)
        self.library.field_forward(ctypes.byref(call), at(weights), at(coords), at(out))
        return out

    def field_backward(
        self,
        spec: FieldSpec,
        coords: Tensor,
        weights: Tensor,
        grad: Tensor,
        wanted: tuple[bool, bool] = (True, True),
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the weights and of the coordinates (of each instance)."""
        batch, count = weights.shape[0], coords.shape[1]
        call = call_of(spec, weights.dtype, batch, count, coords.shape[0] == 1 < batch)
        sizes = numbers(2)
        self.library.field_backward_sizes(ctypes.byref(call), sizes)
        partial = nan(sizes[0], batch, spec.parameter_count) if wanted[0] else None
        coord_grads = nan(batch, count, spec.coord_dim) if wanted[1] else None
        workspace = nan(sizes[1] // 4 + 1)
        self.library.field_backward(
            ctypes.byref(call), at(weights), at(coords), at(grad), at(partial), at(coord_grads),
            at(workspace),
        )  # fmt: skip
        return None if partial is None else partial.sum(0), coord_grads

    def render(
        self,
        spec: FieldSpec,
        rendering: RenderCall,
        weights: Tensor,
        origins: Tensor,
        directions: Tensor,
        keep: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Rays (B, N, 5), and the field along them (B, N, S, 4)."""
        batch, rays = origins.shape[:2]
        call = call_of(spec, weights.dtype, batch, rays)
        out, values = nan(batch, rays, 5), nan(batch, rays, rendering.samples, 4) if keep else None
        self.library.render_forward(
            ctypes.byref(call), ctypes.byref(rendering), at(weights), at(origins), at(directions),
            at(out), at(values),
        )  # fmt: skip
        return out, values

    def render_backward(
        self,
        spec: FieldSpec,
        rendering: RenderCall,
        weights: Tensor,
        origins: Tensor,
        directions: Tensor,
        values: Tensor,
        grad: Tensor,
    ) -> Tensor:
        """Gradients of the weights."""
        batch, rays = origins.shape[:2]
        call, sizes = call_of(spec, weights.dtype, batch, rays), numbers(2)
        arguments = ctypes.byref(call), ctypes.byref(rendering)
        self.library.render_backward_sizes(*arguments, sizes)
        partial = nan(sizes[0], batch, spec.parameter_count)
        grad_values, workspace = torch.full_like(values, float("nan")), nan(sizes[1] // 4 + 1)
        self.library.render_backward(
            *arguments, at(weights), at(origins), at(directions), at(values), at(grad),
            at(grad_values), at(partial), at(workspace),
        )  # fmt: skip
        return partial.sum(0)

    def composite(
        self, rendering: RenderCall, values: Tensor, t: Tensor, scale: Tensor, grad: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
        """Rays (R, 5), and the gradients of values, t and scale for theirs."""
        rays = ctypes.c_int64(values.shape[0])
        samples = at(values), at(t), at(scale)
        out = nan(values.shape[0], 5)
        grads = (nan(*values.shape), nan(*t.shape), nan(*scale.shape))
        self.library.composite_forward(ctypes.byref(rendering), rays, *samples, at(out))
        self.library.composite_backward(
            ctypes.byref(rendering), rays, *samples, at(grad), *map(at, grads)
        )
        return out, grads
