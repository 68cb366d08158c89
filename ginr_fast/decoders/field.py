"""Fields with packed weights as a drop-in module: values at coordinates, rays and whole views."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ginr_fast.coords import CoordinateGrid
from ginr_fast.fields import FieldSpec
from ginr_fast.ops import dispatch
from ginr_fast.ops.checks import check_count, check_tensor
from ginr_fast.ops.field_mlp.op import field_mlp
from ginr_fast.ops.volume_render.convention import RenderConvention, RenderedRays
from ginr_fast.ops.volume_render.occupancy import OccupancyGrid
from ginr_fast.ops.volume_render.op import volume_render
from ginr_fast.ops.volume_render.random import Seed
from ginr_fast.rays import Focal, pixel_rays

MAX_RAYS = 1 << 16


class FieldDecoder(nn.Module):
    """Evaluates and renders fields, small MLPs whose packed weights are an argument.

    It has no parameters: a system makes the weights (``ginr_fast.mixture_average`` for mNIF) and
    this decodes them, as the token decoders do tokens. It serves :func:`ginr_fast.stream` and
    :func:`ginr_fast.decode_to_file` too, with packed weights in the place of tokens.

    Args:
        spec: what the fields are.
        output_scale: s of the value ``s·y + t`` that :meth:`forward` gives; ½ and ½ take values in
            [-1, 1], as mNIF's images have them, to [0, 1]. Rendering does not use them.
        output_bias: t of the same.

    Raises:
        TypeError: ``spec`` is no :class:`~ginr_fast.FieldSpec`.
        ValueError: a scale or bias that is no finite number.

    Example:
        >>> import torch, ginr_fast
        >>> from ginr_fast.decoders.field import FieldDecoder
        >>> spec = ginr_fast.FieldSpec(coord_dim=2, out_dim=3, hidden_dim=16, hidden_layers=1)
        >>> decoder = FieldDecoder(spec)
        >>> weights = torch.randn(2, spec.parameter_count)
        >>> decoder(ginr_fast.grid(12, 10), weights).shape
        torch.Size([2, 12, 10, 3])
    """

    def __init__(
        self, spec: FieldSpec, output_scale: float = 1.0, output_bias: float = 0.0
    ) -> None:
        super().__init__()
        if not isinstance(spec, FieldSpec):
            raise TypeError(f"spec: expected a FieldSpec, got {type(spec).__name__}")
        for name, number in (("output_scale", output_scale), ("output_bias", output_bias)):
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise ValueError(f"{name}: expected a finite number, got {number!r}")
        self.spec = spec
        self.output_scale, self.output_bias = float(output_scale), float(output_bias)

    def forward(
        self, coords: Tensor | CoordinateGrid, weights: Tensor, directions: Tensor | None = None
    ) -> Tensor:
        """Values at coordinates, see :func:`ginr_fast.field_mlp`.

        Args:
            coords: ``(B, ..., d)``, ``(..., d)`` shared by the batch, or a grid.
            weights: packed, ``(B, P)``.
            directions: viewing directions, ``(..., 3)`` like ``coords``, for a spec with a view
                branch.

        Returns:
            ``(B, ..., out_dim)``, differentiable.
        """
        values = field_mlp(coords, weights, self.spec, directions)
        if self.output_scale != 1.0:
            values = values * self.output_scale
        return values + self.output_bias if self.output_bias else values

    def render(
        self,
        origins: Tensor,
        directions: Tensor,
        weights: Tensor,
        *,
        near: float,
        far: float,
        samples: int,
        convention: str | RenderConvention = "mnif",
        seed: Seed | None = None,
        occupancy: OccupancyGrid | None = None,
    ) -> RenderedRays:
        """Colour, opacity and depth along rays, see :func:`ginr_fast.volume_render`.

        Args:
            origins: ``(B, ..., 3)``.
            directions: ``(B, ..., 3)``, not normalised.
            weights: packed, ``(B, P)``.
            near: where rays start, in units of a direction.
            far: where they end.
            samples: field evaluations along a ray.
            convention: a name, or a :class:`~ginr_fast.RenderConvention`.
            seed: of the jitter along rays; None for none.
            occupancy: of these fields; for inference only.

        Returns:
            color ``(B, ..., C)``, opacity and depth ``(B, ...)``.
        """
        return volume_render(
            origins,
            directions,
            weights,
            self.spec,
            near=near,
            far=far,
            samples=samples,
            convention=convention,
            seed=seed,
            occupancy=occupancy,
        )

    @torch.no_grad()
    def render_view(
        self,
        weights: Tensor,
        poses: Tensor,
        height: int,
        width: int,
        focal: Focal,
        *,
        near: float,
        far: float,
        samples: int,
        center: tuple[float, float] | None = None,
        convention: str | RenderConvention = "mnif",
        occupancy: OccupancyGrid | None = None,
        max_rays: int = MAX_RAYS,
    ) -> RenderedRays:
        """Whole views of any resolution, without gradients; memory beside the result is bounded.

        Args:
            weights: packed, ``(B, P)``.
            poses: ``(..., 4, 4)``, camera-to-world, from which every field is seen; axes as in
                :func:`ginr_fast.rays.camera_rays`.
            height: rows of a view, in pixels.
            width: columns of a view, in pixels.
            focal: focal length in pixels, or ``(fx, fy)``.
            near, far, samples, convention, occupancy: see :meth:`render`.
            center: principal point ``(cx, cy)`` in pixels; the middle of the view if None.
            max_rays: rays marched at a time, over all fields; at least one a field.

        Returns:
            color ``(B, ..., height, width, C)``, opacity and depth ``(B, ..., height, width)``.

        Raises:
            TypeError, ValueError: an argument of the wrong kind, shape or range, by its name.

        Example:
            >>> import torch, ginr_fast
            >>> from ginr_fast.decoders.field import FieldDecoder
            >>> from ginr_fast.rays import orbit_poses
            >>> spec = ginr_fast.FieldSpec(coord_dim=3, out_dim=4, hidden_dim=16, hidden_layers=1)
            >>> weights, poses = torch.randn(2, spec.parameter_count), orbit_poses(5, radius=1.3)
            >>> FieldDecoder(spec).render_view(
            ...     weights, poses, 24, 32, 30.0, near=0.8, far=1.8, samples=8).color.shape
            torch.Size([2, 5, 24, 32, 3])
        """
        check_tensor("weights", weights, ("B", self.spec.parameter_count))
        for name, size in (("height", height), ("width", width), ("max_rays", max_rays)):
            check_count(name, size)
        if not isinstance(poses, Tensor):
            raise TypeError(f"poses: expected a tensor, got {type(poses).__name__}")
        if poses.ndim < 2 or poses.shape[-2:] != (4, 4):
            raise ValueError(f"poses: expected shape (..., 4, 4), got {tuple(poses.shape)}")
        batch, views, pixels = weights.shape[0], poses.shape[:-2], height * width
        middle = (width / 2, height / 2) if center is None else center
        dtype = torch.float64 if weights.dtype == torch.float64 else torch.float32
        made, channels = (batch, math.prod(views), pixels), self.spec.out_dim - 1
        color = weights.new_empty(*made, channels, dtype=dtype)
        opacity, depth = (weights.new_empty(made, dtype=dtype) for _ in range(2))
        step = max(1, max_rays // max(1, batch))
        for view, pose in enumerate(poses.to(weights.device).reshape(-1, 4, 4)):
            for first in range(0, pixels, step):
                index = torch.arange(first, min(first + step, pixels), device=weights.device)
                row, column = index // width, index % width
                rays = pixel_rays(pose, row, column, focal, middle)
                origins, directions = (part.expand(batch, *part.shape) for part in rays)
                found = self.render(
                    origins,
                    directions,
                    weights,
                    near=near,
                    far=far,
                    samples=samples,
                    convention=convention,
                    occupancy=occupancy,
                )
                part = slice(first, first + step)
                color[:, view, part] = found.color
                opacity[:, view, part] = found.opacity
                depth[:, view, part] = found.depth
        shape = (batch, *views, height, width)
        return RenderedRays(color.view(*shape, channels), opacity.view(shape), depth.view(shape))

    def extra_repr(self) -> str:
        backend = dispatch.forced_backend() or "auto"
        return f"parameters={self.spec.parameter_count}, backend={backend}"
