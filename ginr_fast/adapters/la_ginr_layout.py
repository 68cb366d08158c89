"""How locality-aware decoders of other people's code differ: where they keep their parts, and which
variant of LA-GINR's formula they compute."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

Source = str | Callable[[nn.Module], Any]
"""The name of an attribute, with dots for those of parts; or a function of the decoder."""

_FUNCTION, _COORDINATE, _FREQUENCY = range(3)


@dataclass(frozen=True)
class LocalityLayout:
    """Where a locality-aware decoder keeps its parts.

    With the names of :func:`ginr_fast.locality_decode`. Attributes are given by name, with dots for
    those of parts ("decoder.to_out"). The decoder's ``forward`` takes coordinates ``(B, ..., c)``
    and then tokens ``(B, R, width)`` and returns ``(B, ..., out)``.

    Args:
        name: for the report.
        query_feature: the linear map of the query's Fourier features, before its ReLU.
        attention: the cross-attention: a ``torch.nn.MultiheadAttention``, or a module with
            ``to_q``, ``to_k`` and ``to_v`` or a fused ``to_kv``, and ``to_out`` or none (or
            ``q_proj``, ``k_proj``, …), and the number of its heads as ``heads``, ``n_head``,
            ``n_heads`` or ``num_heads``.
        band_features: the linear maps of the bands' Fourier features, one a band.
        modulations: the linear maps of the attention's result, one a band.
        hidden: the linear maps between bands, one less.
        outputs: the linear maps to the value, one a band.
        query_frequencies: ω of the query, ``(n,)``: an attribute, or a function of the decoder
            where it keeps none.
        band_frequencies: ω of each band, ``(L, n)`` or a sequence of ``(n,)``, likewise.
        query_linear: an extra linear map between the query feature and the attention, if any.

    Whether the phase is ω, πω or 2πω times the coordinate, the order of the features, whether a
    ReLU follows feature + modulation, and whether all instances share the coordinates of the first
    is not described: it is found out.

    Example:
        >>> from ginr_fast.adapters.la_ginr_layout import LocalityLayout
        >>> LocalityLayout("mine", query_feature="to_query", attention="cross",
        ...     band_features="bands", modulations="mods", hidden="mlp", outputs="heads",
        ...     query_frequencies="query_omega", band_frequencies="omegas").name
        'mine'
    """

    name: str
    query_feature: str
    attention: str
    band_features: str
    modulations: str
    hidden: str
    outputs: str
    query_frequencies: Source
    band_frequencies: Source
    query_linear: str | None = None


LAINR = LocalityLayout(
    "LAINRDecoder",
    query_feature="query_lin",
    attention="modulation_ca",
    band_features="bandwidth_lins",
    modulations="modulation_lins",
    hidden="hv_lins",
    outputs="out_lins",
    query_frequencies="omegas",
    band_frequencies="omegas_l",
)
"""The layout of the ``LAINRDecoder`` that public research code has (MAMBA-GINR and its forks)."""

LAYOUTS = (LAINR,)
"""The layouts that :func:`ginr_fast.accelerate` knows."""


@dataclass(frozen=True)
class Variant:
    """What a decoder of a layout computes, beyond the layout.

    Args:
        coord_dim: c, coordinates of a point.
        heads: H of the attention.
        phase: the phase is this times ω times the coordinate.
        order: which of (cosine or sine, coordinate, frequency) is the outermost index of a feature,
            which the next, which the innermost.
        sine_first: whether sines come before cosines.
        modulation_relu: whether a ReLU follows feature + modulation.
        shared: whether the coordinates of the first instance are those of all.
    """

    coord_dim: int
    heads: int
    phase: float = math.pi
    order: tuple[int, int, int] = (_FUNCTION, _COORDINATE, _FREQUENCY)
    sine_first: bool = False
    modulation_relu: bool = True
    shared: bool = False


def variants(coord_dim: int, heads: int) -> Iterator[Variant]:
    """All variants of the formula that are tried."""
    for relu, sine_first, (outer, middle, inner), shared, phase in itertools.product(
        (True, False),
        (False, True),
        itertools.permutations((_FUNCTION, _COORDINATE, _FREQUENCY)),
        (False, True),
        (math.pi, 2 * math.pi, 1.0),
    ):
        yield Variant(coord_dim, heads, phase, (outer, middle, inner), sine_first, relu, shared)
