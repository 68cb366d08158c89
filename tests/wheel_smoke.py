"""Whether an installed wheel works: ``python tests/wheel_smoke.py``, in an environment of its own.

It needs what the wheel needs, and no test tools.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

import ginr_fast
from ginr_fast.ops import native

SPEC = ginr_fast.FieldSpec(
    coord_dim=3, out_dim=4, hidden_dim=64, hidden_layers=2, activation="sine"
)


def field() -> torch.Tensor:
    bases = [torch.randn(4, *slot.shape) / 10 for slot in SPEC.slots]
    weights = ginr_fast.mixture_average(torch.full((2, SPEC.layers, 4), 0.25), bases, SPEC)
    return ginr_fast.field_mlp(torch.rand(500, 3), weights, SPEC)


def view() -> torch.Tensor:
    weights = torch.randn(2, SPEC.parameter_count) / 20
    rays = ginr_fast.camera_rays(ginr_fast.orbit_poses(2, 1.3), 8, 8, focal=8.2)
    return ginr_fast.volume_render(*rays, weights, SPEC, near=0.8, far=1.8, samples=16).color


def tokens() -> torch.Tensor:
    decoder = ginr_fast.LocalityAwareDecoder(token_dim=32, hidden_dim=32, feature_dim=32)
    return decoder(ginr_fast.grid(9, 9), torch.randn(2, 16, 32))


def main() -> None:
    package = Path(ginr_fast.__file__).resolve().parent
    source = Path(__file__).resolve().parents[1] / "ginr_fast"
    assert package != source, f"this tests the checkout, not a wheel: {package}"
    for call in (field, view, tokens):
        torch.manual_seed(0)
        found = call().detach()
        torch.manual_seed(0)
        with ginr_fast.backend("reference"):
            expected = call().detach()
        error = float((found - expected).norm() / expected.norm())
        assert error < 1e-4, f"{call.__name__}: {error}"
    info = native.build_info()
    assert info["cpu_path"] in info["cpu_paths_usable"]
    command = Path(sys.executable).with_name("ginr-fast")
    shown = subprocess.run([command, "info"], stdout=subprocess.PIPE, text=True).stdout
    assert f"ginr_fast {ginr_fast.__version__}" in shown, "ginr-fast info failed"
    print(f"ginr_fast {ginr_fast.__version__} in {package}: vector path {info['cpu_path']}")


if __name__ == "__main__":
    main()
