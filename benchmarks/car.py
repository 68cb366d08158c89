"""A synthetic car in a field of mNIF (S)'s size, trained on the spot."""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

import ginr_fast
from ginr_fast.data.cars import FAR, NEAR, CarsConfig, make_cars
from ginr_fast.data.srn import Scene, SrnScenes
from ginr_fast.fields import FieldSpec
from ginr_fast.rays import camera_rays

SPEC = FieldSpec(coord_dim=3, out_dim=4, hidden_dim=64, hidden_layers=4, activation="sine")
SAMPLES = 32
_RAYS = 1024


@dataclass(frozen=True)
class Car:
    """A trained field and one view of it that was not trained on."""

    weights: Tensor
    origins: Tensor
    """(1, 128², 3)"""
    directions: Tensor
    psnr: float
    """Of that view, in dB."""


@functools.cache
def trained_car(device: str, steps: int) -> Car:
    """Steps of 1,024 rays; with a penalty on density in empty space (Cauchy, as SNeRG,
    arXiv 2103.14645, has it), without which a field fills the air before a white wall with white
    haze."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        make_cars(folder, CarsConfig(scenes=1, views=50, test_scenes=1, test_views=4, size=128))
        train, novel = (
            SrnScenes(folder, f"cars_{split}").scene(0) for split in ("train", "train_novel")
        )
    origins, directions, colors = _rays(train, device)
    weights = _initial(device).requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=5e-4)
    for step in range(steps):
        chosen = torch.randint(origins.shape[0], (_RAYS,), device=device)
        seen = _render(origins[chosen], directions[chosen], weights, seed=step)
        points = 1.2 * (2 * torch.rand(1, 2 * _RAYS, 3, device=device) - 1)
        density = F.elu(ginr_fast.field_mlp(points, weights, SPEC)[..., -1], 0.1) + 0.1
        loss = F.mse_loss(seen, colors[chosen]) + 0.03 * torch.log1p(2 * density.square()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weights = weights.detach()
    origins, directions, colors = (part[: 128 * 128] for part in _rays(novel, device))
    error = F.mse_loss(_render(origins, directions, weights), colors).item()
    return Car(weights, origins[None], directions[None], -10 * math.log10(error))


def _rays(scene: Scene, device: str) -> tuple[Tensor, Tensor, Tensor]:
    height, width = scene.images.shape[1:3]
    rays = camera_rays(scene.poses, height, width, scene.focal, scene.center)
    colors = scene.images.float() / 255
    origins, directions, colors = (part.reshape(-1, 3).to(device) for part in (*rays, colors))
    return origins, directions, colors


def _render(
    origins: Tensor, directions: Tensor, weights: Tensor, seed: int | None = None
) -> Tensor:
    rays = origins[None], directions[None]
    rendered = ginr_fast.volume_render(
        *rays, weights, SPEC, near=NEAR, far=FAR, samples=SAMPLES, seed=seed
    )
    return rendered.color[0]


def _initial(device: str) -> Tensor:
    """SIREN's initial weights (arXiv 2006.09661), with thin air and grey for a start."""
    parameters = []
    for slot in SPEC.slots:
        fan_in = slot.shape[-1]
        bound = 1 / fan_in if slot.layer == 0 else (6 / fan_in) ** 0.5 / SPEC.w0
        value = (2 * torch.rand(1, *slot.shape, device=device) - 1) * bound
        parameters.append(value if slot.kind == "weight" else torch.zeros_like(value))
    parameters[-1] = torch.tensor([[0.5, 0.5, 0.5, -2.0]], device=device)
    return SPEC.pack(parameters)
