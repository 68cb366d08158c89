"""FFNet: a Fourier feature network fitted to one image, the baseline without any training data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.fields import FieldSpec
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.field_mlp.op import field_mlp
from ginr_fast.systems.fit_instances import point_draw
from ginr_fast.systems.fitting import FittingOptions, minimise
from ginr_fast.systems.image_rendering import output_size

# Features formed in one go by `render`: bounds its memory, whatever the output's size.
_FEATURES_AT_ONCE = 1 << 25


@dataclass(frozen=True)
class FfnetConfig:
    """The sizes of an FFNet; the defaults are those of its authors' code for images.

    Args:
        channels: colour channels.
        hidden_dim: width of the MLP.
        layers: its layers, the last one included.
        features: m, random frequencies; the MLP reads 2m numbers.
        scale: σ of the frequencies, in cycles over an image's side.

    Raises:
        TypeError, ValueError: a value of the wrong kind or out of range, by name.
    """

    channels: int = 3
    hidden_dim: int = 256
    layers: int = 4
    features: int = 256
    scale: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("channels", 1), ("hidden_dim", 1), ("layers", 2), ("features", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}: expected an integer from {least} up, got {value!r}")
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale: expected above 0, got {self.scale}")

    @property
    def spec(self) -> FieldSpec:
        """The MLP as a field over Fourier features."""
        return FieldSpec(
            coord_dim=2 * self.features,
            out_dim=self.channels,
            hidden_dim=self.hidden_dim,
            hidden_layers=self.layers - 2,
        )


class Ffnet(nn.Module):
    """Fourier feature networks of several images, one MLP each (Tancik et al., NeurIPS 2020).

    ``γ(v) = [cos(2π B v), sin(2π B v)]`` with ``B ~ N(0, σ²)`` drawn once, then an MLP with ReLU
    and a sigmoid at its end (arXiv:2006.10739, section 6; LA-GINR, arXiv:2310.05624, Figure 7).
    v is (row, column) in [0, 1]², here made from the library's [-1, 1]². All images have the same
    B; their MLPs, packed rows of one parameter, are evaluated as a batch of fields, so that none
    influences another.

    Args:
        config: the sizes.
        images: how many.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.systems.ffnet import Ffnet, FfnetConfig
        >>> model = Ffnet(FfnetConfig(hidden_dim=16, layers=3, features=8), images=2)
        >>> model.decode(ginr_fast.grid(5, 7)).shape
        torch.Size([2, 5, 7, 3])
    """

    frequencies: Tensor

    def __init__(self, config: FfnetConfig | None = None, images: int = 1) -> None:
        super().__init__()
        self.config = config = config or FfnetConfig()
        self.register_buffer("frequencies", torch.randn(config.features, 2) * config.scale)
        spec = config.spec
        parts = []
        for rows, columns in spec.layer_shapes:
            # The variance of a ReLU network's values is kept (arXiv:1502.01852).
            parts += [torch.randn(images, rows * columns) * math.sqrt(2 / columns)]
            parts += [torch.zeros(images, rows)]
        self.weights = nn.Parameter(torch.cat(parts, dim=1))

    def features(self, coords: Tensor | CoordinateGrid) -> Tensor:
        """γ of coordinates, ``(..., 2)`` or a grid, to ``(..., 2m)``, in float32 at least."""
        points = coords.tensor() if isinstance(coords, CoordinateGrid) else coords
        dtype = torch.promote_types(self.frequencies.dtype, torch.float32)
        phases = math.pi * ((points.to(dtype) + 1) @ self.frequencies.to(dtype).T)
        return torch.cat([phases.cos(), phases.sin()], dim=-1)

    def forward(self, features: Tensor) -> Tensor:
        """Values from what :meth:`features` gives: training forms that once, not in every step.

        Args:
            features: ``(..., 2m)``, of coordinates shared by all images.

        Returns:
            ``(B, ..., channels)``, in [0, 1].
        """
        flat = features.reshape(-1, features.shape[-1])
        values = field_mlp(flat, self.weights, self.config.spec).sigmoid()
        return values.unflatten(1, features.shape[:-1])

    def decode(self, coords: Tensor | CoordinateGrid) -> Tensor:
        """Values at coordinates.

        Args:
            coords: ``(..., 2)`` in [-1, 1]², shared by all images, or a grid.

        Returns:
            ``(B, ..., channels)``, in [0, 1].
        """
        return self(self.features(coords))

    @torch.no_grad()
    def render(self, height: int, width: int) -> Tensor:
        """The images at any size, in bounded memory.

        Args:
            height: rows.
            width: columns.

        Returns:
            ``(B, channels, height, width)``, in [0, 1].
        """
        points = grid(height, width, device=self.weights.device).tensor().reshape(-1, 2)
        block = max(1, _FEATURES_AT_ONCE // (2 * self.config.features))
        values = torch.cat([self.decode(part) for part in points.split(block)], dim=1)
        return values.transpose(1, 2).unflatten(2, (height, width))

    def reconstruct(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """The fitted images at ``scale`` times the size of ``images``, which only give that size.

        Args:
            images: ``(B, channels, H, W)``.
            scale: output pixels per input pixel along each axis; any positive number.

        Returns:
            ``(B, channels, round(H · scale), round(W · scale))``, in [0, 1].

        Raises:
            TypeError, ValueError: another number of images, or a scale that leaves no pixel.
        """
        check_tensor("images", images, (len(self.weights), self.config.channels, "H", "W"))
        return self.render(*(output_size(size, scale) for size in images.shape[2:]))


def fit_ffnet(
    images: Tensor,
    config: FfnetConfig | None = None,
    options: FittingOptions | None = None,
    on_step: Callable[[int, Ffnet], bool | None] | None = None,
) -> Ffnet:
    """Fit networks to images from a random start.

    Args:
        images: ``(B, channels, H, W)``, values in [0, 1].
        config: the sizes.
        options: how many steps, the learning rate (1e-3 if None), pixels a step, and the seed of
            frequencies and weights; its target has no meaning here. 2,000 steps by default.
        on_step: called after each step with the number of steps done and the networks as they are
            then; True ends the fit there.

    Returns:
        The fitted networks, on the device of the images.

    Raises:
        TypeError, ValueError: images that are not as they should be, or more points than pixels.
    """
    config = config or FfnetConfig()
    options = options or FittingOptions(steps=2000, target="weights")
    check_tensor("images", images, ("B", config.channels, "H", "W"))
    if not images.is_floating_point():
        raise TypeError(f"images: expected floating point in [0, 1], got {images.dtype}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        model = Ffnet(config, len(images)).to(images.device)
    where = grid(*images.shape[2:], device=images.device)
    draw = point_draw(where, images.permute(0, 2, 3, 1), options)
    # The same in every step, if all pixels are seen.
    known = model.features(where) if draw(0).coords is where else None

    def errors(step: int) -> Tensor:
        samples = draw(step)
        found = model(model.features(samples.coords) if known is None else known)
        return (found - samples.values).square().flatten(1).mean(1)

    def after(step: int) -> bool:
        return on_step is not None and bool(on_step(step, model))

    minimise([model.weights], errors, options.steps, options.learning_rate or 1e-3, after)
    return model
