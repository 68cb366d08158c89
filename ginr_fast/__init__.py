"""Fast, exact, differentiable decoders for generalizable implicit neural representations."""

from ginr_fast.coords import CoordinateGrid, grid
from ginr_fast.decoders.anr import AnrDecoder
from ginr_fast.decoders.locality_aware import LocalityAwareDecoder
from ginr_fast.decoders.streaming import decode_to_file, stream
from ginr_fast.fields import FieldSpec, FourierEncoding
from ginr_fast.ops.anr_decode.op import anr_decode
from ginr_fast.ops.anr_decode.weights import AnrWeights
from ginr_fast.ops.dispatch import BackendError, backend, explain
from ginr_fast.ops.locality_decode.op import locality_decode
from ginr_fast.ops.locality_decode.weights import LocalityWeights
from ginr_fast.ops.mixture_average.op import mixture_average

__version__ = "0.1.0"

__all__ = [
    "AnrDecoder",
    "AnrWeights",
    "BackendError",
    "CoordinateGrid",
    "FieldSpec",
    "FourierEncoding",
    "LocalityAwareDecoder",
    "LocalityWeights",
    "anr_decode",
    "backend",
    "decode_to_file",
    "explain",
    "grid",
    "locality_decode",
    "mixture_average",
    "stream",
]
