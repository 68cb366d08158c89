"""Marching rays through radiance fields, and compositing samples along rays."""

from ginr_fast.ops.volume_render.composite import composite
from ginr_fast.ops.volume_render.convention import RenderConvention, RenderedRays
from ginr_fast.ops.volume_render.occupancy import OccupancyGrid
from ginr_fast.ops.volume_render.op import volume_render

__all__ = ["OccupancyGrid", "RenderConvention", "RenderedRays", "composite", "volume_render"]
