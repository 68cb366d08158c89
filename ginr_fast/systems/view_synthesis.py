"""Few-shot view synthesis: posed views encoded into latent tokens, rays decoded into colours."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from ginr_fast.decoders.field import MAX_RAYS
from ginr_fast.encoders.views import RayChannels, ViewTokenizer
from ginr_fast.ops.checks import check_tensor
from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.rays import Focal, pixel_rays
from ginr_fast.systems.image_inr import EncoderConfig
from ginr_fast.systems.initialization import initialise_encoder


@dataclass(frozen=True)
class ViewInrConfig(EncoderConfig):
    """The sizes of an encoder of posed views; the defaults are the published ones at 128×128.

    Args:
        image_size: height and width of the support views, in pixels.
        patch_size: height and width of a patch, in pixels.
        camera_distance: of the cameras from the middle of a scene, in the scene's unit of length
            (4 in LearnIt-ShapeNet, 1.3 in SRN Cars). What a model is given of positions is
            relative to it, so that numbers have the same size whatever the unit.
        position_views: in how many views a patch has positions of its own, see
            :class:`~ginr_fast.encoders.ViewTokenizer`; 0 for none, as TransINR's code.

    Raises:
        ValueError: a ``camera_distance`` that is no positive number.
    """

    image_size: int = 128
    patch_size: int = 8
    camera_distance: float = 4.0
    position_views: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.camera_distance < math.inf:
            raise ValueError(
                f"camera_distance: expected a positive number, got {self.camera_distance}"
            )


class ViewInr(nn.Module, ABC):
    """Scenes encoded from a few posed views and shown along any rays.

    ``encode`` runs once a scene, for any number of support views in any order; ``color`` once a
    ray. Directions are not normalised (see :func:`ginr_fast.rays.camera_rays`). Images have values
    in [0, 1] and are centred before the encoder.

    Args:
        config: the sizes.
        decoder: of the tokens.
        latents: R, the tokens it decodes.
        token_dim: width of a token; None for the encoder's own.
    """

    rays: ClassVar[RayChannels]
    """What the encoder is told of a pixel's ray."""

    def __init__(
        self, config: ViewInrConfig, decoder: nn.Module, latents: int, token_dim: int | None
    ) -> None:
        super().__init__()
        self.config: Any = config  # a subclass knows its own
        self.make_encoder(latents, token_dim)
        self.decoder = decoder

    def make_encoder(self, latents: int, token_dim: int | None) -> None:
        """Make what :meth:`encode` runs: a Transformer over patches of views with their rays.

        Args:
            latents: R, the tokens of a scene.
            token_dim: their width; None for the Transformer's own.
        """
        config = self.config
        self.tokenizer = ViewTokenizer(
            config.image_size,
            config.patch_size,
            config.encoder_dim,
            self.rays,
            config.position_views,
        )
        self.encoder = config.encoder(latents, token_dim)
        initialise_encoder(self.tokenizer.patch_tokenizer, self.encoder)

    def encode(
        self, images: torch.Tensor, origins: torch.Tensor, directions: torch.Tensor
    ) -> torch.Tensor:
        """Latent tokens of scenes.

        Args:
            images: support views, ``(B, V, 3, image_size, image_size)``, values in [0, 1].
            origins: ``(B, V, image_size, image_size, 3)``, of the rays of their pixels.
            directions: the same shape.

        Returns:
            ``(B, latents, token_dim)``.

        Raises:
            TypeError: no floating-point tensors of one dtype. ValueError: another shape, or no
                view.
        """
        size = self.config.image_size
        check_tensor("images", images, ("B", "V", 3, size, size))
        if not images.is_floating_point():
            raise TypeError(f"images: expected floating point in [0, 1], got {images.dtype}")
        check_tensor("origins", origins, (*images.shape[:2], size, size, 3))
        origins = origins / self.config.camera_distance
        return self.encoder(self.tokenizer(images * 2 - 1, origins, directions))

    @abstractmethod
    def color(
        self,
        origins: torch.Tensor,
        directions: torch.Tensor,
        tokens: torch.Tensor,
        seed: Seed | None = None,
    ) -> torch.Tensor:
        """What rays show.

        Args:
            origins: ``(B, ..., 3)``.
            directions: the same shape.
            tokens: ``(B, latents, token_dim)``.
            seed: of what is drawn at random along rays in training; None for nothing.

        Returns:
            ``(B, ..., 3)``, about [0, 1], not clamped.
        """

    def forward(
        self,
        images: torch.Tensor,
        support_origins: torch.Tensor,
        support_directions: torch.Tensor,
        origins: torch.Tensor,
        directions: torch.Tensor,
        seed: Seed | None = None,
    ) -> torch.Tensor:
        """``color(origins, directions, encode(...), seed)``: what a training step calls."""
        tokens = self.encode(images, support_origins, support_directions)
        return self.color(origins, directions, tokens, seed)

    @torch.no_grad()
    def render_view(
        self,
        tokens: torch.Tensor,
        poses: torch.Tensor,
        height: int,
        width: int,
        focal: Focal,
        *,
        center: tuple[float, float] | None = None,
        max_rays: int = MAX_RAYS,
    ) -> torch.Tensor:
        """Whole views of any resolution, without gradients; memory beside the result is bounded.

        Args:
            tokens: ``(B, latents, token_dim)``.
            poses: ``(..., 4, 4)``, camera-to-world, from which every scene is seen; axes as in
                :func:`ginr_fast.rays.camera_rays`.
            height: rows of a view, in pixels.
            width: columns of a view, in pixels.
            focal: focal length in pixels, or ``(fx, fy)``.
            center: principal point ``(cx, cy)`` in pixels; the middle of the view if None.
            max_rays: rays decoded at a time, over all scenes; at least one a scene.

        Returns:
            ``(B, ..., 3, height, width)``, clamped to [0, 1].

        Raises:
            TypeError, ValueError: an argument of the wrong kind, shape or range, by its name.
        """
        check_tensor("tokens", tokens, ("B", "R", "token_dim"))
        for name, size in (("height", height), ("width", width), ("max_rays", max_rays)):
            if isinstance(size, bool) or not isinstance(size, int) or size < 1:
                raise ValueError(f"{name}: expected a positive integer, got {size!r}")
        if not isinstance(poses, torch.Tensor):
            raise TypeError(f"poses: expected a tensor, got {type(poses).__name__}")
        if poses.ndim < 2 or poses.shape[-2:] != (4, 4):
            raise ValueError(f"poses: expected shape (..., 4, 4), got {tuple(poses.shape)}")
        batch, views, pixels = tokens.shape[0], poses.shape[:-2], height * width
        middle = (width / 2, height / 2) if center is None else center
        dtype = torch.float64 if tokens.dtype == torch.float64 else torch.float32
        output = tokens.new_empty(batch, math.prod(views), 3, pixels, dtype=dtype)
        step = max(1, max_rays // max(1, batch))
        for view, pose in enumerate(poses.to(tokens.device).reshape(-1, 4, 4)):
            for first in range(0, pixels, step):
                index = torch.arange(first, min(first + step, pixels), device=tokens.device)
                rays = pixel_rays(pose, index // width, index % width, focal, middle)
                origins, directions = (part.expand(batch, *part.shape) for part in rays)
                color = self.color(origins, directions, tokens)
                output[:, view, :, first : first + step] = color.transpose(1, 2).clamp(0, 1)
        return output.reshape(batch, *views, 3, height, width)
