"""Posed views to patch tokens."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import nn

from ginr_fast.encoders.tokenizer import PatchTokenizer
from ginr_fast.ops.checks import check_tensor
from ginr_fast.rays import plucker

RayChannels = Literal["origin_direction", "plucker"]
_COLORS = 3
_RAY_COMPONENTS = 6


class ViewTokenizer(nn.Module):
    """Cut posed views into patches and embed each as one token, with the rays of its pixels.

    A pixel has nine channels: its colour, and six numbers of its ray, either origin and direction
    (TransINR, ECCV 2022, section 4.2; IPC) or Plücker coordinates (LA-GINR, arXiv:2310.05624,
    Appendix A.2). A patch p of any view becomes ``W · patch_p + b + position_p``; the tokens of all
    views lie one after the other.

    The learned position of a patch is the same in every view: which view it belongs to is in its
    rays. So one model takes any number of views, and their order does not matter to a Transformer.
    (With ``position_views`` as TransINR's code, which has no positions, or as IPC's, which has a
    table for a fixed number of views.) Directions are taken as they come; the published code does
    not normalise them, whatever the paper says.

    Args:
        image_size: height and width of the views, in pixels.
        patch_size: height and width of a patch, in pixels; divides ``image_size``, since there is
            no ray beyond the border.
        dim: width of the tokens.
        rays: what a pixel says of its ray.
        position_views: in how many views a patch has positions of its own: 1 for the same in
            every view, 0 for none (they stay zero); with more, ``forward`` takes so many views.

    Raises:
        ValueError: a size below 1, a patch that does not divide the view, an unknown ``rays``, or
            ``position_views`` below 0.

    Example:
        >>> import torch
        >>> from ginr_fast.encoders import ViewTokenizer
        >>> from ginr_fast.rays import camera_rays, orbit_poses
        >>> origins, directions = camera_rays(orbit_poses(2, radius=4.0), 32, 32, focal=35.0)
        >>> tokenizer = ViewTokenizer(image_size=32, patch_size=8, dim=64)
        >>> tokenizer(torch.rand(1, 2, 3, 32, 32), origins[None], directions[None]).shape
        torch.Size([1, 32, 64])
    """

    def __init__(
        self,
        image_size: int,
        patch_size: int,
        dim: int = 768,
        rays: RayChannels = "origin_direction",
        position_views: int = 1,
    ) -> None:
        super().__init__()
        self.patch_tokenizer = PatchTokenizer(
            image_size, patch_size, _COLORS + _RAY_COMPONENTS, dim
        )
        if image_size % patch_size:
            raise ValueError(
                f"patch_size: expected a divisor of image_size {image_size}, got {patch_size}"
            )
        if rays not in get_args(RayChannels):
            choices = ", ".join(get_args(RayChannels))
            raise ValueError(f"rays: expected one of {choices}, got {rays!r}")
        if not isinstance(position_views, int) or position_views < 0:
            raise ValueError(
                f"position_views: expected a non-negative integer, got {position_views!r}"
            )
        self.image_size, self.rays, self.position_views = image_size, rays, position_views
        table = self.patch_tokenizer.position
        if position_views == 0:
            nn.init.zeros_(table.requires_grad_(False))
        elif position_views > 1:
            self.patch_tokenizer.position = nn.Parameter(table.detach().repeat(position_views, 1))

    def forward(
        self, images: torch.Tensor, origins: torch.Tensor, directions: torch.Tensor
    ) -> torch.Tensor:
        """Tokens of views.

        Args:
            images: ``(B, V, 3, image_size, image_size)``, floating point.
            origins: ``(B, V, image_size, image_size, 3)``, of the pixels' rays, in the dtype of the
                images.
            directions: the same shape.

        Returns:
            ``(B, V · patches, dim)`` with ``patches = (image_size / patch_size)²``.

        Raises:
            TypeError: not a tensor, or of another dtype. ValueError: another shape, no view, or
                not as many as have positions.
        """
        size = self.image_size
        check_tensor("images", images, ("B", "V", _COLORS, size, size))
        batch, views = images.shape[:2]
        if not views:
            raise ValueError("images: expected at least one view")
        if self.position_views > 1 and views != self.position_views:
            raise ValueError(f"images: expected {self.position_views} views, got {views}")
        for name, part in (("origins", origins), ("directions", directions)):
            check_tensor(name, part, (batch, views, size, size, 3), dtypes=[images.dtype])
        if self.rays == "plucker":
            rays = plucker(origins, directions)
        else:
            rays = torch.cat([origins, directions], -1)
        pixels = torch.cat([images, rays.movedim(-1, 2)], 2)
        patches = self.patch_tokenizer
        tokens = patches.embed(patches.patches(pixels.flatten(0, 1))).unflatten(0, (batch, views))
        return (tokens + patches.position.unflatten(0, (-1, patches.side**2))).flatten(1, 2)

    def extra_repr(self) -> str:
        return f"rays={self.rays!r}, position_views={self.position_views}"
