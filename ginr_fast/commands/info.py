"""``ginr-fast info``."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata

from ginr_fast.commands import common

_PACKAGES = ("torch", "triton", "numpy", "lightning", "torchmetrics", "scikit-image", "safetensors")


@dataclass(frozen=True)
class InfoArguments:
    """Versions, devices, the compiled extension and the backends, for a bug report."""


def main(arguments: Sequence[str]) -> None:
    """Run the command."""
    common.parse(InfoArguments, arguments, "info")
    for title, lines in sections().items():
        print(f"{title}:")
        for line in lines:
            print(f"  {line}")


def sections() -> dict[str, list[str]]:
    """What is printed, by title."""
    import ginr_fast

    return {
        "versions": [
            f"ginr_fast {ginr_fast.__version__}",
            f"Python {platform.python_version()} on {platform.platform()}",
            *(f"{name} {_version(name)}" for name in _PACKAGES),
        ],
        "devices": _devices(),
        "compiled extension": _extension(),
        "backends": _backends(),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    import torch

    lines = [f"CPU: {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        memory = found.total_memory / 2**30
        lines.append(f"cuda:{index}: {found.name}, sm_{found.major}{found.minor}, {memory:.0f} GiB")
    return lines if torch.cuda.is_available() else [*lines, "no CUDA device"]


def _extension() -> list[str]:
    try:
        from ginr_fast.ops.native import build_info

        built = build_info()
    except ImportError as error:
        return [f"not usable: {error}"]
    cuda = "no, built for CPU only"
    if built["cuda"]:
        cuda = f"{built['cuda']} for {', '.join(built['cuda_archs'])}"
    return [
        f"compiler: {built['compiler']}",
        f"vector paths: {', '.join(built['cpu_paths'])}; in use: {built['cpu_path']}",
        f"float32 products: {_products(built['cpu_path'])}",
        f"CUDA: {cuda}",
    ]


def _products(path: str) -> str:
    import torch

    if path != "amx":
        return "at full precision; no AMX in use"
    setting = "torch.set_float32_matmul_precision"
    try:
        now = repr(torch.get_float32_matmul_precision())
    except RuntimeError:
        now = "set in torch.backends"
    return f'wide fields on AMX, others under {setting}("high"); it is {now}'


def _backends() -> list[str]:
    import torch

    import ginr_fast
    from ginr_fast.ops import dispatch

    forced = os.environ.get(dispatch.ENVIRONMENT_VARIABLE)
    lines = [f"forced by {dispatch.ENVIRONMENT_VARIABLE}: {forced or 'none'}"]
    decoder = ginr_fast.LocalityAwareDecoder(token_dim=8, hidden_dim=16, feature_dim=16)
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    for device in devices:
        tokens = torch.zeros(1, 4, 8, device=device)
        where = ginr_fast.grid(4, 4, device=device)
        for plan in ginr_fast.explain(decoder.to(device), where, tokens).plans:
            refused = "".join(f"; not {name}: {why}" for name, why in plan.refused.items())
            lines.append(f"{plan.operator} on {device}: {plan.backend}{refused}")
    return lines
