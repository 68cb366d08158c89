"""Features of images, in which sets of images are compared: a small formula, or Inception weights.

The Fréchet distance and its kin compare two sets of images by what a network makes of them. The
papers take Inception's features; its weights are the user's to bring. Where there are none, the
small network below ranks sets of images too: its distances mean something among themselves, and
nothing beside a published FID.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from itertools import chain
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from ginr_fast.ops.checks import check_tensor

# Any change to these is another network, with another name.
_SIZE = 64
_LEVELS = 4
_KERNEL = 7
_ANGLES = 4
_CELLS = 4
_FREQUENCY = 3 * math.pi / 4
_SPREAD = 1.2
_GAIN = 3.0  # texture varies about as much as layout over photographs
_QUANTUM = 1 / 255  # texture below what 8 bits hold counts little
_AT_ONCE = 16


class Features(NamedTuple):
    """What a network makes of images.

    Args:
        features: ``(B, F)``.
        logits: ``(B, classes)``, unnormalised logarithms of class probabilities; None if the
            network has no classes.
    """

    features: torch.Tensor
    logits: torch.Tensor | None = None


class FeatureNetwork(nn.Module, ABC):
    """A fixed network that images are compared in; never trained.

    As a module it maps images to features alone, so that it serves torchmetrics as ``feature=``.

    Args:
        name: what its distances are reported under.
        num_features: F.
        num_classes: of its logits; 0 without.
    """

    def __init__(self, name: str, num_features: int, num_classes: int = 0) -> None:
        super().__init__()
        self.name, self.num_features, self.num_classes = name, num_features, num_classes

    @property
    def device(self) -> torch.device:
        """Where it is; the CPU if it holds nothing."""
        held = next(chain(self.parameters(), self.buffers()), None)
        return torch.device("cpu") if held is None else held.device

    @abstractmethod
    def describe(self, images: torch.Tensor, classes: bool = True) -> Features:
        """Features, and logits where there are any.

        Args:
            images: ``(B, 3, H, W)``, floating point in [0, 1] or uint8.
            classes: whether logits are wanted; without, a network may save what they cost.

        Raises:
            TypeError, ValueError: another dtype or shape.
        """

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Features of images, ``(B, num_features)``."""
        return self.describe(images, classes=False).features


class SmallFeatures(FeatureNetwork):
    """The small feature network, ``small-1``: a formula, the same on every machine to rounding.

    An image is resized to 64×64 (bilinear, antialiased) and its colours turned into an orthonormal
    brightness and two differences. Its features are

    - its layout: the mean of each colour in 4×4 cells (48 values);
    - its texture: at four scales, one an octave, in four directions and in each colour, the mean m
      and the standard deviation s over the image of |x ⋆ ψ|, ψ a Morlet wavelet of gain about 1:
      the first order of a scattering transform (Mallat, 2012), with the spread that tells sharp
      edges from noise of the same energy. The features are 3·√(m + 1/255) and 3·√(s + 1/255)
      (96 values).

    Natural images have about the same energy in every octave, so that no scale dominates.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.features import SmallFeatures
        >>> SmallFeatures()(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 144])
    """

    colors: torch.Tensor
    wavelets: torch.Tensor

    def __init__(self) -> None:
        super().__init__("small-1", 3 * _CELLS**2 + 2 * 3 * _LEVELS * _ANGLES)
        # Formulas in float64 first: their float32 values are then the same everywhere.
        colors = torch.tensor([[1, 1, 1], [1, -1, 0], [1, 1, -2]], dtype=torch.float64)
        self.register_buffer("colors", (colors / colors.norm(dim=1, keepdim=True)).float())
        self.register_buffer("wavelets", _wavelets().float())

    def describe(self, images: torch.Tensor, classes: bool = True) -> Features:
        # A few at a time: their wavelet coefficients then stay in cache.
        parts = as_floats(images).split(_AT_ONCE)
        return Features(torch.cat([self._described(part) for part in parts]))

    def _described(self, images: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(images, (_SIZE, _SIZE), mode="bilinear", antialias=True)
        x = torch.einsum("kc,bchw->bkhw", self.colors, x)
        found = [F.adaptive_avg_pool2d(x, _CELLS).flatten(1)]
        for level in range(_LEVELS):
            x = F.avg_pool2d(x, 2) if level else x
            padded = F.pad(x, (_KERNEL // 2,) * 4, mode="reflect").flatten(0, 1)
            real, imaginary = F.conv2d(padded[:, None], self.wavelets).flatten(2).chunk(2, dim=1)
            squares = real.square() + imaginary.square()
            mean = squares.sqrt().mean(2)
            spread = (squares.mean(2) - mean.square()).clamp(min=0).sqrt()
            texture = torch.stack([mean, spread], 1)
            found.append(_GAIN * (texture + _QUANTUM).sqrt().reshape(len(images), 6 * _ANGLES))
        return torch.cat(found, dim=1)


def small_features(images: torch.Tensor) -> torch.Tensor:
    """The features ``small-1`` of images: see :class:`SmallFeatures`.

    Args:
        images: ``(B, 3, H, W)``, floating point in [0, 1] or uint8.

    Returns:
        ``(B, 144)``, float32, on the images' device.

    Raises:
        TypeError, ValueError: another dtype or shape.

    Example:
        >>> import torch
        >>> from ginr_fast.generation.features import small_features
        >>> round(float(small_features(torch.full((1, 3, 8, 8), 0.5))[0, 0]), 4)
        0.866
    """
    check_tensor("images", images, ("B", 3, "H", "W"))
    return SmallFeatures().to(images.device)(images)


def as_floats(images: torch.Tensor) -> torch.Tensor:
    """Images as float32 in [0, 1].

    Args:
        images: ``(B, 3, H, W)``, floating point in [0, 1] or uint8.

    Raises:
        TypeError, ValueError: another dtype or shape.
    """
    check_tensor("images", images, ("B", 3, "H", "W"))
    if images.dtype == torch.uint8:
        return images.float() / 255
    if not images.is_floating_point():
        raise TypeError(f"images: expected uint8 or floating point in [0, 1], got {images.dtype}")
    return images.float()


def as_bytes(images: torch.Tensor) -> torch.Tensor:
    """Images as uint8, rounded as a PNG would hold them: the other way of :func:`as_floats`."""
    if images.dtype == torch.uint8:
        return images
    return (as_floats(images).clamp(0, 1) * 255).round().to(torch.uint8)


def _wavelets() -> torch.Tensor:
    """Morlet wavelets of 3π/4 a pixel, ``(2 · angles, 1, 7, 7)``, float64, real parts first."""
    axis = torch.arange(_KERNEL, dtype=torch.float64) - _KERNEL // 2
    row, column = torch.meshgrid(axis, axis, indexing="ij")
    window = torch.exp(-(row.square() + column.square()) / (2 * _SPREAD**2))
    window = window / window.sum()
    parts: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
    for index in range(_ANGLES):
        angle = math.pi * index / _ANGLES
        phase = _FREQUENCY * (math.cos(angle) * column + math.sin(angle) * row)
        # No response to a flat image.
        mean = (window * phase.cos()).sum()
        parts[0].append(window * (phase.cos() - mean))
        parts[1].append(window * phase.sin())
    return torch.stack([*parts[0], *parts[1]])[:, None]
