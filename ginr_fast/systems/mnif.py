"""mNIF: generative neural fields by mixtures of neural implicit functions (NeurIPS 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.fields import FieldSpec
from ginr_fast.ops.checks import check_count, check_tensor
from ginr_fast.ops.mixture_average.op import mixture_average
from ginr_fast.ops.volume_render.convention import RenderedRays
from ginr_fast.ops.volume_render.random import Seed

Modality = Literal["image", "voxels", "scene"]
Coefficients = Literal["latent", "layerwise", "shared"]

# Coordinates, values and what follows the last layer.
_FIELDS: Mapping[str, tuple[int, int, Literal["sine", "none"]]] = {
    "image": (2, 3, "sine"),
    "voxels": (3, 1, "sine"),
    "scene": (3, 4, "none"),
}


@dataclass(frozen=True)
class MnifConfig:
    """The sizes of an mNIF; the defaults are those of mNIF (S) for images.

    Args:
        modality: image: (row, column) in [-1, 1]² to RGB in [-1, 1]; voxels: a point in [-1, 1]³ to
            an occupancy, -1 outside and 1 inside; scene: a point of the world to RGB in [0, 1]
            and density, both before the renderer's activations. Images and voxels have a sine
            after the last layer too, scenes have none.
        hidden_layers: L, the W×W layers between the first and the last.
        hidden_dim: W.
        mixtures: M, the number of basis networks.
        latent_dim: H, width of a latent; only for ``coefficients = "latent"``.
        coefficients: latent: projected from a latent, eq. 10; layerwise: a latent is the
            coefficients of every layer; shared: it is the coefficients that all layers share.
        w0: frequency factor of the sines.
        initial_gain: bases start this many times as large as a SIREN. 1 is published; √M makes the
            average that training starts from a SIREN, which learns sooner.
        initial_color: (scene) the colour that fields start about. 0 is published; a half lies
            between the white background and what is seen before it.
        initial_density: (scene) the density, before its activation, that fields start about. 0 is
            published; above, the samples before the last one are seen from the first step on.
        near: (scene) where rays start, in units of a ray's direction.
        far: (scene) where they end.
        samples: (scene) field evaluations along a ray.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range, by name.
    """

    modality: Modality = "image"
    hidden_layers: int = 4
    hidden_dim: int = 64
    mixtures: int = 256
    latent_dim: int = 1024
    coefficients: Coefficients = "latent"
    w0: float = 30.0
    initial_gain: float = 1.0
    initial_color: float = 0.0
    initial_density: float = 0.0
    near: float = 0.8
    far: float = 1.8
    samples: int = 32

    def __post_init__(self) -> None:
        for name, choices in (("modality", Modality), ("coefficients", Coefficients)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}: expected one of {', '.join(get_args(choices))}, "
                    f"got {getattr(self, name)!r}"
                )
        for name in ("mixtures", "latent_dim", "samples"):
            check_count(name, getattr(self, name))
        if not 0 < self.initial_gain < math.inf:
            raise ValueError(f"initial_gain: expected above 0, got {self.initial_gain}")
        for name in ("initial_color", "initial_density"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name}: expected a number, got {getattr(self, name)}")
        if not 0 <= self.near < self.far < math.inf:
            raise ValueError(f"near, far: expected 0 <= near < far, got {self.near}, {self.far}")
        _ = self.spec  # names what is wrong with the field's sizes

    @cached_property
    def spec(self) -> FieldSpec:
        """The field of one instance."""
        coord_dim, out_dim, last = _FIELDS[self.modality]
        return FieldSpec(
            coord_dim=coord_dim,
            out_dim=out_dim,
            hidden_dim=self.hidden_dim,
            hidden_layers=self.hidden_layers,
            activation="sine",
            w0=self.w0,
            out_activation=last,
        )

    @property
    def context_dim(self) -> int:
        """Width of what represents an instance: H, layers·M or M."""
        layers = {"latent": 0, "layerwise": self.spec.layers, "shared": 1}[self.coefficients]
        return layers * self.mixtures or self.latent_dim

    @property
    def context_mean(self) -> float:
        """The latent that gives every basis the coefficient 1/M at the start (Appendix A.2.4)."""
        return 0.0 if self.coefficients == "latent" else 1 / self.mixtures


MNIF_SIZES: Mapping[str, MnifConfig] = {
    "images-s": MnifConfig(mixtures=256, latent_dim=1024),
    "images-l": MnifConfig(hidden_layers=5, hidden_dim=128, mixtures=384, latent_dim=512),
    "voxels-s": MnifConfig("voxels", mixtures=256, latent_dim=512, w0=50.0),
    "voxels-l": MnifConfig("voxels", 5, 128, mixtures=512, latent_dim=1024),
    "scenes-s": MnifConfig("scene", mixtures=256, latent_dim=128),
}
"""The published sizes, mNIF (S) and (L); for scenes there is (S) only (Appendix A.2)."""


class Mnif(nn.Module):
    """An instance's network is the weighted average of M basis networks (eq. 6-10).

    ``latent`` is what represents B instances: ``(B, config.context_dim)``, a latent φ from which
    the coefficients are projected (α = T φ + b, where b starts at 1/M), or the coefficients
    themselves. Coordinates and values are those of :class:`MnifConfig`.

    Args:
        config: the sizes.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.mnif import Mnif, MnifConfig
        >>> model = Mnif(MnifConfig(hidden_layers=2, hidden_dim=16, mixtures=8, latent_dim=12))
        >>> latent = model.initial_latents(torch.randn(5, 12), std=1e-4)
        >>> model.weights(latent).shape[1] == model.config.spec.parameter_count
        True
        >>> model.decode(ginr_fast.grid(4, 6), latent).shape
        torch.Size([5, 4, 6, 3])
    """

    def __init__(self, config: MnifConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or MnifConfig()
        self.bases = nn.ParameterList(
            torch.empty(config.mixtures, *slot.shape) for slot in config.spec.slots
        )
        self.decoder = FieldDecoder(config.spec)
        self.projection: nn.Linear | None = None
        if config.coefficients == "latent":
            # The published layout: outputs are (M, layers), layers innermost.
            self.projection = nn.Linear(config.latent_dim, config.mixtures * config.spec.layers)
            nn.init.constant_(self.projection.bias, 1 / config.mixtures)
        self._initialise_bases()

    @torch.no_grad()
    def _initialise_bases(self) -> None:
        """Each basis as a SIREN (arXiv:2006.09661, section 3.2), times ``initial_gain``."""
        config = self.config
        for slot, base in zip(config.spec.slots, self.bases, strict=True):
            fan_in = config.spec.layer_shapes[slot.layer][1]
            if slot.kind == "bias":
                bound = 1 / math.sqrt(fan_in)
            else:
                bound = math.sqrt(6 / fan_in) / config.w0 if slot.layer else 1 / fan_in
            base.uniform_(-bound, bound).mul_(config.initial_gain)
        if config.modality == "scene":
            self.bases[-1][:, :-1] += config.initial_color
            self.bases[-1][:, -1] += config.initial_density

    def initial_latents(self, noise: torch.Tensor, std: float) -> torch.Tensor:
        """Latents that training starts from: N(0, σ²) about the uniform mixture.

        Args:
            noise: ``(B, context_dim)``, standard normal.
            std: σ; for coefficients it counts in units of 1/M.
        """
        mean = self.config.context_mean
        return mean + noise * (std * (mean or 1.0))

    def coefficients(self, latent: torch.Tensor) -> torch.Tensor:
        """Mixture coefficients α (eq. 10).

        Args:
            latent: ``(B, context_dim)``.

        Returns:
            ``(B, layers, M)``.

        Raises:
            TypeError, ValueError: no such tensor.
        """
        config = self.config
        check_tensor("latent", latent, ("B", config.context_dim))
        layers, mixtures = config.spec.layers, config.mixtures
        if self.projection is not None:
            return self.projection(latent).view(-1, mixtures, layers).transpose(1, 2)
        if config.coefficients == "shared":
            return latent[:, None].expand(-1, layers, -1)
        return latent.view(-1, layers, mixtures)

    def weights(self, latent: torch.Tensor) -> torch.Tensor:
        """Packed weights of the instances' networks (eq. 8, 9).

        Args:
            latent: ``(B, context_dim)``.

        Returns:
            ``(B, P)``, for ``ginr_fast.field_mlp`` and ``ginr_fast.volume_render``.
        """
        return mixture_average(self.coefficients(latent), list(self.bases), self.config.spec)

    def decode(self, coords: torch.Tensor | CoordinateGrid, latent: torch.Tensor) -> torch.Tensor:
        """Values at coordinates.

        Args:
            coords: ``(B, ..., d)``, ``(..., d)`` shared by the batch, or a grid.
            latent: ``(B, context_dim)``.

        Returns:
            ``(B, ..., out)``.
        """
        return self.decoder(coords, self.weights(latent))

    def forward(self, coords: torch.Tensor | CoordinateGrid, latent: torch.Tensor) -> torch.Tensor:
        """:meth:`decode`."""
        return self.decode(coords, latent)

    def render(
        self,
        origins: torch.Tensor,
        directions: torch.Tensor,
        latent: torch.Tensor,
        samples: int | None = None,
        seed: Seed | None = None,
    ) -> RenderedRays:
        """Colours along rays through scenes.

        Args:
            origins: ``(B, ..., 3)``.
            directions: ``(B, ..., 3)``, not normalised.
            latent: ``(B, context_dim)``.
            samples: field evaluations along a ray; the config's if None.
            seed: moves the samples within their intervals, the same way for the same seed; None
                leaves them where they are.

        Returns:
            colour ``(B, ..., 3)``, opacity and depth ``(B, ...)``.

        Raises:
            ValueError: not a model of scenes.
        """
        if self.config.modality != "scene":
            raise ValueError(
                f"render: expected a model of scenes, this is of {self.config.modality}"
            )
        return self.decoder.render(
            origins,
            directions,
            self.weights(latent),
            near=self.config.near,
            far=self.config.far,
            samples=samples or self.config.samples,
            convention="mnif",
            seed=seed,
        )
