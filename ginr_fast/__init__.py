"""Fast, exact, differentiable decoders for generalizable implicit neural representations."""

from ginr_fast.adapters.frame import accelerate, restore
from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.anr import AnrDecoder
from ginr_fast.decoders.field import FieldDecoder
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.decoders.streaming import decode_to_file, stream
from ginr_fast.decoders.token_field import GroupedFieldDecoder, PatternFieldDecoder
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.anr_decode.op import anr_decode
from ginr_fast.ops.anr_decode.weights import AnrWeights
from ginr_fast.ops.dispatch import BackendError, backend, explain
from ginr_fast.ops.field_mlp.op import field_mlp
from ginr_fast.ops.group_weights.op import group_weights
from ginr_fast.ops.locality_decode.op import locality_decode
from ginr_fast.ops.locality_decode.weights import LocalityWeights
from ginr_fast.ops.low_rank_weights.op import low_rank_weights
from ginr_fast.ops.mixture_average.op import mixture_average
from ginr_fast.ops.volume_render.composite import composite
from ginr_fast.ops.volume_render.convention import RenderConvention, RenderedRays
from ginr_fast.ops.volume_render.occupancy import OccupancyGrid
from ginr_fast.ops.volume_render.op import volume_render
from ginr_fast.ops.volume_render.random import RaySeed
from ginr_fast.rays import camera_rays, look_at, orbit_poses, plucker

__version__ = "0.1.0"

__all__ = [
    "AnrDecoder",
    "AnrWeights",
    "BackendError",
    "CoordinateGrid",
    "FieldDecoder",
    "FieldSpec",
    "FourierEncoding",
    "GroupedFieldDecoder",
    "LocalityAwareDecoder",
    "LocalityWeights",
    "OccupancyGrid",
    "PatternFieldDecoder",
    "RaySeed",
    "RenderConvention",
    "RenderedRays",
    "accelerate",
    "anr_decode",
    "backend",
    "camera_rays",
    "composite",
    "decode_to_file",
    "explain",
    "field_mlp",
    "grid",
    "group_weights",
    "locality_decode",
    "look_at",
    "low_rank_weights",
    "mixture_average",
    "orbit_poses",
    "plucker",
    "restore",
    "stream",
    "volume_render",
]
