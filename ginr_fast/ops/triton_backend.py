"""Whether the Triton backend can serve a call, decided without importing Triton."""

from __future__ import annotations

import importlib.metadata
import os
import re

import torch
from torch import Tensor

from ginr_fast.fields import FieldSpec

OLDEST = (3, 4)
# Operands of a head lie in shared memory, those of float32 split in three.
WIDEST_HEAD = {torch.float32: 256, torch.bfloat16: 512, torch.float16: 512}
MOST_AXES = 6
WIDEST_FIELD = 512
MOST_CHANNELS = 16
WIDEST_LAYER = 32768
"""Of weights that are made: a launch has at most 65,535 programs along an axis."""


def _missing() -> str | None:
    """Why Triton cannot be used in this installation at all, or None."""
    try:
        version = importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "Triton is not installed"
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        return f"Triton {OLDEST[0]}.{OLDEST[1]} or newer is needed, found {version}"
    return None


_MISSING = _missing()


def interpreted() -> bool:
    """Whether Triton's interpreter is on, which runs kernels on a CPU for testing."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _device_refusal(index: int) -> str | None:
    if torch.version.hip is not None:
        return "the kernels are for NVIDIA GPUs"
    major, minor = torch.cuda.get_device_capability(index)
    if major < 8:
        return f"compute capability 8.0 or newer is needed, found {major}.{minor}"
    return None


# What torch.compiler.assume_constant_result does. Called here, that would import the compiler,
# which takes longer than all the rest of this library.
_device_refusal._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _unusable(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why no kernel can run on tensors of a device and dtype, or None."""
    if _MISSING is not None:
        return _MISSING
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        reason = _device_refusal(index)
        if reason is not None:
            return reason
    elif device.type != "cpu" or not interpreted():
        return f"it runs on a GPU, and the tensors are on {device.type}"
    if dtype not in WIDEST_HEAD:
        return f"it computes in float32, bfloat16 or float16, not {dtype}"
    return None


def field_refusal(spec: FieldSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the Triton kernels of ``field_mlp`` cannot serve fields of a spec, or None if they can.

    Args:
        spec: what the fields are.
        dtype: of their weights.
        device: of the same.
    """
    reason = _unusable(device, dtype)
    if reason is not None:
        return reason
    if spec.view_dim:
        return "it serves fields without a view branch"
    if spec.hidden_dim > WIDEST_FIELD:
        return f"a field is at most {WIDEST_FIELD} wide, got {spec.hidden_dim}"
    if spec.out_dim > MOST_CHANNELS:
        return f"a field has at most {MOST_CHANNELS} outputs, got {spec.out_dim}"
    if spec.coord_dim > MOST_AXES:
        return f"a coordinate has at most {MOST_AXES} components, got {spec.coord_dim}"
    return None


def weights_refusal(spec: FieldSpec, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the Triton kernels that make packed weights cannot serve a spec, or None if they can."""
    reason = _unusable(device, dtype)
    if reason is not None:
        return reason
    widest = max(max(shape) for shape in spec.layer_shapes)
    if widest > WIDEST_LAYER:
        return f"a layer is at most {WIDEST_LAYER} wide, got {widest}"
    return None


def refusal(coords: Tensor, grid_shape: list[int], keys: Tensor, values: Tensor) -> str | None:
    """Why the Triton kernels of a token decoder cannot serve a call, or None if they can."""
    reason = _unusable(keys.device, keys.dtype)
    if reason is not None:
        return reason
    if coords.dtype != torch.float32:
        return f"it takes float32 coordinates, not {coords.dtype}"
    if len(grid_shape) > MOST_AXES:
        return f"a grid has at most {MOST_AXES} axes, got {len(grid_shape)}"
    widest = max(keys.shape[-1], values.shape[-1])
    if widest > WIDEST_HEAD[keys.dtype]:
        return f"in {keys.dtype} a head is at most {WIDEST_HEAD[keys.dtype]} wide, got {widest}"
    return None


def order(device: torch.device, reason: str | None) -> dict[str, str | None]:
    """Backends of a token decoder for :func:`~ginr_fast.ops.dispatch.choose`: Triton first on a
    GPU, last on a CPU, where only its interpreter runs."""
    if device.type == "cuda":
        return {"triton": reason, "blocked": None, "reference": None}
    return {"blocked": None, "reference": None, "triton": reason}
