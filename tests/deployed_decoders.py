"""Every public decoder, small, with inputs of any size: for tests of where decoders run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

import ginr_fast

IMAGE = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=64, hidden_layers=2)
SCENE = ginr_fast.FieldSpec(
    coord_dim=3, out_dim=4, hidden_dim=64, hidden_layers=1, activation="sine", w0=10.0
)


class Renderer(nn.Module):
    """Volume rendering as a module: colour, opacity and depth in one tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = ginr_fast.FieldDecoder(SCENE)

    def forward(self, origins: Tensor, directions: Tensor, weights: Tensor) -> Tensor:
        found = self.decoder.render(origins, directions, weights, near=0.8, far=1.8, samples=32)
        return torch.cat((found.color, found.opacity[..., None], found.depth[..., None]), -1)


class Case(NamedTuple):
    """A decoder.

    Args:
        make: the module.
        latent: shape of what an instance is decoded from.
        coordinates: of a point, or 0 for rays.
    """

    make: Callable[[], nn.Module]
    latent: tuple[int, ...]
    coordinates: int = 2

    def module(self, device: str = "cpu") -> nn.Module:
        torch.manual_seed(0)
        return self.make().to(device)

    def inputs(self, batch: int, count: int, device: str = "cpu") -> tuple[Tensor, ...]:
        """``count`` coordinates or rays of each of ``batch`` instances, and the instances."""
        torch.manual_seed(batch * count)
        latents = torch.randn(batch, *self.latent, device=device)
        if self.coordinates:
            points = torch.rand(batch, count, self.coordinates, device=device) * 2 - 1
            return points, latents
        origins = torch.rand(batch, count, 3, device=device) * 0.1
        directions = torch.randn(batch, count, 3, device=device)
        return origins, nn.functional.normalize(directions, dim=-1), 0.3 * latents


# Eleven tokens: the sizes of one call must differ, as torch.compile takes equal ones for one size.
DECODERS: dict[str, Case] = {
    "locality": Case(
        lambda: ginr_fast.LocalityAwareDecoder(token_dim=12, hidden_dim=64, feature_dim=64),
        (11, 12),
    ),
    "anr": Case(
        lambda: ginr_fast.AnrDecoder(
            token_dim=12, hidden_dim=64, heads=2, head_dim=16, depth=3, max_frequency=8.0
        ),
        (11, 12),
    ),
    "field": Case(lambda: ginr_fast.FieldDecoder(IMAGE, 0.5, 0.5), (IMAGE.parameter_count,)),
    "grouped field": Case(
        lambda: ginr_fast.GroupedFieldDecoder(IMAGE, token_dim=12, groups=(4, 4, 2, 1)), (11, 12)
    ),
    "pattern field": Case(
        lambda: ginr_fast.PatternFieldDecoder(IMAGE, token_dim=12, tokens=11), (11, 12)
    ),
    "rendering": Case(Renderer, (SCENE.parameter_count,), 0),
}
