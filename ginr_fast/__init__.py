"""Fast, exact, differentiable decoders for generalizable implicit neural representations."""

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.ops.dispatch import BackendError, backend, explain

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CoordinateGrid",
    "LocalityAwareDecoder",
    "backend",
    "explain",
    "grid",
]
